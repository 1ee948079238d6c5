"""The tutorial's script against the job: whole processes, alternately, on the same machine in one run.

    python tests/bench/tutorial.py [--data FOLDER] [--repeat 3] [--fast-only] [--json FILE]

Seconds are wall time from the start of the process to its end: by then our report is written and the script has
printed its accuracy. Each of our rows has an accuracy it must reach in every repetition, or the benchmark fails.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from job.device import cpu_count, cpu_name

ROOT = Path(__file__).resolve().parents[2]
LAB = "tutorial's script"


@dataclass(frozen=True)
class Row:
    """Something to time. `floor` is the test accuracy it must reach, None for the yardstick."""

    name: str
    sample: str | None
    floor: float | None


ROWS = (
    Row(LAB, None, None),
    Row("cifar10-fast.yaml", "job/spec/samples/cifar10-fast.yaml", 0.55),
    Row("cifar10.yaml", "job/spec/samples/cifar10.yaml", 0.84),
)


@dataclass(frozen=True)
class Timing:
    """One process, from start to end. `train_seconds` is first batch to last weights, where it is known."""

    name: str
    seconds: float
    accuracy: float
    train_seconds: float | None


def main() -> int:
    options = arguments()
    data = options.data
    if data is None or not (data / "cifar-10-batches-py/test_batch").is_file():
        print("skipped: needs CIFAR-10 (cifar-10-batches-py) in --data or JOB_DATA_ROOT")
        return 0
    rows = ROWS[:2] if options.fast_only else ROWS
    machine = {"cpu": cpu_name(), "cpus": cpu_count(), "torch": version("torch"), "python": platform.python_version()}
    print(", ".join(f"{word} {value}" for word, value in machine.items()))
    timings = []
    for repetition in range(options.repeat):
        for row in rows:
            with tempfile.TemporaryDirectory() as folder:
                timing = time_lab(data, Path(folder)) if row.sample is None else time_job(row, data, Path(folder))
            print(
                f"{repetition + 1}/{options.repeat}  {timing.name:18}  {timing.seconds:7.1f} s  {timing.accuracy:.2%}",
                flush=True,
            )
            timings.append(timing)
    if options.json is not None:
        found = {"machine": machine, "timings": [asdict(timing) for timing in timings]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    missed = [row for row in rows if row.floor is not None and worst(timings, row.name) < row.floor]
    for row in missed:
        print(f"{row.name}: {worst(timings, row.name):.2%} is below {row.floor:.0%}", file=sys.stderr)
    print_table(rows, timings)
    return 1 if missed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the tutorial's script against the job.")
    parser.add_argument("--data", type=Path, default=os.environ.get("JOB_DATA_ROOT"), help="default: $JOB_DATA_ROOT")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each; default 3")
    parser.add_argument("--fast-only", action="store_true", help="leave out cifar10.yaml, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing to this file")
    return parser.parse_args()


def time_lab(data: Path, folder: Path) -> Timing:
    seconds, printed = run([str(ROOT / "tests/bench/lab.py"), str(data.resolve()), str(folder / "cifar_net.pth")])
    found = re.search(r"Accuracy on the \d+ test images: ([\d.]+) %", printed)
    assert found, printed
    return Timing(LAB, seconds, float(found[1]) / 100, None)


def time_job(row: Row, data: Path, folder: Path) -> Timing:
    assert row.sample is not None
    keys = [f"store.uri={folder}", f"dataset.root={data.resolve()}"]
    overrides = [word for key in keys for word in ("--set", key)]
    seconds, _ = run(["-m", "job", "run", row.sample, "--run-id", "bench", *overrides])
    report = json.loads((folder / "bench/report.json").read_text(encoding="utf-8"))
    return Timing(row.name, seconds, report["accuracy"], report.get("seconds", {}).get("train"))


def run(command: list[str]) -> tuple[float, str]:
    """Wall seconds and output of a new Python process; its errors end the benchmark."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def worst(timings: list[Timing], name: str) -> float:
    return min(timing.accuracy for timing in timings if timing.name == name)


def median(timings: list[Timing], name: str) -> float:
    return statistics.median(timing.seconds for timing in timings if timing.name == name)


def print_table(rows: tuple[Row, ...], timings: list[Timing]) -> None:
    """Medians with their range, then the ratio that counts: the script's time over that of the same accuracy."""
    print(f"\n{'':18}  {'seconds':>8}  {'from–to':>13}  {'training':>8}  {'accuracy':>15}  {'times as fast':>13}")
    for row in rows:
        mine = [timing for timing in timings if timing.name == row.name]
        seconds = sorted(timing.seconds for timing in mine)
        accuracies = sorted(timing.accuracy for timing in mine)
        inside = [timing.train_seconds for timing in mine if timing.train_seconds is not None]
        cells = (
            f"{median(timings, row.name):8.1f}",
            f"{f'{seconds[0]:.1f}–{seconds[-1]:.1f}':>13}",
            f"{statistics.median(inside):8.1f}" if inside else " " * 8,
            f"{f'{accuracies[0]:.2%}–{accuracies[-1]:.2%}':>15}",
            f"{median(timings, LAB) / median(timings, row.name):12.1f}×",
        )
        print(f"{row.name:18}  {'  '.join(cells)}")
    fast = rows[1]
    ratio = median(timings, LAB) / median(timings, fast.name)
    count = sum(timing.name == fast.name for timing in timings)
    print(f"\nTo {fast.floor:.0%} test accuracy, from process start to report, median of {count}: {ratio:.1f}×")


if __name__ == "__main__":
    raise SystemExit(main())
