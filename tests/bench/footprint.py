"""(7) Time to start, and memory: the job's processes against a bare `import torch`.

    python -m tests.bench.footprint [--data FOLDER] [--repeat 3] [--json FILE]

The first step is that of cifar10-fast.yaml, by the time its first progress is told. The peak is that of the whole run,
resident pages of the process, over the peak of importing torch.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import common
from tests.bench.common import Done, Ratio, median

MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options(__doc__, arguments)
    data = common.cifar10(options.data)
    if data is None:
        return 0
    found: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        torch = common.python(["-c", "import torch"])
        run, first_step = fast_run(data)
        figures = {
            "import torch": torch.seconds,
            "--help": common.python(["-m", "job", "--help"]).seconds,
            "validate": common.python(["-m", "job", "validate", "job/spec/samples/cifar10-fast.yaml"]).seconds,
            "process start to first step": first_step,
            "whole run": run.seconds,
            "peak of import torch, MiB": torch.peak_bytes / MIB,
            "peak of the run, MiB": run.peak_bytes / MIB,
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
        print(", ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)
    over = median(found["peak of the run, MiB"]) - median(found["peak of import torch, MiB"])
    ratios = [
        Ratio("peak memory of a CIFAR-10 run over importing torch", over, 700, at_most=True, unit=" MiB"),
        Ratio(
            "first step ÷ importing torch",
            median(found["process start to first step"]) / median(found["import torch"]),
        ),
        Ratio("--help", median(found["--help"]), unit=" s"),
        Ratio("validate", median(found["validate"]), unit=" s"),
    ]
    return common.finish("footprint", ratios, found, options.json)


def fast_run(data: Path) -> tuple[Done, float]:
    """The run, and seconds from the start of its process to its first step."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--set", f"store.uri={folder}", "--set", f"dataset.root={data}", "--log-format", "json"]
        began = time.time()
        done = common.python(["-m", "job", "run", "job/spec/samples/cifar10-fast.yaml", *words])
    events = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    return done, next(event["time"] for event in events if event["event"] == "Progress") - began


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
