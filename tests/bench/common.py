"""What all benchmarks share: their options, the machine, ratios against bars, text and JSON.

A benchmark measures both sides of a ratio in one run, alternately, and takes medians. It never fails for being slow:
it says which bar is held. Run one by `python -m tests.bench.NAME`, all by `make bench`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from job.device import cpu_count, cpu_name

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ratio:
    """A figure that counts, and the bar it is held against; None where there is no bar."""

    what: str
    value: float
    bar: float | None = None
    at_most: bool = False  # the bar is an upper one
    unit: str = "×"

    @property
    def held(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def options(doc: str | None, arguments: Sequence[str] | None, repeat: int = 3) -> argparse.Namespace:
    return parser(doc, repeat).parse_args(arguments)


def parser(doc: str | None, repeat: int = 3) -> argparse.ArgumentParser:
    """What every benchmark takes, whether it has a use for it or not; some add more."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("JOB_DATA_ROOT"), help="default: $JOB_DATA_ROOT")
    parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"runs of each side; default {repeat}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    return parser


def cifar10(data: Path | None) -> Path | None:
    """The folder that holds CIFAR-10, or None with a line that says what is missing."""
    if data is not None and (data / "cifar-10-batches-py/test_batch").is_file():
        return data.resolve()
    print("skipped: needs CIFAR-10 (cifar-10-batches-py) in --data or JOB_DATA_ROOT")
    return None


def machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "cpus": cpu_count(), "torch": version("torch"), "python": platform.python_version()}


def finish(name: str, ratios: Sequence[Ratio], samples: object, file: Path | None) -> int:
    """Prints the ratios and writes the JSON."""
    for ratio in ratios:
        sign = "at most" if ratio.at_most else "at least"
        bar = "" if ratio.bar is None else f"   (bar: {sign} {ratio.bar:g}, {'held' if ratio.held else 'MISSED'})"
        print(f"{name}: {ratio.what}: {ratio.value:.3g}{ratio.unit}{bar}")
    if file is not None:
        found = {
            "bench": name,
            "machine": machine(),
            "ratios": [{**asdict(ratio), "held": ratio.held} for ratio in ratios],
            "samples": samples,
        }
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


@dataclass(frozen=True)
class Done:
    """A process that came to its end."""

    seconds: float
    peak_bytes: int  # resident, without its children
    output: str


def python(command: Sequence[str]) -> Done:
    """A new Python process in the project's root; its errors end the benchmark."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return Done(seconds, usage.ru_maxrss * 1024, output)


def job(sample: str, data: Path, folder: Path, *keys: str, id: str = "bench") -> tuple[Done, dict[str, Any]]:  # noqa: A002
    """A whole run of a sample spec in a process of its own, and its report."""
    overrides = [f"store.uri={folder}", f"dataset.root={data}", *keys]
    words = [word for key in overrides for word in ("--set", key)]
    done = python(["-m", "job", "run", f"job/spec/samples/{sample}", "--run-id", id, *words])
    report: dict[str, Any] = json.loads((folder / id / "report.json").read_text(encoding="utf-8"))
    return done, report
