"""Files are whole or absent, and every refusal of the disk is one line with a cure."""

import errno
import json
import os
from pathlib import Path

import pytest

from job.errors import JobError
from job.runfolder import (
    RunFolder,
    append_line,
    atomic,
    disk_errors,
    read_lines,
    read_pointer,
    sha256,
    uploaded,
    write_json,
    write_manifest,
    write_status,
    write_text,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make()
    return made


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with atomic(path) as file:
        file.write(b"bytes")
        assert not path.exists()
    assert path.read_bytes() == b"bytes"


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "report.md", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "report.md").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EIO, "input/output error; check the disk"),
        (errno.EROFS, "read-only file system; the file system is read-only"),
        (errno.EACCES, "permission denied; give this user the right"),
    ],
)
def test_the_disk_says_no_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(JobError) as caught:
        write_text(tmp_path / "report.md", "text")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_store_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(JobError, match="a file stands where a folder is needed"):
        RunFolder(tmp_path / "runs" / "a").make()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 1})
    with path.open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert read_lines(path) == [{"epoch": 1}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "report.json", {"accuracy": float("nan")})
    assert not (tmp_path / "report.json").exists()


def test_the_manifest_names_every_file_with_its_hash(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    write_text(folder.report("md"), "a report")
    write_text(folder.model / "model.pt", "weights")
    (folder.root / ".lock").touch()
    write_manifest(folder, {"status": "complete"})
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["status"] == "complete"
    assert [entry["path"] for entry in manifest["files"]] == ["model/model.pt", "report.md"]
    for entry in manifest["files"]:
        path = folder.root / entry["path"]
        assert (entry["size"], entry["sha256"]) == (path.stat().st_size, sha256(path))


def test_the_machinery_is_no_part_of_the_run(folder: RunFolder) -> None:
    (folder.root / ".outbox/files").mkdir(parents=True)
    (folder.root / ".outbox/files/snapshot").write_bytes(b"held")
    write_manifest(folder, {})
    assert json.loads(folder.manifest.read_text())["files"] == []


def test_the_heartbeat_says_how_far_the_store_is(folder: RunFolder) -> None:
    (folder.root / ".outbox").mkdir()
    state = {"uri": "oci://b@n/run", "phase": "mirroring", "lag_seconds": 3, "waiting": 2, "stored": ["a.pt"], "pid": 1}
    write_json(folder.root / ".outbox/state.json", state)
    write_status(folder, status="running")
    store = json.loads(folder.status.read_text())["store"]
    assert store == {
        "uri": "oci://b@n/run",
        "phase": "mirroring",
        "lag_seconds": 3,
        "waiting": 2,
        "durable": None,
        "error": None,
    }
    assert uploaded(folder) == ["a.pt"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": [{"file": "../x.pt", "sha256": "a"}]}'])
def test_a_pointer_without_sense_names_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "latest.json").write_text(content)
    assert read_pointer(tmp_path / "latest.json") == []
    assert read_pointer(tmp_path / "absent.json") == []


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        (None, "choose another folder with store.uri, or JOB_WORK_DIR where that is oci://"),
        ("dataset.root", "choose another folder with dataset.root"),
        ("", "choose another folder"),
    ],
)
def test_the_cure_names_the_setting_that_chooses_the_folder(tmp_path: Path, setting: str | None, cure: str) -> None:
    given = () if setting is None else (setting,)
    with pytest.raises(JobError) as caught, disk_errors(tmp_path, *given):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert caught.value.cure == f"the file system is read-only; {cure}"
