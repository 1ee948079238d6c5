"""The loop never waits for the device: nothing in it turns a tensor into a number of the host."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from job.data.dataset import Split
from job.data.loader import Pixels, Settings, TrainingBatches
from job.device import Device
from job.spec.schema import Spec
from job.training.trainer import State, train

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
# what reads a value back: item, bool, float, nonzero, masks of unknown size
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own signature
    """Counts operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def steps(optimizer: dict[str, Any], **train_keys: Any) -> list[str]:
    """What was read back during a whole epoch of the loop, with everything switched on."""
    sections = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "optimizer": optimizer}
    spec = Spec.model_validate({**sections, "train": {"epochs": 1, "ema": 0.9, "clip_grad_norm": 1.0, **train_keys}})
    spec = spec.model_copy(update={"augment": spec.augment.model_copy(update={"flip": True, "crop_padding": 1})})
    generator = np.random.default_rng(0)
    split = Split(generator.integers(0, 256, (22, 8, 8, 3), dtype=np.uint8), generator.integers(0, 3, 22))
    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    batches = TrainingBatches(split, Settings(4, resident=True), CPU, pixels, spec.augment, 0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    state = State(module, spec, CPU)
    with Reads() as reads:
        for _ in train(state, batches, spec, CPU):
            pass
    seen: list[str] = reads.seen
    return seen


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_no_step_reads_a_value_back(name: str) -> None:
    assert steps({"name": name, "lr": 0.01}) == []
    assert steps({"name": name, "lr": 0.01}, accumulate=2) == []


def test_the_counter_sees_a_reading() -> None:
    with Reads() as reads:
        torch.ones(1).item()
        if torch.ones(1).sum() > 0:
            torch.ones(3)[torch.ones(3) > 0]
    assert {"_local_scalar_dense", "nonzero"} <= set(reads.seen) or reads.seen.count("_local_scalar_dense") == 2
