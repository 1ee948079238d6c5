"""What a run tells: one frozen dataclass for each kind of news, made by the pipeline, shown by the console.

Plain numbers and words only, so that an event is also a line of JSON.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """A sentence for the user; level is info or warning."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Begun:
    """The run has a folder and is about to train."""

    run_id: str
    folder: str
    resumed: bool


@dataclass(frozen=True)
class Planned:
    """What is going to run, as pairs of a word and its value."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tuned:
    """The loader's settings and how they were found; a row is (candidate, images/s or None, remark)."""

    rows: tuple[tuple[str, float | None, str], ...]
    choice: str
    why: str


@dataclass(frozen=True)
class Progress:
    """Where training stands. Seconds left is None until it can be told."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float | None
    upload: str = ""  # how far the store is behind, where there is one


@dataclass(frozen=True)
class RunningLoss:
    """Mean loss of the last log_every mini-batches, in the lab's form: [epoch, mini-batch] loss."""

    epoch: int
    step: int
    loss: float


@dataclass(frozen=True)
class EpochEnded:
    """One pass over the training split; loss and accuracy are those of an evaluation, if one was due."""

    epoch: int
    epochs: int
    train_loss: float
    lr: float
    seconds: float
    images_per_second: float
    evaluated_on: str | None
    loss: float | None
    accuracy: float | None
    split_seconds: dict[str, float] | None = None  # by phase, since the epoch before


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk, whole and verified."""

    path: str
    epoch: int
    step: int


@dataclass(frozen=True)
class Stored:
    """A checkpoint is in the store, verified and named by the pointer there."""

    uri: str
    epoch: int
    step: int


@dataclass(frozen=True)
class Result:
    """The test split, read once at the end. Accuracies are 0–1; the interval is Wilson's, 95 %."""

    accuracy: float
    interval: tuple[float, float]
    count: int
    loss: float
    per_class: tuple[tuple[str, float | None], ...]
    weights: str


@dataclass(frozen=True)
class Ended:
    """The run is complete and its report is written."""

    run_id: str
    accuracy: float
    seconds: float
    report: str


Event = Note | Begun | Planned | Tuned | Progress | RunningLoss | EpochEnded | Saved | Stored | Result | Ended


def describe(event: Event) -> list[str]:
    """The event as plain lines, without colour: for logs, pipes and files. Progress has none."""
    match event:
        case Note(text, level):
            return [text if level == "info" else f"{level}: {text}"]
        case Begun(run_id, folder, resumed):
            return [f"{'Resuming' if resumed else 'Run'} {run_id} in {folder}"]
        case Planned(lines):
            width = max(len(word) for word, _ in lines)
            return [f"{word:<{width}}  {value}" for word, value in lines]
        case Tuned(rows, choice, why):
            table = [f"  {name:<32} {_rate(speed):>12}  {remark}".rstrip() for name, speed, remark in rows]
            return ["Loader candidates:", *table, f"Loader: {choice}: {why}"]
        case RunningLoss(epoch, step, loss):
            return [f"[{epoch}, {step:5d}] loss: {loss:.3f}"]
        case EpochEnded():
            return [_epoch(event)]
        case Saved(path):
            return [f"Saved {path}"]
        case Stored(uri):
            return [f"Stored {uri}"]
        case Result():
            return _result(event)
        case Ended(run_id, accuracy, seconds, report):
            return [f"Done: {run_id}, test accuracy {accuracy:.2%}, {seconds:.1f} s", f"Report: {report}"]
        case _:
            return []


def _rate(speed: float | None) -> str:
    return "" if speed is None else f"{speed:,.0f} img/s"


def _epoch(event: EpochEnded) -> str:
    line = f"Epoch {event.epoch}/{event.epochs}: training loss {event.train_loss:.4f}"
    if event.evaluated_on is not None:
        line += f", {event.evaluated_on} loss {event.loss:.4f}, {event.evaluated_on} accuracy {event.accuracy:.2%}"
    return line + f", {event.images_per_second:,.0f} images/s, {event.seconds:.1f} s"


def _result(event: Result) -> list[str]:
    low, high = event.interval
    overall = f"Accuracy of the network on the {event.count} test images: {event.accuracy:.2%}"
    known = [(name, accuracy) for name, accuracy in event.per_class if accuracy is not None]
    shown = [f"Accuracy for class: {name:5s} is {accuracy:.1%}" for name, accuracy in known[:20]]
    more = [f"({len(known) - 20} more classes are in the report)"] if len(known) > 20 else []  # noqa: PLR2004
    return [f"{overall} (95 % interval {low:.2%} to {high:.2%})", *shown, *more]
