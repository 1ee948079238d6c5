"""What a checkpoint costs the training thread: the saver's snapshot against a plain torch.save to the same disk.

    python tests/bench/saving.py [--repeat 7] [--json FILE]

A ResNet-18 with momentum and its loss for one batch. Both ways are measured alternately in one run; the steps during
which the background thread writes are timed against steps without one, so that what it takes from them counts, too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.models import resnet18

from job.device import cpu_count, cpu_name
from job.runfolder import RunFolder
from job.training.checkpoint import Place
from job.training.saving import Saver

LIMIT = 0.20  # of a synchronous torch.save
EPOCH_LIMIT = 0.01  # of an epoch of CIFAR-10
IMAGES = 50_000
BATCH = 128
SIDE = 32


def main() -> int:
    parser = argparse.ArgumentParser(description="Times what a checkpoint costs the training thread.")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="checkpoints of each kind; default 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    module = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), module, optimizer, step, options.repeat)
    found["epoch_seconds"] = IMAGES / BATCH * found["step"]
    print(f"{cpu_name()}, {cpu_count()} CPUs, torch {torch.__version__}, {found['bytes'] / 2**20:.0f} MiB of state")
    share, slowed = found["stall"] / found["plain"], found["slowed"] / found["plain"]
    of_epoch = (found["stall"] + found["slowed"]) / found["epoch_seconds"]
    print(f"plain torch.save, flushed   {found['plain'] * 1e3:8.1f} ms   median of {options.repeat}")
    print(f"the training thread's stall {found['stall'] * 1e3:8.1f} ms   {share:.1%} of it, limit {LIMIT:.0%}")
    print(f"steps slowed beside it      {found['slowed'] * 1e3:8.1f} ms   {slowed:.1%} of it")
    print(f"both, of an epoch of {found['epoch_seconds']:.0f} s  {of_epoch:.2%}, limit {EPOCH_LIMIT:.0%}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if share <= LIMIT and of_epoch <= EPOCH_LIMIT else 1


def measure(
    root: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], None], repeat: int
) -> dict[str, Any]:
    folder = RunFolder(root / "run")
    folder.make()
    saver = Saver(folder, keep=2)
    plain, stall, alone, beside = [], [], [], []
    for number in range(repeat + 1):  # the first of each is not counted: it makes the buffers
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
        plain.append(timed(lambda state=state: save(state, root / "plain.pt")))  # type: ignore[misc]
        alone.append(timed(step))
        place = Place(number, 0, number)
        stall.append(timed(lambda state=state, place=place: saver.begin(state, place, lambda _: None)))  # type: ignore[misc]
        extra = 0.0
        while saver.flying and not saver.flying[0].done():
            extra += timed(step) - alone[-1]
        beside.append(extra)
        saver.flush()
    tensors = [*module.state_dict().values(), *(v["momentum_buffer"] for v in optimizer.state.values())]
    return {
        "plain": statistics.median(plain[1:]),
        "stall": statistics.median(stall[1:]),
        "slowed": statistics.median(beside[1:]),
        "step": statistics.median(alone[1:]),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "every": {"plain": plain, "stall": stall, "slowed": beside, "step": alone},
    }


def save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
