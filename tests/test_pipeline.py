"""The whole job on real handwriting: what it leaves behind, how it stops, how it goes on."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from job import pipeline
from job.errors import Interrupted, JobError, UsageError
from job.events import Ended, EpochEnded, Event, Note, Result, RunningLoss, Saved
from job.interrupt import StopFlag
from job.results.metrics import Metrics, Predictions, measure
from job.runfolder import RunFolder, sha256
from job.spec.load import parse
from job.training import evaluate, session

T = TypeVar("T")

SPEC = """
name: digits
dataset: {name: digits, subset: 600}
loader: {batch_size: 32}
augment: {crop_padding: 1}
model: {name: resnet9, width: 4}
optimizer: {name: sgd, lr: 0.1, nesterov: true}
schedule: {name: onecycle, warmup_epochs: 1}
train: {epochs: 3, log_every: 5, device: cpu}
"""


def run(tmp_path: Path, *overrides: str, run_id: str = "run", stop: StopFlag | None = None) -> list[Event]:
    events: list[Event] = []
    collect(events, tmp_path, *overrides, run_id=run_id, stop=stop)
    return events


def collect(
    events: list[Event], tmp_path: Path, *overrides: str, run_id: str = "run", stop: StopFlag | None = None
) -> None:
    """Events go where the caller sees them also when the run raises."""
    loaded = parse(SPEC, "spec.yaml", [f"store.uri={tmp_path}", *overrides])
    events.extend(pipeline.job(loaded, run_id, stop or StopFlag()))


def only(events: Sequence[Event], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def weights(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "model/model.pt", weights_only=True)
    return loaded


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """One run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", run(folder)


def test_it_ends_with_the_path_of_its_report(whole: tuple[Path, list[Event]]) -> None:
    folder, events = whole
    assert isinstance(events[-1], Ended)
    assert Path(events[-1].report) == folder / "report.html"
    assert (folder / "report.html").stat().st_size > 10_000
    assert [event.epoch for event in only(events, EpochEnded)] == [1, 2, 3]
    assert [(event.epoch, event.step) for event in only(events, RunningLoss)][:3] == [(1, 5), (1, 10), (1, 15)]


def test_the_manifest_is_true_of_every_file(whole: tuple[Path, list[Event]]) -> None:
    folder, _ = whole
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - set(listed) == {"manifest.json", ".lock"}
    for name, entry in listed.items():
        assert (folder / name).stat().st_size == entry["size"]
        assert sha256(folder / name) == entry["sha256"]
    assert json.loads((folder / "status.json").read_text())["status"] == "complete"


def test_report_and_result_say_the_same(whole: tuple[Path, list[Event]]) -> None:
    folder, events = whole
    report = json.loads((folder / "report.json").read_text())
    [result] = only(events, Result)
    assert list(report)[:5] == ["schema_version", "run_id", "status", "accuracy", "per_class"]
    assert report["accuracy"] == result.accuracy
    assert report["test"]["count"] == result.count
    assert [entry["epoch"] for entry in report["history"]] == [1, 2, 3]
    assert report["result"] == {"weights": "last", "epoch": 3, "epochs_planned": 3, "stopped_early": None}
    assert report["spec"]["optimizer"]["lr"] == 0.1
    assert "optimizer.momentum" in report["spec_defaults"]
    assert "optimizer.lr" not in report["spec_defaults"]


def test_a_complete_id_says_so_and_changes_nothing(whole: tuple[Path, list[Event]]) -> None:
    folder, _ = whole
    before = sha256(folder / "manifest.json")
    [note] = run(folder.parent)
    assert isinstance(note, Note)
    assert note.text == f"Run run is complete: {folder / 'report.html'}"
    assert sha256(folder / "manifest.json") == before


def test_the_same_spec_gives_the_same_weights(whole: tuple[Path, list[Event]], tmp_path: Path) -> None:
    run(tmp_path)
    assert equal(weights(whole[0]), weights(tmp_path / "run"))


def test_the_loader_does_not_change_the_result(whole: tuple[Path, list[Event]], tmp_path: Path) -> None:
    run(tmp_path, "loader.resident=false", "loader.num_workers=2")
    assert equal(weights(whole[0]), weights(tmp_path / "run"))


class StopAfter(StopFlag):
    """Wishes to stop when it has been asked this many times."""

    def __init__(self, asked: int) -> None:
        self.asked = asked
        super().__init__()

    @property
    def reason(self) -> str | None:
        self.asked -= 1
        return "received SIGTERM" if self.asked < 0 else None

    @reason.setter
    def reason(self, _: str | None) -> None:
        """Nobody else's wish counts."""

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("steps", [1, 7, 15, 16, 31, 47, 49])
def test_stopped_anywhere_it_goes_on_as_if_nothing_had_been(
    whole: tuple[Path, list[Event]], tmp_path: Path, steps: int
) -> None:
    events: list[Event] = []
    with pytest.raises(Interrupted, match="run: stopped, received SIGTERM; go on with --run-id run"):
        collect(events, tmp_path, stop=StopAfter(steps))
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "interrupted"
    partial = json.loads((tmp_path / "run/report.json").read_text())
    assert (partial["status"], partial["accuracy"]) == ("interrupted", None)
    again = run(tmp_path)
    assert isinstance(again[-1], Ended)
    assert equal(weights(whole[0]), weights(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    clean = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    timeless = [{key: line[key] for key in line if "second" not in key} for line in lines]
    assert timeless == [{key: line[key] for key in line if "second" not in key} for line in clean]


def test_sigterm_ends_the_process_with_75_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "job", "run", str(tmp_path / "spec.yaml"), "--run-id", "run"]
    changes = ["--set", f"store.uri={tmp_path}", "--set", "train.epochs=100000", "--set", "train.log_every=1"]
    with subprocess.Popen([*command, *changes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("[1,") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert errors.strip() == "run: stopped, received SIGTERM; go on with --run-id run"
    assert json.loads((tmp_path / "run/checkpoints/latest.json").read_text())["files"]


def test_kill_9_leaves_a_run_that_goes_on(whole: tuple[Path, list[Event]], tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "job", "run", str(tmp_path / "spec.yaml"), "--run-id", "run"]
    with subprocess.Popen(
        [*command, "--set", f"store.uri={tmp_path}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("Saved") for line in process.stdout)
        process.kill()
    run(tmp_path)
    assert equal(weights(whole[0]), weights(tmp_path / "run"))


def test_another_spec_under_the_same_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, stop=StopAfter(1))
    with pytest.raises(UsageError) as caught:
        run(tmp_path, "optimizer.lr=0.2", "model.width=8")
    assert "this run was begun with another spec: " in str(caught.value)
    assert "optimizer.lr 0.1 → 0.2" in str(caught.value)
    assert "model.width 4 → 8" in str(caught.value)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    with pipeline.locked(folder), pytest.raises(UsageError, match="another process is running this id"):
        run(tmp_path)


def test_a_worker_that_outlives_the_run_does_not_hold_its_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    told, tell = os.pipe()
    heard, ready = os.pipe()
    with pipeline.locked(folder):
        worker = os.fork()
        if worker == 0:
            os.close(tell)
            os.write(ready, b"1")
            os.read(told, 1)  # until the test has ended
            os._exit(0)
        os.close(told)
        os.read(heard, 1)
        descriptor = next(iter(pipeline.LOCKS))
        linked = Path(f"/proc/{worker}/fd/{descriptor}")
        assert not linked.exists() or ".lock" not in str(linked.readlink())
    with pipeline.locked(folder):
        os.close(tell)
        os.waitpid(worker, 0)
    os.close(heard)
    os.close(ready)


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        run(
            tmp_path,
            "optimizer.lr=1e30",
            "schedule.name=constant",
            "schedule.warmup_epochs=0",
            "augment.crop_padding=0",
        )
    assert str(caught.value).startswith("epoch 1, step ")
    assert "learning rate 1e+30: the loss is " in str(caught.value)
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"


def test_a_loss_that_breaks_later_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from job.training import trainer
    from job.training.optim import learning_rate as rate

    monkeypatch.setattr(
        trainer, "learning_rate", lambda step, steps, *rest: 1e30 if step >= steps else rate(step, steps, *rest)
    )
    with pytest.raises(JobError, match=r"^epoch 2, step \d+, learning rate 1e\+30: the .* is") as caught:
        run(tmp_path)
    [kept] = (tmp_path / "run/checkpoints").glob("*.pt")
    assert f"(last good checkpoint: {kept})" in str(caught.value)


def test_over_fitting_is_said_with_what_to_change() -> None:
    def metrics(correct: int, count: int) -> Metrics:
        probabilities = np.zeros((count, 2), np.float32)
        probabilities[:, 0] = 1
        return measure(Predictions(probabilities, np.array([0] * correct + [1] * (count - correct))), ("a", "b"))

    warning = session.overfitting(metrics(990, 1000), metrics(700, 1000))
    assert warning is not None
    assert warning.startswith("over-fitting: 99.0% of the training images are right and 70.0% of the test images; try")
    assert session.overfitting(metrics(720, 1000), metrics(700, 1000)) is None
    assert session.overfitting(metrics(9, 10), metrics(7, 10)) is None, "too few images to tell"


def test_looking_at_the_test_split_chooses_nothing(tmp_path: Path) -> None:
    events = run(tmp_path, "train.evaluate_on=test")
    assert [event.evaluated_on for event in only(events, EpochEnded)] == ["test"] * 3
    assert json.loads((tmp_path / "run/report.json").read_text())["result"]["weights"] == "last"
    assert not (tmp_path / "run/model/best.pt").exists()


def test_the_time_limit_saves_and_stops(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"stopped, resources\.max_duration is reached"):
        run(tmp_path, "resources.max_duration=1ms")
    assert (tmp_path / "run/checkpoints/latest.json").exists()


def test_early_stopping_and_best_weights_look_at_validation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    predict = evaluate.predict

    def spy(module: Any, split: Any, *rest: Any, **keys: Any) -> Any:
        looked_at.append(len(split.labels))
        return predict(module, split, *rest, **keys)

    monkeypatch.setattr(session, "predict", spy)
    keys = ["dataset.validation=0.3", "stop.patience=1", "stop.min_delta=100", "train.epochs=10"]
    events = run(tmp_path, *keys)
    report = json.loads((tmp_path / "run/report.json").read_text())
    test, validation = report["data"]["test"], report["data"]["validation"]
    epochs = len(only(events, EpochEnded))
    assert epochs == 2
    assert test != validation
    assert looked_at[:epochs] == [validation] * epochs
    assert looked_at.count(test) == 1
    assert report["result"]["weights"] == "best"
    assert "stop.patience" in report["result"]["stopped_early"]
    losses = [event.loss for event in only(events, EpochEnded) if event.loss is not None]
    assert report["result"]["epoch"] == losses.index(min(losses)) + 1
    assert math.isclose(report["validation"]["loss"], min(losses), rel_tol=1e-4)


def test_the_moving_average_is_the_result(tmp_path: Path) -> None:
    run(tmp_path, "train.ema=0.9")
    last = torch.load(tmp_path / "run/model/last.pt", weights_only=True)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["result"]["weights"] == "ema"
    assert not equal(last, weights(tmp_path / "run"))


def test_nothing_is_saved_while_gradients_wait(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, "train.accumulate=2", stop=StopAfter(3))
    state = torch.load(next((tmp_path / "run/checkpoints").glob("*.pt")), weights_only=True)
    assert state["step"] == 8


def test_old_checkpoints_go(tmp_path: Path) -> None:
    run(tmp_path, "checkpoint.keep=1")
    assert len(list((tmp_path / "run/checkpoints").glob("*.pt"))) == 1


def test_saved_events_name_files_that_are_there(whole: tuple[Path, list[Event]]) -> None:
    saved = only(whole[1], Saved)
    assert [event.epoch for event in saved] == [1, 2, 3]
    assert all(Path(event.path).is_file() for event in saved)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="a file stands where a folder is needed"):
        run(tmp_path, f"store.uri={tmp_path / 'file'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(JobError, match="permission denied; give this user the right to write there"):
        run(tmp_path)


def test_an_id_cannot_leave_the_store(tmp_path: Path) -> None:
    for run_id in ("../out", "..", "", " a"):
        with pytest.raises(UsageError, match="cannot name a folder"):
            run(tmp_path, run_id=run_id)


def test_the_clock_of_the_heartbeat(whole: tuple[Path, list[Event]]) -> None:
    status = json.loads((whole[0] / "status.json").read_text())
    assert 0 <= time.time() - status["time"] < 3600
