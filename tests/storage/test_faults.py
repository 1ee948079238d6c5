"""Every fault of the protocol server × every kind of object a run has, through the real SDK."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.errors import JobError
from job.storage import uploader
from job.storage.lease import Lease
from job.storage.outbox import LIVE_EVERY
from job.storage.store import Store, open_store
from tests.object_storage.faults import OTHERS, REFUSALS
from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage
from tests.reader import stored, watch
from tests.storage.test_outbox import Run
from tests.storage.watched import contents

KINDS = {
    "checkpoint": "step-00000002",
    "pointer": "latest.json",
    "status": "status.json",
    "metrics": "metrics.jsonl",
    "log": "job.log",
    "model": "model.pt",
    "best": "best.pt",
    "report": "report.html",
    "plot": "curves.png",
    "manifest": "manifest.json",
    "lease": ".lease.json",
    "list": "",
}
FAULTS = (*REFUSALS, *OTHERS)
# Bytes that rot behind the right checksum are seen by who reads them, not by who wrote them
ONLY = {"flipped": ("get",)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    folder = tmp_path_factory.mktemp("server")
    with ObjectStorage(folder, page_size=7) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB_OCI_ENDPOINT", running.endpoint)
        patch.setenv("OCI_CONFIG_FILE", str(write_config(folder / "oci", running.identity)))
        patch.setenv("OCI_CLI_AUTH", "api_key")
        patch.setattr("job.storage.attempts.pause", lambda _: None)
        yield running


class Mirrored(Run):
    """The same run, with a bucket behind it and a lease."""

    def __init__(self, folder: Path, store: Store) -> None:
        super().__init__(folder)
        self.remote = store
        self.lease = Lease(store, lambda: self.now)

    def step(self) -> None:
        self.now += LIVE_EVERY
        try:
            if not self.lease.held:
                uploader.probe(self.remote)
                self.lease.acquire(self.wait)
            if not self.connected:
                self.outbox.connect(self.remote, self.lease.renew)
                self.connected = True
            self.lease.renew()
            self.outbox.live()
            self.outbox.bulk()
        except JobError:
            pass

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_loses_anything(tmp_path: Path, server: ObjectStorage, fault: str) -> None:
    """It strikes every kind of object at the first request and at some later ones; the bucket ends as the folder."""
    bucket = watch(server)
    server.faults.clear()
    for kind, name in KINDS.items():
        on = ("list",) if kind == "list" else ONLY.get(fault, ())
        server.faults.add(fault, *on, name=name, seconds=0.2)
        server.faults.add(fault, *on, name=name, after=2, probability=0.5, seconds=0.2)
    mirrored = Mirrored(tmp_path, open_store(f"oci://bucket@space/{fault}", 1.0))
    for _ in range(2):
        mirrored.save()
        mirrored.beat()
        for _ in range(5):
            mirrored.step()
    mirrored.finish()
    mirrored.drain()
    mirrored.lease.release()
    struck = {told.name for told in server.told}
    assert all(any(name in one for one in struck) for name in KINDS.values()), "every kind was asked for"
    assert bucket.dangling == []
    assert stored(server, fault) == contents(mirrored.folder.root)
    assert not [name for name in server.objects if name.startswith(f"{fault}/.lease")]


@pytest.mark.parametrize("seed", range(6))
def test_many_faults_at_once(tmp_path: Path, server: ObjectStorage, seed: int) -> None:
    """A tenth of all requests fails in a way drawn by chance."""
    bucket = watch(server)
    server.faults.clear()
    draw = random.Random(seed)
    faults = [fault for fault in FAULTS if fault not in ("hang", "endless")]
    for fault in draw.sample(faults, 6):
        server.faults.add(fault, *ONLY.get(fault, ()), times=None, probability=0.02)
    mirrored = Mirrored(tmp_path, open_store(f"oci://bucket@space/many-{seed}", 1.0))
    for _ in range(4):
        mirrored.save()
        mirrored.beat()
        for _ in range(draw.randrange(8)):
            mirrored.step()
    mirrored.finish()
    mirrored.drain()
    server.faults.clear()
    mirrored.lease.release()  # what a fault keeps it from, expires
    assert bucket.dangling == []
    assert stored(server, f"many-{seed}") == contents(mirrored.folder.root)
