"""A run and its bucket: real processes, the real SDK, a server of the real protocol that fails on demand."""

import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from job import delivery, heartbeat, pipeline
from job.errors import Interrupted, JobError, UploadError, UsageError
from job.events import Ended, Event, Note, Progress, Saved
from job.interrupt import StopFlag
from job.runfolder import OUTBOX, STATE, RunFolder, write_json
from job.spec.load import parse
from job.storage import uploader
from tests.object_storage.faults import FINAL
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
    command = [sys.executable, "-m", "job", "upload", str(folder(tmp_path).root)]  # as after a reboot
    assert subprocess.check_output(command, text=True) == f"Everything is stored: oci://bucket@space/{RUN}\n"
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


@pytest.mark.parametrize("kind", FINAL)
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
    states = [{"lag_seconds": lag} for lag in (0, 100, 101, 300, 0, 250)]
    assert news(tmp_path, monkeypatch, states) == [
        "",
        "",
        "A checkpoint saved 101 s ago is not uploaded yet (store.lag_warning)",
        "",
        "",
        "A checkpoint saved 250 s ago is not uploaded yet (store.lag_warning)",
    ]


def test_a_refusal_while_it_trains_is_told_at_once_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"error": "all of it", "refused": ["oci://bucket@space/runs/run/a", "404 NotAuthorizedOrNotFound", "ask"]}
    assert news(tmp_path, monkeypatch, [{}, refused, refused, {}, refused]) == [
        "",
        said := f"The store refuses; training goes on and results wait here: {'; '.join(refused['refused'])}",
        "",
        "oci://bucket@space/runs/run answers again",
        said,
    ]


def news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Sequence[Mapping[str, object]]) -> list[str]:
    """What is told of each state. A process that lives stands for the uploader, whose state is written here."""
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.0)
    made = folder(tmp_path)
    made.make()
    (made.root / OUTBOX).mkdir()
    spec, told = parse(SPEC, "spec.yaml", ["store.lag_warning=100s"]).spec, []
    with delivery.Delivery(made, "oci://bucket@space/runs/run", spec) as upload:
        upload.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, text=True)
        for state in states:
            write_json(made.root / STATE, {"pid": upload.process.pid, "phase": "mirroring", **state})
            told.append(texts(list(upload.news())))
    return told


def test_a_run_whose_checkpoints_do_not_go_up_warns(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file's own time to the line in the log, the terminal and status.json, through the real uploader."""
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    server.faults.add("503", "put", name="step-", times=None)
    events = pipeline.job(parse(SPEC, "spec.yaml", ["train.epochs=100000", "store.lag_warning=1h"]), "run", StopFlag())
    assert isinstance(events, Generator)

    def aged() -> Iterator[Event]:
        for event in events:
            if isinstance(event, Saved):
                os.utime(event.path, (0, 0))  # the oldest that waits, until retention takes it
            yield event

    told = aged()
    warned = next(event for event in told if isinstance(event, Note) and "(store.lag_warning)" in event.text)
    assert warned.level == "warning"
    shown = next(event for event in told if isinstance(event, Progress))
    assert shown.upload == "no durable checkpoint yet"
    status = json.loads(folder(tmp_path).status.read_text())
    assert status["store"]["lag_seconds"] > 3600
    events.close()
    assert "is not uploaded yet" in folder(tmp_path).log.read_text()


def test_sigterm_stores_everything_and_exits_75(tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket) -> None:
    with start(tmp_path, "train.epochs=100000") as process:
        assert process.stdout is not None
        uri = f"oci://bucket@space/{RUN}/checkpoints/step-"
        saved = (line for line in process.stdout if line.startswith("Saved"))
        assert len(list(itertools.islice(saved, 3))) == 3
        assert any(line.startswith(f"Stored {uri}") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 75
    there = stored(server, RUN)
    assert there == contents(folder(tmp_path).root)
    assert json.loads(there["status.json"])["status"] == "interrupted"
    assert sum(name.endswith(".pt") for name in there if name.startswith("checkpoints/")) == 2, "keep"


def test_a_run_that_was_killed_is_summed_up(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the uploader, which outlives it; `upload` does the same where that was killed, too."""
    events = pipeline.job(parse(SPEC, "spec.yaml", ["train.epochs=100000"]), "run", StopFlag())
    assert isinstance(events, Generator)
    next(event for event in events if isinstance(event, Saved))
    events.close()  # from here on nobody writes
    monkeypatch.setattr(uploader, "MOURNING", 0.0)
    left = uploader.Uploader(folder(tmp_path), f"oci://bucket@space/{RUN}", 2, "never", strict=False)
    assert uploader.serve(left, io.StringIO(""), "job.epitaph") == 0
    there = stored(server, RUN)
    assert there == contents(folder(tmp_path).root)
    report = json.loads(there["report.json"])
    assert (report["status"], report["reason"]) == (
        "interrupted",
        "killed in phase train; run the same id again to go on",
    )
    assert len(report["history"]) >= 1
    assert json.loads(there["status.json"])["status"] == "interrupted"
    assert any(name.startswith("checkpoints/step-") for name in there)
    assert b"killed in phase train" in there["logs/job.log"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_kill_9_at_any_moment_then_again(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, kills: int
) -> None:
    """Killed at moments drawn by chance, the last one goes through: complete, and the manifest is true."""
    draw, epochs = random.Random(kills), f"train.epochs={2 * kills}"
    for _ in range(kills):
        with start(tmp_path, epochs) as process:
            assert process.stdout is not None
            for _ in itertools.islice(process.stdout, draw.randrange(2, 14)):
                pass
            time.sleep(draw.uniform(0.0, 0.1))
            process.kill()
            process.stdout.read()
    with start(tmp_path, epochs) as process:
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
