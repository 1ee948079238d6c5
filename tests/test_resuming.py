"""Going on with a run: after a stop at any place, with another spec, with other data, with a damaged checkpoint."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from job import pipeline
from job.errors import Interrupted, JobError, UsageError
from job.events import Ended, EpochEnded, Event, Note, Saved
from job.heartbeat import Heartbeat
from job.interrupt import StopFlag
from job.spec.load import parse
from job.training import evaluate, identity, session

SPEC = """
name: digits
dataset: {name: digits, subset: 300, validation: 0.2}
loader: {batch_size: 32}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.1}
schedule: {name: onecycle, warmup_epochs: 1}
train: {epochs: 3, log_every: 1, device: cpu, ema: 0.9}
"""


def job(
    tmp_path: Path, *overrides: str, stop_after: int | None = None, stop: StopFlag | None = None, spec: str = SPEC
) -> list[Event]:
    loaded = parse(spec, "spec.yaml", [f"store.uri={tmp_path}", *overrides])
    return list(pipeline.job(loaded, "run", stop or StopFlag(), stop_after=stop_after))


def interrupted(tmp_path: Path, steps: int, *overrides: str) -> None:
    with pytest.raises(Interrupted, match="--stop-after is reached; go on with --run-id run"):
        job(tmp_path, *overrides, stop_after=steps)


def state(folder: Path) -> dict[str, Any]:
    pointer = json.loads((folder / "run/checkpoints/latest.json").read_text())
    found: dict[str, Any] = torch.load(folder / "run/checkpoints" / pointer["files"][0]["file"], weights_only=True)
    return found


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def different(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two states differ, but for clocks and the folder's name in the spec's hash."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        names = [name for name in one if "second" not in str(name) and name != "spec_sha256"]
        return [found for name in names for found in different(one[name], other[name], f"{where}.{name}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, pair in pairs for found in different(*pair, f"{where}[{place}]")]
    return [] if one == other else [where]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    job(folder)
    return folder


def test_everything_in_the_last_checkpoint_is_what_it_would_have_been(whole: Path, tmp_path: Path) -> None:
    """Weights, optimizer, average, generators, losses, best weights, history and the stream of samples."""
    interrupted(tmp_path, 11)
    job(tmp_path)
    assert different(state(whole), state(tmp_path)) == []
    assert len(state(whole)["seen"]) == 32


def test_the_heartbeat_tells_the_phases_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    phase = Heartbeat.phase

    def spy(self: Heartbeat, name: str) -> None:
        told.append(name)
        phase(self, name)

    monkeypatch.setattr(Heartbeat, "phase", spy)
    job(tmp_path, "train.epochs=2")
    assert told == ["data", "tune", "train", "evaluate", "report"]


def test_a_limit_of_time_ends_the_reading_of_data(tmp_path: Path) -> None:
    loaded = parse(SPEC, "spec.yaml", [f"store.uri={tmp_path}", "resources.max_duration=10s"])
    with StopFlag().installed() as stop, pytest.raises(Interrupted, match=r"max_duration is reached where there was"):
        list(pipeline.job(loaded, "run", stop, began=time.time() - 60))
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "interrupted"


class StopInEvaluation(StopFlag):
    """Wishes to stop when the first evaluation has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        predict = evaluate.predict

        def spy(*arguments: Any, **keys: Any) -> Any:
            self.reason = "received SIGTERM"
            return predict(*arguments, **keys)

        monkeypatch.setattr(session, "predict", spy)


def test_stopped_within_an_evaluation_it_evaluates_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="received SIGTERM"):
        job(tmp_path, stop=StopInEvaluation(patch))
    saved = state(tmp_path)
    assert (saved["epoch"], saved["history"]) == (0, [])
    assert saved["step"] == len(saved["losses"]["epoch"])
    events = job(tmp_path)
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [1, 2, 3]
    assert different(state(whole), state(tmp_path)) == []


def test_stopped_early_and_then_interrupted_it_does_not_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["stop.patience=1", "stop.min_delta=100", "train.epochs=10"]
    stop = StopFlag()
    finish = session.Session.finish

    def late(self: session.Session, poll: Any) -> Any:
        stop.reason = "received SIGTERM"
        return finish(self, poll)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "finish", late)
        with pytest.raises(Interrupted):
            job(tmp_path, *keys, stop=stop)
    events = job(tmp_path, *keys)
    assert not [event for event in events if isinstance(event, EpochEnded)]
    assert isinstance(events[-1], Ended)
    assert json.loads((tmp_path / "run/report.json").read_text())["result"]["weights"] == "best"


def test_the_best_weights_are_in_the_checkpoint(whole: Path, tmp_path: Path) -> None:
    """Another machine has nothing but it."""
    interrupted(tmp_path, 17)
    (tmp_path / "run/model/best.pt").unlink()
    job(tmp_path)
    one, other = (torch.load(folder / "run/model/model.pt", weights_only=True) for folder in (whole, tmp_path))
    assert different(one, other) == []


@pytest.mark.parametrize(("every", "steps"), [("5 steps", [5, 10, 15, 20, 24]), ("2", [16, 24]), ("1h", [24])])
def test_checkpoints_come_as_often_as_the_spec_says(tmp_path: Path, every: str, steps: list[int]) -> None:
    events = job(tmp_path, f"checkpoint.every={every}", "checkpoint.keep=9")
    assert state(tmp_path)["history"][-1]["epoch"] == 3
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.pt"))
    assert names == [f"step-{step:08d}.pt" for step in steps]
    assert [Path(event.path).name for event in events if isinstance(event, Saved)] == names


def test_more_epochs_are_allowed_and_said(tmp_path: Path) -> None:
    interrupted(tmp_path, 11)
    events = job(tmp_path, "train.epochs=4", "train.log_every=2", "loader.resident=false")
    said = notes(events)
    assert "train.epochs 3 → 4 since the run began: onecycle follows the new length from here on" in said
    assert "train.log_every 1 → 2 since the run began" in said
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [2, 3, 4]
    assert "epochs: 4" in (tmp_path / "run/spec.yaml").read_text()
    assert json.loads((tmp_path / "run/report.json").read_text())["spec"]["train"]["epochs"] == 4


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 11, "schedule.warmup_epochs=0")
    with pytest.raises(UsageError, match=r"it stands in epoch 2, and train\.epochs is 1; set train\.epochs to 2 or"):
        job(tmp_path, "train.epochs=1", "schedule.warmup_epochs=0")


def test_another_training_is_refused_with_every_key(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    with pytest.raises(UsageError) as caught:
        job(tmp_path, "model.width=4", "loader.batch_size=16", "train.epochs=4")
    told = str(caught.value)
    assert "this run was begun with another spec: loader.batch_size 32 → 16, model.width 2 → 4; put" in told
    assert told.endswith("(train.epochs may change)")


def test_other_data_under_the_same_spec_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, 3)
    before = identity.of
    monkeypatch.setattr(identity, "of", lambda *facts: {**before(*facts), "data_sha256": "0" * 64})
    with pytest.raises(UsageError, match="the data is not what this run began with"):
        job(tmp_path)


def test_other_versions_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, 3)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert any(line.startswith("Not as when it was saved") and "9.9.9" in line for line in notes(job(tmp_path)))


def test_the_number_of_threads_is_what_it_was(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be measured anew, and decides how sums are rounded."""
    interrupted(tmp_path, 3, "train.threads=1")
    monkeypatch.setattr(session, "cpu_count", lambda: 8)
    said = notes(job(tmp_path, "train.threads=2"))
    assert not any(line.startswith("Not as when") for line in said)
    assert torch.get_num_threads() == 1


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, 11)
    newest = max((tmp_path / "run/checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    events = job(tmp_path)
    assert any("Checkpoint passed over" in line and newest.name in line for line in notes(events))
    assert different(state(whole), state(tmp_path)) == []


def test_a_disk_that_fills_up_ends_the_run_with_the_last_checkpoint_whole(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 8)
    save = torch.save

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        def refuse(state: Any, file: Any) -> None:
            if isinstance(state, dict) and "optimizer" in state:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(state, file)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", refuse)
            yield

    with full(), pytest.raises(JobError, match="no space left on device; free some space"):
        job(tmp_path)
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"
    job(tmp_path)
    assert different(state(whole), state(tmp_path)) == []


@pytest.mark.slow
def test_twenty_random_steps(whole: Path, tmp_path: Path) -> None:
    import random

    steps = sorted(random.Random(6).sample(range(1, 24), 20))
    for step in steps:
        interrupted(tmp_path / str(step), step)
        job(tmp_path / str(step))
    assert [step for step in steps if different(state(whole), state(tmp_path / str(step)))] == []
