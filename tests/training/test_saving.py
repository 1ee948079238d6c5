"""Saving beside the training: what is written is the state of that moment, errors come back, nothing is lost."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from job.errors import JobError
from job.runfolder import RunFolder
from job.training import checkpoint
from job.training.checkpoint import Place
from job.training.saving import Saver, Snapshot, Written


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    made = Saver(folder, keep=3)
    yield made
    made.settle()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing before it is opened."""
    opened, save = threading.Event(), torch.save

    def slow(*arguments: Any) -> None:
        assert opened.wait(60)
        save(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    yield opened
    opened.set()


def healthy(_: dict[str, Any]) -> None:
    """Nothing to say against it."""


def begin(saver: Saver, total: int, weights: torch.Tensor) -> list[Written]:
    state = {"weights": weights, "list": [1, ("a", weights)], "epoch": total}
    return saver.begin(state, Place(total, 0, total), healthy)


def test_what_changes_after_it_began_is_not_in_it(saver: Saver, gate: threading.Event) -> None:
    weights = torch.ones(4)
    assert begin(saver, 1, weights) == []
    weights += 1
    assert saver.finished() == [], "it is not durable yet"
    gate.set()
    [written] = saver.flush()
    assert written.place == Place(1, 0, 1)
    state = checkpoint.read(written.path)
    assert torch.equal(state["weights"], torch.ones(4))
    assert torch.equal(state["list"][1][1], torch.ones(4))
    assert saver.finished() == saver.flush() == [], "told once"


def test_the_next_waits_for_the_one_in_flight(saver: Saver) -> None:
    weights = torch.ones(4)
    begin(saver, 1, weights)
    weights += 1
    [first] = begin(saver, 2, weights)
    [second] = saver.flush()
    assert torch.equal(checkpoint.read(first.path)["weights"], torch.ones(4))
    assert torch.equal(checkpoint.read(second.path)["weights"], torch.full((4,), 2.0))


def test_a_full_disk_comes_back_as_an_error_and_the_last_one_stays(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(saver, 1, torch.ones(4))
    saver.flush()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    begin(saver, 2, torch.ones(4))
    with pytest.raises(JobError, match=r"step-00000002\.pt: no space left on device; free some space"):
        saver.flush()
    restored = checkpoint.newest(saver.folder)
    assert restored is not None
    assert restored.state["epoch"] == 1
    assert sorted(path.name for path in saver.folder.checkpoints.iterdir()) == ["latest.json", "step-00000001.pt"]
    assert saver.finished() == [], "told once"


def test_the_disk_itself_can_be_full(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's own refusal passes through torch.save as what it is."""
    import resource

    large = {"weights": torch.zeros(1_000_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python ignores SIGXFSZ: the write fails with EFBIG
    try:
        saver.begin(large, Place(1, 0, 1), healthy)
        with pytest.raises(JobError, match="file too large"):
            saver.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(saver.folder.checkpoints.iterdir()) == []


def test_broken_weights_are_never_written(saver: Saver) -> None:
    def broken(copy: dict[str, Any]) -> None:
        assert torch.isnan(copy["weights"]).all()
        raise JobError("epoch 1", "the weights are not finite", "lower optimizer.lr")

    saver.begin({"weights": torch.full((4,), torch.nan)}, Place(1, 0, 1), broken)
    with pytest.raises(JobError, match="not finite"):
        saver.flush()
    assert list(saver.folder.checkpoints.iterdir()) == []


def test_weights_are_there_before_the_checkpoint_that_speaks_of_them(saver: Saver, gate: threading.Event) -> None:
    best = saver.folder.model / "best.pt"
    saver.weights(best, {"w": torch.ones(2)})
    begin_thread = threading.Thread(target=begin, args=(saver, 1, torch.ones(4)))
    begin_thread.start()  # it waits for the weights
    gate.set()
    begin_thread.join(60)
    [written] = saver.flush()
    assert best.is_file()
    assert written.path.stat().st_mtime_ns >= best.stat().st_mtime_ns


def test_a_snapshot_uses_its_memory_again_and_keeps_the_layout() -> None:
    snapshot, tensor = Snapshot(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    first = snapshot.take({"a": tensor, "n": 3})
    assert first["a"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first["a"], tensor)
    second = snapshot.take({"a": tensor + 1, "n": 4})
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert (second["n"], first["n"]) == (4, 3)
    other = snapshot.take({"a": torch.ones(5), "n": 5})
    assert other["a"].shape == (5,)
