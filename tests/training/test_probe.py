"""Measuring before training: it learns nothing, moves nothing, and counts what it says. No test waits on the clock."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from job.data.dataset import Split
from job.data.loader import Batch, Pixels, Settings, TrainingBatches
from job.device import Device
from job.models.build import ModelFacts
from job.spec.schema import Spec
from job.training import probe
from job.training.setup import Prepared

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1, reasons={"threads": "one"})
SPLIT = Split(np.zeros((20, 8, 8, 3), np.uint8), np.zeros(20, np.int64))
PIXELS = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)


def spec() -> Spec:
    sections = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "loader": {"batch_size": 8}}
    return Spec.model_validate({**sections, "optimizer": {"lr": 0.1}, "train": {"ema": 0.9}})


def network() -> Prepared:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 2), nn.BatchNorm1d(2))
    return Prepared(module, CPU, PIXELS, ModelFacts(1, 1, 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by between two looks at the clock."""
    monkeypatch.setattr(time, "perf_counter", itertools.count(0.0).__next__)


def test_it_leaves_the_network_and_the_random_stream_alone() -> None:
    prepared = network()
    before = {name: tensor.clone() for name, tensor in prepared.module.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    measured, rates = probe.measure(prepared, SPLIT, spec())
    batches = TrainingBatches(SPLIT, Settings(8, resident=True), CPU, PIXELS, spec().augment, 0)
    assert min(rates.train, rates.evaluate, probe.end_to_end(measured, batches, spec(), 0.0)) > 0
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.module.state_dict().items())
    assert prepared.module.training


def test_the_first_batch_is_not_counted_and_at_least_one_is(clock: None) -> None:
    sizes: Iterator[int] = iter([100, 7, 5])
    batches = (Batch(torch.zeros(size, 1), torch.zeros(size)) for size in sizes)
    done: list[int] = []
    assert probe.rate(batches, lambda batch: done.append(len(batch.labels)), CPU, 0.0) == 7 / 2
    assert done == [100, 7]


def test_the_rate_is_that_of_the_budget(clock: None) -> None:
    batches = itertools.repeat(Batch(torch.zeros(4, 1), torch.zeros(4)))
    assert probe.rate(batches, lambda _: None, CPU, 3.0) == pytest.approx(4 * 3 / 4)
