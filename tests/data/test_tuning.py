"""The loader is chosen by measurement, within limits, and the choice is explained. No test waits on the clock."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest

from job.data import tuning
from job.data.dataset import Split
from job.data.loader import Batch, Pixels
from job.data.tuning import LoaderPlan, candidates, choose, shm_refusal, worker_counts
from job.device import Device
from job.errors import JobError
from job.spec.schema import Augment, Loader, Train

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
SPLIT = Split(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int64))


def plan(spec: Loader, train: Train | None = None, split: Split = SPLIT) -> LoaderPlan:
    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    return choose(split, spec, Augment(), CPU, pixels, 1000.0, train or Train(epochs=100))


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """images/s that the measurements find, one after the other."""
    found: list[float] = []

    def measure(batches: Iterator[Batch], device: Device, budget: float) -> float:
        next(batches)
        return found.pop(0)

    monkeypatch.setattr(tuning, "images_per_second", measure)
    monkeypatch.setattr(tuning, "cpu_count", lambda: 4)
    monkeypatch.setattr(time, "monotonic", itertools.repeat(0.0).__next__)
    return found  # type: ignore[return-value]


def test_the_search_ends_when_the_network_never_waits(speeds: list[float]) -> None:
    speeds[:] = [5000.0]
    made = plan(Loader(batch_size=8))
    assert str(made.settings) == "resident"
    assert [(str(row.settings), row.note) for row in made.rows] == [("resident", ""), ("0 workers", "not needed")]
    assert made.why == "brings 5,000 images/s, 5.0× what the network takes: it never waits"


def test_the_fastest_wins_where_none_is_enough(speeds: list[float]) -> None:
    speeds[:] = [100.0, 200.0, 900.0, 700.0]
    made = plan(Loader(batch_size=8, resident=False))
    assert str(made.settings) == "2 workers, prefetch 2"
    assert "yet the network could take 1,000: loading limits this run" in made.why
    assert [row.images_per_second for row in made.rows] == [100.0, 200.0, 900.0, 700.0]


def test_what_the_spec_fixes_is_taken(speeds: list[float]) -> None:
    made = plan(Loader(batch_size=8, resident=False, num_workers=3, prefetch_factor=4))
    assert (made.settings.num_workers, made.settings.prefetch_factor) == (3, 4)
    assert made.why == "the spec leaves one choice"


def test_naming_workers_means_workers(speeds: list[float]) -> None:
    assert plan(Loader(batch_size=8, num_workers=2)).settings.num_workers == 2


def test_a_budget_used_up_says_so(speeds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    speeds[:] = [10.0]
    monkeypatch.setattr(time, "monotonic", itertools.count(0.0, 100.0).__next__)
    made = plan(Loader(batch_size=8, resident=False))
    assert [row.note for row in made.rows] == ["", *["not tried: the time for tuning was used up"] * 3]


def test_a_data_set_too_large_to_keep_is_not_kept(speeds: list[float]) -> None:
    speeds[:] = [2000.0]
    made = plan(Loader(batch_size=8, resident_budget=1000))
    assert not made.settings.resident
    assert made.rows[-1].note == "the data set takes 0 MiB of 0"


def test_insisting_on_what_does_not_fit_is_one_line(speeds: list[float]) -> None:
    with pytest.raises(JobError, match="loader: resident: the data set takes 0 MiB of 0; change these keys"):
        plan(Loader(batch_size=8, resident=True, resident_budget=1000))


def test_workers_double_up_to_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, counts in ((1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (8, [0, 1, 2, 4, 8])):
        monkeypatch.setattr(tuning, "cpu_count", lambda cpus=cpus: cpus)
        assert worker_counts() == counts


def test_a_small_shared_memory_rules_workers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    big = Split(np.broadcast_to(np.zeros(1, np.uint8), (8, 4000, 4000, 3)), np.zeros(8, np.int64))
    [row] = candidates(big, Loader(batch_size=256, resident=False, num_workers=64, prefetch_factor=64), CPU)
    assert row.note.startswith("/dev/shm has ")
    assert row.note.endswith("are needed: start with --shm-size")
    assert shm_refusal(row.settings, big, "/no/such/folder") == ""
