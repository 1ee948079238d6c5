"""Shows a run's events: a live table with a progress bar on a terminal, plain lines elsewhere, or JSON lines.

The only module that imports rich, and only for a terminal.
"""

import dataclasses
import json
import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from job.events import EpochEnded, Event, Progress, Result, RunningLoss, Tuned, describe

PLAIN_PROGRESS_EVERY = 30.0  # seconds between two lines of progress in a log


class Console(Protocol):
    def show(self, event: Event) -> None: ...

    def __enter__(self) -> "Console": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make(log_format: str, out: TextIO | None = None) -> Console:
    """`log_format` is auto, plain or json; auto is live on a terminal."""
    out = sys.stdout if out is None else out
    if log_format == "json":
        return JsonConsole(out)
    if log_format == "auto" and out.isatty():
        return LiveConsole(out)
    return PlainConsole(out)


class PlainConsole:
    """One line of text a thing; no colour, no control codes."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.progress_due = time.monotonic() + PLAIN_PROGRESS_EVERY

    def __enter__(self) -> "PlainConsole":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.out.flush()

    def show(self, event: Event) -> None:
        for line in describe(event):
            print(line, file=self.out, flush=True)
        if isinstance(event, Progress) and time.monotonic() >= self.progress_due:
            self.progress_due = time.monotonic() + PLAIN_PROGRESS_EVERY
            print(progress_line(event), file=self.out, flush=True)


class JsonConsole:
    """One JSON object a line: the event's name, the time, and its fields."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def __enter__(self) -> "JsonConsole":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.out.flush()

    def show(self, event: Event) -> None:
        line = {"event": type(event).__name__, "time": time.time(), **dataclasses.asdict(event)}
        print(json.dumps(line, ensure_ascii=False), file=self.out, flush=True)


class LiveConsole:
    """A bar that moves, the table of epochs above it, and everything else scrolling by."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.console = RichConsole(file=out, highlight=False)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, facts="", visible=False)
        self.header_shown = False
        self.steps = 0  # of an epoch, once it is known

    def __enter__(self) -> "LiveConsole":
        self.bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case Progress():
                self._progress(event)
            case RunningLoss():
                self.bar.update(self.task, visible=True)
                self._print(describe(event)[0], style="dim")
            case EpochEnded():
                self._epoch(event)
            case Result():
                self.bar.update(self.task, visible=False, refresh=True)
                self._result(event)
            case Tuned():
                self._tuned(event)
            case _:
                warning = getattr(event, "level", "info") == "warning"
                for line in describe(event):
                    self._print(line, style="yellow" if warning else None)

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)  # names may hold [brackets]

    def _progress(self, event: Progress) -> None:
        self.steps = event.steps
        done = (event.epoch - 1) * event.steps + event.step
        left = "" if event.seconds_left is None else f", {clock(event.seconds_left)} left"
        self.bar.update(
            self.task,
            visible=True,
            description=f"Epoch {event.epoch}/{event.epochs}",
            total=event.epochs * event.steps,
            completed=done,
            facts=f"{event.images_per_second:,.0f} images/s{left}{_upload(event)}",
        )

    def _epoch(self, event: EpochEnded) -> None:
        self.bar.update(self.task, completed=event.epoch * self.steps)
        if not self.header_shown:
            self.header_shown = True
            heads = f"{'epoch':>7}  {'training loss':>13}  {'loss':>8}  {'accuracy':>8}  {'images/s':>9}  {'time':>7}"
            self._print(heads, style="bold")
        loss = "" if event.loss is None else f"{event.loss:.4f}"
        accuracy = "" if event.accuracy is None else f"{event.accuracy:.2%}"
        which = "" if event.evaluated_on is None else f"  ({event.evaluated_on})"
        self._print(
            f"{event.epoch:>3}/{event.epochs:<3}  {event.train_loss:>13.4f}  {loss:>8}  {accuracy:>8}  "
            f"{event.images_per_second:>9,.0f}  {clock(event.seconds):>7}{which}"
        )

    def _result(self, event: Result) -> None:
        from rich.table import Table
        from rich.text import Text

        low, high = event.interval
        table = Table(title="Test accuracy by class")
        table.add_column("class")
        table.add_column("accuracy", justify="right")
        table.add_column("")
        for name, accuracy in event.per_class[:20]:
            share = accuracy or 0.0
            shown = "no image" if accuracy is None else f"{accuracy:.1%}"
            table.add_row(Text(name), shown, Text("█" * round(24 * share), style="cyan"))
        self.console.print(table)
        self._print(
            f"Accuracy of the network on the {event.count} test images: {event.accuracy:.2%} "
            f"(95 % interval {low:.2%} to {high:.2%})",
            style="bold",
        )

    def _tuned(self, event: Tuned) -> None:
        for line in describe(event):
            self._print(line, style="dim" if line.startswith("  ") else None)


def progress_line(event: Progress) -> str:
    left = "" if event.seconds_left is None else f", {clock(event.seconds_left)} left"
    where = f"Epoch {event.epoch}/{event.epochs}, step {event.step}/{event.steps}"
    return f"{where}, {event.images_per_second:,.0f} images/s{left}{_upload(event)}"


def _upload(event: Progress) -> str:
    return f", {event.upload}" if event.upload else ""


def clock(seconds: float) -> str:
    """75.2 → 1:15; 3700 → 1:01:40; below a minute with a tenth."""
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
