"""What a checkpoint costs the training thread: the saver's snapshot against a plain torch.save to the same disk.

    python -m tests.bench.saving [--repeat 7] [--json FILE]

A ResNet-18 with momentum and its loss for one batch. Both ways are measured alternately in one run; the steps during
which the background thread writes are timed against steps without one, so that what it takes from them counts, too.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.models import resnet18

from job.device import cpu_count
from job.runfolder import RunFolder
from job.training.checkpoint import Place
from job.training.saving import Saver
from tests.bench import common
from tests.bench.common import Ratio, finish

LIMIT = 0.20  # of a synchronous torch.save
EPOCH_LIMIT = 0.01  # of an epoch of CIFAR-10
IMAGES = 50_000
BATCH = 128
SIDE = 32


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options(__doc__, arguments, repeat=7)
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
    epoch = IMAGES / BATCH * found["step"]
    print(f"{found['bytes'] / 2**20:.0f} MiB of state, an epoch of {epoch:.0f} s, medians of {options.repeat}")
    for what, key in (("plain torch.save, flushed", "plain"), ("the stall", "stall"), ("steps slowed", "slowed")):
        print(f"{what:26} {found[key] * 1e3:8.1f} ms")
    ratios = [
        Ratio("stall of a checkpoint ÷ torch.save, ResNet-18", found["stall"] / found["plain"], LIMIT, at_most=True),
        Ratio("steps slowed beside the writing ÷ torch.save", found["slowed"] / found["plain"]),
        Ratio("both ÷ an epoch", (found["stall"] + found["slowed"]) / epoch, EPOCH_LIMIT, at_most=True),
    ]
    return finish("saving", ratios, found, options.json)


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
