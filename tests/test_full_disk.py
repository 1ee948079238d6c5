"""A real file system that is full: a run, its journal, its report, a mirror and a download that find no room.

Whatever was whole before is whole after, one line says it, and the same command goes on once there is room.
"""

import hashlib
import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from job import pipeline
from job.data import fetch
from job.errors import DataError, JobError
from job.events import Begun, Ended, EpochEnded, Event, Result, Saved
from job.interrupt import StopFlag
from job.runfolder import RunFolder, read_pointer, sha256
from job.spec.load import parse
from job.spec.schema import Dataset
from job.storage import runs
from job.storage.object_storage import open_uri
from job.training import checkpoint
from tests.object_storage.server import ObjectStorage
from tests.reader import WatchedBucket, stored
from tests.storage.test_outbox import Run
from tests.storage.watched import contents, dangling
from tests.test_delivery import RUN, SPEC, bucket, run, server, texts

__all__ = ["bucket", "server"]  # fixtures

MIB = 2**20


@dataclass(frozen=True)
class Disk:
    root: Path

    def fill(self, leave: int = 0) -> None:
        """From now on `leave` bytes are free."""
        self.clear()
        space = os.statvfs(self.root)
        with (self.root / ".filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave)

    def clear(self) -> None:
        (self.root / ".filler").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """The folder that runs are worked on in is a disk of its own, of 64 MiB."""
    root = tmp_path / "work"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", root], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    yield Disk(root)
    subprocess.run(["umount", "--lazy", root], check=True)


@pytest.mark.parametrize("moment", [Begun, Saved, EpochEnded, Result])
def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk, server: ObjectStorage, bucket: WatchedBucket, moment: type[Event]
) -> None:
    """Before anything is written, while the journal is, before a second checkpoint, and before the report."""
    folder = RunFolder(disk.root / "run")
    events = pipeline.job(parse(SPEC, "spec.yaml"), "run", StopFlag())
    for _ in range(2 if moment is EpochEnded else 1):
        next(event for event in events if isinstance(event, moment))
    disk.fill()
    with pytest.raises(JobError, match=r"no space left on device|MiB are free") as caught:
        list(events)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder.root))
    assert "; free some space" in str(caught.value)
    named = read_pointer(folder.checkpoints / "latest.json")
    assert bool(named) == (moment is not Begun)
    for entry in named:
        assert sha256(folder.checkpoints / entry["file"]) == entry["sha256"]
        assert f"{RUN}/checkpoints/{entry['file']}" in server.objects, "a full disk does not hold up what goes up"
    disk.clear()
    again = run()
    assert isinstance(again[-2], Ended)
    assert ("Resumed from step-" in texts(again)) == bool(named)
    assert stored(server, RUN) == contents(folder.root)


def test_the_oldest_uploaded_checkpoint_makes_room(
    disk: Disk, server: ObjectStorage, bucket: WatchedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MARGIN", 2 * MIB)
    wide = ("model.width=16", "checkpoint.keep=4", "train.epochs=4")
    with pytest.raises(JobError):
        run(*wide, stop_after=9)
    folder = RunFolder(disk.root / "run")
    files = [folder.checkpoints / entry["file"] for entry in read_pointer(folder.checkpoints / "latest.json")]
    assert len(files) == 3
    assert files[0].stat().st_size > 2 * MIB
    disk.fill(files[0].stat().st_size + 3 * MIB // 2)
    events = pipeline.job(parse(SPEC, "spec.yaml", list(wide)), "run", StopFlag())
    next(event for event in events if isinstance(event, Saved))
    assert [path.exists() for path in files] == [True, True, False], "one was enough"
    assert any(isinstance(event, Ended) for event in events)
    assert stored(server, RUN) == contents(folder.root)


def test_a_full_disk_costs_the_outbox_its_journal_and_nothing_else(tmp_path: Path, disk: Disk) -> None:
    outbox = Run(tmp_path)
    outbox.save()
    outbox.beat()
    disk.fill()
    for _ in range(9):
        outbox.step()
    assert dangling(outbox.store.root) == []
    assert (outbox.store.root / "checkpoints/latest.json").exists()
    outbox.open()  # a new process, while it is still full
    outbox.step()
    disk.clear()
    outbox.finish()
    outbox.drain()
    assert contents(outbox.store.root) == contents(outbox.folder.root)


@pytest.mark.parametrize("free", [1, 5], ids=["while it is fetched", "while it is unpacked"])
def test_a_mirror_that_does_not_fit_leaves_nothing(
    tmp_path: Path, disk: Disk, server: ObjectStorage, free: int
) -> None:
    archive, content = tmp_path / "photos.zip", os.urandom(3 * MIB)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("photos/tulip/1.png", b"small")
        packed.writestr("photos/rose/1.png", content)
    open_uri("oci://bucket@space/data").put(archive, "photos.zip")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    root = disk.root / "data/photos"
    wanted = Dataset(name="image_folder", root=str(root), mirror="oci://bucket@space/data/photos.zip", sha256=digest)
    disk.fill(free * MIB)
    with pytest.raises(JobError, match="no space left on device; free some space") as caught:
        fetch.unpack_mirror(wanted, root)
    assert str(caught.value).startswith(str(disk.root)), "the disk is full, not the mirror wrong"
    assert isinstance(caught.value, DataError) == (free == 1)
    assert list((disk.root / "data").iterdir()) == []
    disk.clear()
    fetch.unpack_mirror(wanted, root)
    assert (root / "rose/1.png").read_bytes() == content


def test_a_fetch_that_does_not_fit_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk, server: ObjectStorage
) -> None:
    run("model.width=16")
    folder, target = RunFolder(disk.root / "run"), disk.root / "back"
    disk.fill(4 * MIB)
    with pytest.raises(JobError, match=rf"^{target}/.*no space left on device; free some space"):
        list(runs.fetch(f"oci://bucket@space/{RUN}", target))
    before = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.suffix in (".pt", ".json")}
    assert before, "something did fit"
    assert all((target / name).read_bytes() == (folder.root / name).read_bytes() for name in before)
    disk.clear()
    rest = list(runs.fetch(f"oci://bucket@space/{RUN}", target))
    assert before & set(rest) == set()
    assert contents(target) == contents(folder.root)
