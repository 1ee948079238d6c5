"""A run read back from a store: to go on with it, to have it whole, to look at a part."""

import json
from pathlib import Path

import pytest

from job.errors import DataError, JobError, UsageError
from job.runfolder import RunFolder, read_pointer, sha256, write_json, write_manifest
from job.storage import runs
from job.storage.store import FolderStore
from tests.storage.watched import contents


def make(root: Path, steps: tuple[int, ...] = (1, 2), *, complete: bool = True) -> RunFolder:
    """A run's folder with checkpoints, newest last."""
    folder = RunFolder(root)
    folder.make()
    folder.spec.write_text("name: run\n")
    folder.metrics.write_text('{"kind": "epoch"}\n')
    (folder.model / "best.pt").write_bytes(b"best")
    entries: list[dict[str, object]] = []
    for step in steps:
        path = folder.checkpoints / f"step-{step:08d}.pt"
        path.write_bytes(f"state {step}".encode())
        entries.insert(0, {"file": path.name, "sha256": sha256(path), "epoch": step, "step": 0})
    write_json(folder.checkpoints / "latest.json", {"files": entries})
    if complete:
        write_manifest(folder, {"status": "complete"})
    return folder


class Counting(FolderStore):
    """Tells what was read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, name: str, path: Path) -> None:
        self.read.append(name)
        super().get(name, path)


@pytest.fixture
def here(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "here")
    folder.make()
    return folder


def test_a_new_machine_takes_the_newest_checkpoint_and_what_belongs_to_it(tmp_path: Path, here: RunFolder) -> None:
    there = make(tmp_path / "there", complete=False)
    assert runs.adopt(FolderStore(there.root), here, resume=True) == "fetched"
    assert [entry["file"] for entry in read_pointer(here.checkpoints / "latest.json")] == ["step-00000002.pt"]
    assert contents(here.root).keys() == contents(there.root).keys() - {"checkpoints/step-00000001.pt"}
    assert all(
        contents(there.root)[name] == content for name, content in contents(here.root).items() if "latest" not in name
    )


def test_a_damaged_one_in_the_store_is_passed_over(tmp_path: Path, here: RunFolder) -> None:
    there = make(tmp_path / "there", complete=False)
    (there.checkpoints / "step-00000002.pt").write_bytes(b"damaged")
    assert runs.adopt(FolderStore(there.root), here, resume=True) == "fetched"
    assert [entry["file"] for entry in read_pointer(here.checkpoints / "latest.json")] == ["step-00000001.pt"]


def test_a_folder_that_is_ahead_stays_as_it_is(tmp_path: Path) -> None:
    there = make(tmp_path / "there", (1, 2), complete=False)
    ahead = make(tmp_path / "ahead", (2, 3), complete=False)
    before = contents(ahead.root)
    assert runs.adopt(FolderStore(there.root), ahead, resume=True) == "kept"
    assert contents(ahead.root) == before


def test_a_damaged_one_here_is_mended_from_the_store(tmp_path: Path) -> None:
    there = make(tmp_path / "there", (1, 2), complete=False)
    here = make(tmp_path / "here", (1, 2), complete=False)
    (here.checkpoints / "step-00000002.pt").write_bytes(b"damaged")
    assert runs.adopt(FolderStore(there.root), here, resume=True) == "fetched"
    assert contents(here.root)["checkpoints/step-00000002.pt"] == b"state 2"
    assert len(read_pointer(here.checkpoints / "latest.json")) == 2


def test_never_resume_takes_the_spec_alone(tmp_path: Path, here: RunFolder) -> None:
    there = make(tmp_path / "there", complete=False)
    assert runs.adopt(FolderStore(there.root), here, resume=False) == "kept"
    assert list(contents(here.root)) == ["spec.yaml"]


def test_a_complete_run_is_not_begun_again(tmp_path: Path, here: RunFolder) -> None:
    there = make(tmp_path / "there")
    assert runs.adopt(FolderStore(there.root), here, resume=True) == "complete"


def test_a_run_is_fetched_whole_and_only_once(tmp_path: Path) -> None:
    there = make(tmp_path / "there")
    target = tmp_path / "target"
    assert set(runs.fetch(f"file://{there.root}", target)) == set(contents(there.root)) - {"manifest.json"}
    assert contents(target) == contents(there.root)
    assert list(runs.fetch(f"file://{there.root}", target)) == []
    (target / "metrics.jsonl").write_text("half")
    assert list(runs.fetch(f"file://{there.root}", target)) == ["metrics.jsonl"]
    assert contents(target) == contents(there.root)


def test_bytes_that_are_not_the_manifest_s_are_refused(tmp_path: Path) -> None:
    there = make(tmp_path / "there")
    there.metrics.write_text("other bytes")
    with pytest.raises(DataError, match=r"metrics\.jsonl: its SHA-256 is not that of manifest\.json"):
        list(runs.fetch(str(there.root), tmp_path / "target"))
    assert not (tmp_path / "target/metrics.jsonl").exists()
    assert not (tmp_path / "target/manifest.json").exists(), "it comes last"


def test_a_run_that_goes_on_is_fetched_as_it_is(tmp_path: Path) -> None:
    there = make(tmp_path / "there", complete=False)
    (there.root / ".lease.json").write_text("{}")
    list(runs.fetch(str(there.root), tmp_path / "target"))
    assert contents(tmp_path / "target") == contents(there.root)
    assert not (tmp_path / "target/.lease.json").exists()
    (there.checkpoints / "step-00000002.pt").write_bytes(b"damaged")
    with pytest.raises(JobError, match="it is missing or not what was written"):
        list(runs.fetch(str(there.root), tmp_path / "target"))


def test_no_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no run"):
        list(runs.fetch(str(tmp_path / "empty"), tmp_path / "target"))


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "a//b", "a\\..\\b"])
def test_a_manifest_cannot_name_a_place_outside(tmp_path: Path, name: str) -> None:
    there = make(tmp_path / "there")
    manifest = json.loads(there.manifest.read_text())
    manifest["files"][0]["path"] = name
    there.manifest.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="leaves the run's folder"):
        list(runs.fetch(str(there.root), tmp_path / "target"))


def test_a_part_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Counting(make(tmp_path / "there").root)
    monkeypatch.setenv("JOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "open_store", lambda _: there)
    names = ["spec.yaml", "model/best.pt", "model/absent.pt"]
    for _ in range(2):
        folder = runs.local("oci://bucket@space/runs/run", names)
        assert folder == tmp_path / "cache/gpu-job/runs/bucket@space/runs/run"
        assert set(contents(folder)) == {"spec.yaml", "model/best.pt"}
    assert [name for name in there.read if name != "manifest.json"] == ["spec.yaml", "model/best.pt"]


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert runs.local(str(tmp_path), ["spec.yaml"]) == tmp_path


def test_a_file_of_a_run_in_a_store() -> None:
    assert runs.split("oci://b@n/p/run/model/best.pt") == ("oci://b@n/p/run", "model/best.pt")
    assert runs.split("oci://b@n/p/run/") == ("oci://b@n/p/run", None)
