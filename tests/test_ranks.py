"""Two processes that train one run, and its bucket: whichever is killed, the bucket ends with one true manifest."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.runfolder import RunFolder, read_state
from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage
from tests.reader import WatchedBucket, stored, watch
from tests.storage.watched import contents

SPEC = """
name: two
dataset: {name: digits, subset: 300, validation: 0.2}
loader: {batch_size: 32, num_workers: 0}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 4, device: cpu}
checkpoint: {keep: 2}
resources: {processes: 2}
store: {uri: "oci://bucket@space/runs", flush_timeout: 60s}
"""
RUN = "runs/run"
Victim = Callable[["subprocess.Popen[str]", RunFolder], int]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    with ObjectStorage(tmp_path / "server") as running:
        for name, value in {
            "JOB_OCI_ENDPOINT": running.endpoint,
            "OCI_CONFIG_FILE": str(write_config(tmp_path / "oci", running.identity)),
            "OCI_CLI_AUTH": "api_key",
            "JOB_WORK_DIR": str(tmp_path / "work"),
            "OMP_NUM_THREADS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(server: ObjectStorage) -> WatchedBucket:
    return watch(server)


def descendants(parent: int) -> list[int]:
    children = [int(name) for name in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [*children, *(found for child in children for found in descendants(child))]


def rank(number: int) -> Victim:
    def find(process: "subprocess.Popen[str]", folder: RunFolder) -> int:
        """The first below the launcher that has this rank; what it started has it too."""
        for child in descendants(process.pid):
            if f"\0RANK={number}\0" in Path(f"/proc/{child}/environ").read_text():
                return child
        raise AssertionError(number)

    return find


def uploader(process: "subprocess.Popen[str]", folder: RunFolder) -> int:
    """The one that there is: the ranks have one between them."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in descendants(process.pid)}
    [found] = [child for child, command in commands.items() if "job.storage.uploader" in command]
    assert found == read_state(folder)["pid"]
    return found


@pytest.mark.parametrize(
    "victim",
    [
        None,
        pytest.param(uploader, marks=pytest.mark.exhaustive),
        pytest.param(rank(0), marks=pytest.mark.exhaustive),
        pytest.param(rank(1), marks=pytest.mark.exhaustive),
    ],
    ids=["nobody", "the uploader", "rank 0", "rank 1"],
)
@pytest.mark.slow
def test_kill_9_of_one_of_them(
    tmp_path: Path, server: ObjectStorage, bucket: WatchedBucket, victim: Victim | None
) -> None:
    """The run goes on by itself: exit 0, and a bucket that holds what the folder holds."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    folder = RunFolder(tmp_path / "work/run")
    command = [sys.executable, "-m", "job", "run", str(tmp_path / "spec.yaml"), "--run-id", "run"]
    command += ["--set", f"train.epochs={4 if victim is None else 12}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        if victim is not None:
            assert any(line.startswith("Saved") for line in process.stdout)
            os.kill(victim(process, folder), signal.SIGKILL)
        said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    assert said.count("Done: run") == said.count("Everything is stored: ") == 1
    assert ("Resumed from step-" in said) == (victim not in (None, uploader))
    there = stored(server, RUN)
    assert there == contents(folder.root)
    manifest = json.loads(there["manifest.json"])
    assert manifest["status"] == "complete"
    claims = {claim["path"]: claim["sha256"] for claim in manifest["files"]}
    assert claims == {n: hashlib.sha256(b).hexdigest() for n, b in there.items() if n != "manifest.json"}
    assert bucket.changes.count(f"{RUN}/manifest.json") == 1, "one manifest, written once"
    assert bucket.dangling == []
    assert [name for name in server.objects if "/." in name] == [], "no lease is left"
