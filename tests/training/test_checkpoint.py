"""Checkpoints are whole or passed over, and never cost the one before them."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from job.errors import JobError
from job.runfolder import RunFolder, write_json
from job.training import checkpoint
from job.training.checkpoint import Place


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make()
    return made


def save(folder: RunFolder, total: int, keep: int = 3) -> Path:
    state = {"weights": torch.full((4,), float(total)), "epoch": total}
    return checkpoint.write(folder, state, Place(total, 0, total), keep)


def test_what_was_saved_is_read_without_running_code(folder: RunFolder) -> None:
    path = save(folder, 7)
    restored = checkpoint.newest(folder)
    assert restored is not None
    assert (restored.path, restored.state["epoch"], restored.refused) == (path, 7, ())
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.full((4,), 7.0))


def test_only_the_newest_are_kept(folder: RunFolder) -> None:
    for total in range(1, 6):
        save(folder, total, keep=2)
    assert sorted(path.name for path in folder.checkpoints.glob("*.pt")) == ["step-00000004.pt", "step-00000005.pt"]
    pointer = json.loads((folder.checkpoints / "latest.json").read_text())
    assert [entry["file"] for entry in pointer["files"]] == ["step-00000005.pt", "step-00000004.pt"]


def test_two_states_of_one_step_do_not_share_a_file(folder: RunFolder) -> None:
    """A kill between the file and the pointer would otherwise leave the old hash beside the new bytes."""
    first, second = save(folder, 5), save(folder, 5)
    assert (first.name, second.name) == ("step-00000005.pt", "step-00000005-2.pt")
    restored = checkpoint.newest(folder)
    assert restored is not None
    assert restored.path == second


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_one_is_passed_over_and_said(folder: RunFolder, damage: str) -> None:
    save(folder, 1)
    path = save(folder, 2)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "changed":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    restored = checkpoint.newest(folder)
    assert restored is not None
    assert restored.state["epoch"] == 1
    assert len(restored.refused) == 1
    assert restored.refused[0].startswith(str(path))


def test_none_whole_is_an_error_none_at_all_is_not(folder: RunFolder) -> None:
    assert checkpoint.newest(folder) is None
    save(folder, 1).write_bytes(b"")
    with pytest.raises(JobError, match="no checkpoint of this run is whole"):
        checkpoint.newest(folder)


def test_a_kill_between_checkpoint_and_pointer_leaves_the_one_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 1)

    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 2)
    restored = checkpoint.newest(folder)
    assert restored is not None
    assert restored.state["epoch"] == 1


def test_a_full_disk_is_told_before_and_costs_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    told = r"0 MiB are free; a checkpoint takes 0, and 16 more are .*; the last checkpoint is whole; free some space"
    with pytest.raises(JobError, match=told):
        save(folder, 2)
    restored = checkpoint.newest(folder)
    assert restored is not None
    assert restored.state["epoch"] == 1


def test_a_short_disk_gives_up_the_oldest_that_is_uploaded(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(folder, epoch) for epoch in (1, 2, 3)]
    (folder.root / ".outbox").mkdir()
    write_json(folder.root / ".outbox/state.json", {"stored": [path.name for path in reversed(paths)]})
    usage = namedtuple("usage", "total used free")

    def disk(_: Path) -> tuple[int, int, int]:
        return usage(10**9, 0, 10**9 if not paths[0].exists() else 1000)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    newest = save(folder, 4)
    assert sorted(folder.checkpoints.glob("*.pt")) == [*paths[1:], newest]
    named = json.loads((folder.checkpoints / "latest.json").read_text())["files"]
    assert [entry["file"] for entry in named] == [newest.name, paths[2].name, paths[1].name]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 0))
    with pytest.raises(JobError, match="the last checkpoint is whole"):
        save(folder, 5)
    assert newest.exists(), "not uploaded"


def test_a_short_disk_gives_up_what_the_next_checkpoint_replaces(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is uploaded, and the outbox lets go of the bytes a moment later."""
    paths = [save(folder, epoch) for epoch in (1, 2, 3)]
    usage = namedtuple("usage", "total used free")
    looks = [0]

    def disk(_: Path) -> tuple[int, int, int]:
        looks[0] += not paths[0].exists()
        return usage(10**9, 0, 10**9 if looks[0] > 2 else 0)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    newest = save(folder, 4)
    assert sorted(folder.checkpoints.glob("*.pt")) == [*paths[1:], newest]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 0))
    monkeypatch.setattr(checkpoint, "LETS_GO", 0.0)
    with pytest.raises(JobError, match="the last checkpoint is whole"):
        save(folder, 5)
    assert sorted(folder.checkpoints.glob("*.pt")) == [paths[2], newest]


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"PK\x03\x04 half a zip", b"hello"])
def test_a_foreign_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(JobError, match=r"weights\.pt: this is not a whole checkpoint; take another file"):
        checkpoint.read(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save(Path, path)  # a class by reference: unpickling imports and hands out whatever it names
    with pytest.raises(JobError, match="not a whole checkpoint"):
        checkpoint.read(path)


def test_weights_are_a_plain_state_dict(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    checkpoint.save_weights(tmp_path / "model.pt", layer.state_dict())
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.weight, layer.weight)
