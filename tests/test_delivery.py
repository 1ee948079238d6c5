"""A run and its bucket: real processes, the real SDK, a server of the real protocol that fails on demand."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from job import delivery, pipeline
from job.errors import Interrupted, JobError, UploadError, UsageError
from job.events import Ended, Event, Note, Saved
from job.interrupt import StopFlag
from job.runfolder import OUTBOX, STATE, RunFolder, write_json
from job.spec.load import parse
from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage
from tests.reader import WatchedBucket, stored, watch
from tests.storage.watched import contents

SPEC = """
name: digits
dataset: {name: digits, subset: 120}
loader: {batch_size: 32, num_workers: 0}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 3, log_every: 2, device: cpu}
checkpoint: {keep: 2}
store: {uri: "oci://bucket@space/runs", flush_timeout: 60s}
"""
RUN = "runs/run"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    with ObjectStorage(tmp_path / "server", page_size=7) as running:
        for name, value in environment(running, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(server: ObjectStorage) -> Iterator[WatchedBucket]:
    bucket = watch(server)
    yield bucket
    assert bucket.dangling == []


def environment(server: ObjectStorage, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "oci"
    return {
        "JOB_OCI_ENDPOINT": server.endpoint,
        "OCI_CONFIG_FILE": str(config / "config" if config.exists() else write_config(config, server.identity)),
        "OCI_CLI_AUTH": "api_key",
        "JOB_WORK_DIR": str(tmp_path / "work"),
        "JOB_CACHE_DIR": str(tmp_path / "cache"),
    }


def run(*overrides: str, run_id: str | None = "run", stop_after: int | None = None) -> list[Event]:
    loaded = parse(SPEC, "spec.yaml", list(overrides))
    return list(pipeline.job(loaded, run_id, StopFlag(), stop_after=stop_after))


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "work/run")


def texts(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def test_all_of_a_run_is_in_the_bucket(tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket) -> None:
    events = run()
    assert stored(server, RUN) == contents(folder(tmp_path).root)
    assert isinstance(events[-2], Ended)
    assert texts(events).endswith(f"Everything is stored: oci://bucket@space/{RUN}")
    assert bucket.changes[-2:] == [f"{RUN}/manifest.json", f"-{RUN}/.lease.json"]
    assert not [name for name in server.objects if "/." in name], "lease and check are gone"
    again = run()
    assert "Run run is complete" in texts(again)


@pytest.mark.slow
def test_a_dead_store_does_not_touch_the_training(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer from beginning to end: the run trains, exits 4, and `upload` brings everything, byte for byte."""
    monkeypatch.setenv("JOB_OCI_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError) as caught:
        run("store.flush_timeout=2s", run_id="run")
    assert caught.value.exit_code == 4
    assert "files (" in str(caught.value)
    assert f"python -m job upload {folder(tmp_path).root} finishes it" in str(caught.value)
    report = json.loads(folder(tmp_path).report("json").read_text())
    assert report["status"] == "complete"
    before = contents(folder(tmp_path).root)
    journal = (folder(tmp_path).root / ".outbox/journal.jsonl").read_text()
    assert '"name": "model/model.pt"' in journal
    monkeypatch.setenv("JOB_OCI_ENDPOINT", server.endpoint)
    assert texts(list(pipeline.upload(folder(tmp_path)))) == f"Everything is stored: oci://bucket@space/{RUN}"
    assert stored(server, RUN) == before == contents(folder(tmp_path).root)
    assert texts(list(pipeline.upload(folder(tmp_path)))) == f"Everything is stored: oci://bucket@space/{RUN}"


@pytest.mark.slow
def test_a_run_begun_without_the_store_does_not_replace_the_one_that_is_there(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is known to the bucket alone, which does not answer: both runs are kept, and it is said."""
    run()
    before = stored(server, RUN)
    folder(tmp_path).root.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("JOB_OCI_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("job.delivery.PATIENCE", 2.0)
    with pytest.raises(UploadError):
        run("store.flush_timeout=2s", "train.seed=7")
    monkeypatch.setenv("JOB_OCI_ENDPOINT", server.endpoint)
    with pytest.raises(UploadError, match="it holds another run of this id"):
        list(pipeline.upload(folder(tmp_path)))
    assert stored(server, RUN) == before
    other = folder(tmp_path).root.rename(tmp_path / "work/other")
    assert "Everything is stored" in texts(list(pipeline.upload(RunFolder(other))))
    assert stored(server, "runs/other") == contents(other)


@pytest.mark.parametrize("kind", ["401", "404", "bucket", "quota", "skew"])
def test_a_refusal_is_told_before_training(server: ObjectStorage, kind: str) -> None:
    server.faults.add(kind, "put", times=None)
    with pytest.raises(UsageError) as caught:
        run()
    assert str(caught.value).startswith("oci://bucket@space/runs/run/.check-")
    assert "opc-request-id" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_refusal_in_the_middle_is_told_and_training_goes_on(tmp_path: Path, server: ObjectStorage) -> None:
    server.faults.add("404", "put", name="step-", times=None)
    with pytest.raises(UploadError, match="404 NotAuthorizedOrNotFound"):
        run()
    assert json.loads(folder(tmp_path).report("json").read_text())["status"] == "complete"
    server.faults.clear()
    list(pipeline.upload(folder(tmp_path)))
    assert stored(server, RUN) == contents(folder(tmp_path).root)


def test_an_interrupted_run_goes_on_elsewhere(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run(stop_after=5)
    assert stored(server, RUN) == contents(folder(tmp_path).root), "the checkpoint and the partial report too"
    assert json.loads(stored(server, RUN)["status.json"])["status"] == "interrupted"
    monkeypatch.setenv("JOB_WORK_DIR", str(tmp_path / "elsewhere"))
    events = run()
    assert "Resumed from step-" in texts(events)
    assert isinstance(events[-2], Ended)
    assert stored(server, RUN) == contents(tmp_path / "elsewhere/run")


def test_a_failed_run_leaves_its_log_and_report_there(tmp_path: Path, server: ObjectStorage) -> None:
    with pytest.raises(JobError, match="the loss is"):
        run("optimizer.lr=1e30")
    there = stored(server, RUN)
    assert json.loads(there["report.json"])["status"] == "failed"
    assert b"the loss is" in there["logs/job.log"]
    assert there == contents(folder(tmp_path).root)


def test_the_same_id_twice_at_once_is_refused(
    tmp_path: Path, server: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two machines: another folder, the same bucket."""
    events = pipeline.job(parse(SPEC, "spec.yaml", ["train.epochs=100000"]), "run", StopFlag())
    assert isinstance(events, Generator)
    next(event for event in events if isinstance(event, Saved))
    monkeypatch.setenv("JOB_WORK_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="another process writes this run"):
        run()
    with pytest.raises(UsageError, match="another process is running this id"):
        list(pipeline.upload(folder(tmp_path)))
    events.close()


def test_a_dead_uploader_is_told_and_started_again(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RESTARTS", (0.0, 0.0))
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.0)
    told: list[Event] = []
    for event in pipeline.job(parse(SPEC, "spec.yaml", ["train.epochs=6"]), "run", StopFlag()):
        told.append(event)
        if isinstance(event, Saved) and event.epoch == 1:
            os.kill(json.loads((folder(tmp_path).root / ".outbox/state.json").read_text())["pid"], signal.SIGKILL)
    assert "The uploader ended unexpectedly (exit -9) and is started again" in texts(told)
    assert stored(server, RUN) == contents(folder(tmp_path).root)


def test_a_checkpoint_that_waits_too_long_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives stands for the uploader; what it says of itself is written here."""
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.0)
    made = folder(tmp_path)
    made.make()
    (made.root / OUTBOX).mkdir()
    spec = parse(SPEC, "spec.yaml", ["store.lag_warning=100s"]).spec
    with delivery.Delivery(made, "oci://bucket@space/runs/run", spec) as upload:
        upload.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, text=True)
        told = []
        for lag in (0, 100, 101, 300, 0, 250):
            state = {"pid": upload.process.pid, "phase": "mirroring", "lag_seconds": lag}
            write_json(made.root / STATE, state)
            told.append(texts(list(upload.news())))
    assert told == [
        "",
        "",
        "A checkpoint saved 101 s ago is not uploaded yet (store.lag_warning)",
        "",
        "",
        "A checkpoint saved 250 s ago is not uploaded yet (store.lag_warning)",
    ]


def test_a_run_whose_checkpoints_do_not_go_up_warns(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file's own time to the line in the log, through the real uploader."""
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.0)
    server.faults.add("503", "put", name="step-", times=None)
    events = pipeline.job(parse(SPEC, "spec.yaml", ["train.epochs=100000", "store.lag_warning=1h"]), "run", StopFlag())
    assert isinstance(events, Generator)
    saved = next(event for event in events if isinstance(event, Saved))
    os.utime(saved.path, (0, 0))  # the oldest that waits, until retention takes it
    for event in events:
        if isinstance(event, Saved):
            os.utime(event.path, (0, 0))
        if isinstance(event, Note) and "(store.lag_warning)" in event.text:
            break
    assert event.level == "warning"
    events.close()
    assert "is not uploaded yet" in folder(tmp_path).log.read_text()


def test_sigterm_stores_everything_and_exits_75(tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket) -> None:
    with start(tmp_path, "train.epochs=100000") as process:
        assert process.stdout is not None
        uri = f"oci://bucket@space/{RUN}/checkpoints/step-"
        assert any(line.startswith(f"Stored {uri}") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 75
    assert stored(server, RUN) == contents(folder(tmp_path).root)
    assert json.loads(stored(server, RUN)["status.json"])["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5])
def test_kill_9_at_any_moment_then_again(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, kills: int
) -> None:
    """Killed at moments spread over the run, the last one goes through: complete, and the manifest is true."""
    for kill in range(kills):
        with start(tmp_path) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout):
                if number == 3 + 4 * kill:
                    process.kill()
                    break
            process.stdout.read()
    with start(tmp_path) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert stored(server, RUN) == contents(folder(tmp_path).root)
    assert json.loads(stored(server, RUN)["manifest.json"])["status"] == "complete"


def start(tmp_path: Path, *overrides: str) -> "subprocess.Popen[str]":
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "job", "run", str(tmp_path / "spec.yaml"), "--run-id", "run"]
    changes = [word for change in overrides for word in ("--set", change)]
    return subprocess.Popen([*command, *changes], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "report", "compare", "fetch"])
def test_a_run_is_read_from_its_bucket(
    tmp_path: Path,
    server: ObjectStorage,
    verb: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from job.cli import main

    run()
    uri = f"oci://bucket@space/{RUN}"
    monkeypatch.chdir(tmp_path)
    image = next((tmp_path / "work/run/plots/mistakes").glob("*.png"))
    arguments = {"predict": [uri, str(image)], "compare": [uri, "work/run"]}.get(verb, [uri])
    assert main([verb, *arguments]) == 0
    said = capsys.readouterr().out
    match verb:
        case "evaluate":
            assert "Accuracy of the network on the" in said
        case "predict":
            assert said.startswith(f"{image}: ")
        case "report":
            assert Path(said.strip()).read_bytes() == folder(tmp_path).report("html").read_bytes()
        case "compare":
            assert "test accuracy" in said
        case "fetch":
            assert contents(tmp_path / "run") == contents(folder(tmp_path).root)


def test_no_run_there_is_a_line(server: ObjectStorage, capsys: pytest.CaptureFixture[str]) -> None:
    from job.cli import main

    assert main(["evaluate", "oci://bucket@space/runs/none"]) == 2
    assert "there is no such run" in capsys.readouterr().err


def test_what_has_nothing_to_upload_is_a_line(tmp_path: Path) -> None:
    nowhere = RunFolder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="there is no run in this folder"):
        list(pipeline.upload(nowhere))
    nowhere.make()
    nowhere.spec.write_text(SPEC.replace("oci://bucket@space/runs", "runs"))
    with pytest.raises(UsageError, match="this run's store is the folder itself"):
        list(pipeline.upload(nowhere))
