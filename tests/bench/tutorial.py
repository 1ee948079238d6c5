"""(1) The tutorial's script against the job: whole processes, alternately, on the same machine in one run.

    python -m tests.bench.tutorial [--data FOLDER] [--repeat 3] [--fast-only] [--json FILE]

Wall seconds go from the start of the process to its end: by then our report is written and the script has printed its
accuracy. Training seconds go from the first batch to the last weights. The script is taken at its word: its time to
55 % is that of its two epochs, although some of its runs end short of 55 %. Each of our rows has an accuracy it must
reach in every repetition, or the benchmark fails; each repetition has a seed of its own.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import common
from tests.bench.common import Ratio, median

LAB = "tutorial's script"


@dataclass(frozen=True)
class Row:
    """Something to time. `floor` is the test accuracy it must reach; None for the yardstick."""

    name: str
    floor: float | None = None
    most: float | None = None  # wall time allowed, as a multiple of the script's


ROWS = (
    Row(LAB),
    Row("cifar10-fast.yaml", 0.55),
    Row("cifar10.yaml", 0.84, 1.0),
    Row("cifar10-long.yaml", 0.88, 2.5),
)


@dataclass(frozen=True)
class Timing:
    """One process."""

    name: str
    seconds: float
    train_seconds: float
    accuracy: float


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    fast_only = "--fast-only" in given
    options = common.options(__doc__, [word for word in given if word != "--fast-only"])
    data = common.cifar10(options.data)
    if data is None:
        return 0
    rows = ROWS[:2] if fast_only else ROWS
    timings = []
    for repetition in range(options.repeat):
        for row in rows:
            with tempfile.TemporaryDirectory() as folder:
                timing = time_row(row, data, Path(folder), repetition)
            print(
                f"{repetition + 1}/{options.repeat}  {timing.name:18}  {timing.seconds:7.1f} s, "
                f"training {timing.train_seconds:6.1f} s  {timing.accuracy:.2%}",
                flush=True,
            )
            timings.append(timing)
    print_table(rows, timings)
    common.finish("tutorial", ratios(rows, timings), [asdict(timing) for timing in timings], options.json)
    missed = [row for row in rows if row.floor is not None and worst(timings, row.name) < row.floor]
    for row in missed:
        print(f"{row.name}: {worst(timings, row.name):.2%} is below {row.floor:.0%}", file=sys.stderr)
    return 1 if missed else 0


def time_row(row: Row, data: Path, folder: Path, repetition: int) -> Timing:
    if row.floor is None:
        done = common.python(["-m", "tests.bench.lab", str(data), str(folder / "cifar_net.pth")])
        accuracy = re.search(r"Accuracy on the \d+ test images: ([\d.]+) %", done.output)
        training = re.search(r"Training took ([\d.]+) s", done.output)
        assert accuracy, done.output
        assert training, done.output
        return Timing(LAB, done.seconds, float(training[1]), float(accuracy[1]) / 100)
    done, report = common.job(row.name, data, folder, f"train.seed={100 + repetition}")
    train = sum(epoch["seconds"] for epoch in report["history"])
    return Timing(row.name, done.seconds, train, report["accuracy"])


def ratios(rows: Sequence[Row], timings: Sequence[Timing]) -> list[Ratio]:
    lab, fast = of(timings, LAB), of(timings, rows[1].name)
    found = [
        Ratio("wall time to 55 %, script ÷ ours", wall(lab) / wall(fast), 10),
        Ratio("first batch to weights of 55 %, script ÷ ours", training(lab) / training(fast), 18),
    ]
    for row in rows[2:]:
        mine = of(timings, row.name)
        what = f"{row.name} ({worst(timings, row.name):.2%} at least), wall time ours ÷ script"
        found.append(Ratio(what, wall(mine) / wall(lab), row.most, at_most=True))
    return found


def of(timings: Sequence[Timing], name: str) -> list[Timing]:
    return [timing for timing in timings if timing.name == name]


def wall(timings: Sequence[Timing]) -> float:
    return median([timing.seconds for timing in timings])


def training(timings: Sequence[Timing]) -> float:
    return median([timing.train_seconds for timing in timings])


def worst(timings: Sequence[Timing], name: str) -> float:
    return min(timing.accuracy for timing in of(timings, name))


def print_table(rows: Sequence[Row], timings: Sequence[Timing]) -> None:
    """As a Markdown table, for the README."""
    print("\n| | seconds, median (from–to) | of these training | test accuracy | times as fast |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        mine = of(timings, row.name)
        seconds = sorted(timing.seconds for timing in mine)
        accuracies = sorted(timing.accuracy for timing in mine)
        name = f"`{row.name}`" if row.floor is not None else f"the {LAB}"
        print(
            f"| {name} | {wall(mine):.1f} ({seconds[0]:.1f}–{seconds[-1]:.1f}) | {training(mine):.1f} "
            f"| {accuracies[0] * 100:.1f}–{accuracies[-1] * 100:.1f} % | {wall(of(timings, LAB)) / wall(mine):.1f} |"
        )
    print()


if __name__ == "__main__":
    raise SystemExit(main())
