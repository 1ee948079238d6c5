"""Checkpoints: everything a run needs to go on, whole on disk, named by a pointer that is written last.

checkpoints/step-00000782.pt     torch.save of tensors and plain values: torch.load(weights_only=True) reads it
checkpoints/latest.json          {"files": [{"file", "sha256", "epoch", "step"}, …]}, newest first
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from job.errors import JobError
from job.runfolder import RunFolder, atomic, disk_errors, sha256, write_json

POINTER = "latest.json"
MARGIN = 16 * 2**20  # bytes kept free beyond the checkpoint itself, for the report and the log


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read, and what was wrong with newer ones."""

    state: dict[str, Any]
    path: Path
    refused: tuple[str, ...]


def save(folder: RunFolder, state: dict[str, Any], epoch: int, step: int, total: int, keep: int) -> Path:
    """Writes a checkpoint, then the pointer, then removes what `keep` no longer covers.

    `total` is the count of steps since the beginning; the file is named by it.
    """
    path = folder.checkpoints / f"step-{total:08d}.pt"
    _ensure_room(folder)
    with atomic(path) as file:
        torch.save(state, file)
    entry = {"file": path.name, "sha256": sha256(path), "epoch": epoch, "step": step}
    entries = [entry, *(old for old in _entries(folder) if old["file"] != path.name)]
    write_json(folder.checkpoints / POINTER, {"files": entries[:keep]})
    kept = {old["file"] for old in entries[:keep]}
    for old in folder.checkpoints.glob("step-*.pt"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
    return path


def newest(folder: RunFolder) -> Restored | None:
    """The newest checkpoint whose bytes are what was written; None if there is none.

    A damaged one is passed over for the one before it, and said.
    """
    refused = []
    for entry in _entries(folder):
        path = folder.checkpoints / entry["file"]
        if not path.is_file():
            refused.append(f"{path}: it is gone")
        elif sha256(path) != entry["sha256"]:
            refused.append(f"{path}: its SHA-256 is not the one that was written")
        else:
            return Restored(read(path), path, tuple(refused))
    if refused:
        raise JobError(
            refused[0].partition(": ")[0], "no checkpoint of this run is whole", "start a run with another id"
        )
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a file made by torch.save, without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise JobError(str(path), "there is no such file", "check the path") from None
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise JobError(str(path), "this is not a whole checkpoint", "take another file") from error
    if not isinstance(state, dict):
        raise JobError(str(path), "this holds no state_dict", "take a file that torch.save wrote from a state_dict")
    return state


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A plain state_dict on the CPU, as `torch.save(net.state_dict(), PATH)` leaves it."""
    with atomic(path) as file:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


def _entries(folder: RunFolder) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        entries: list[dict[str, Any]] = json.loads((folder.checkpoints / POINTER).read_text())["files"]
        return entries
    return []


def _ensure_room(folder: RunFolder) -> None:
    """A full disk is said before a checkpoint is begun, with the last good one untouched."""
    last = max((path.stat().st_size for path in folder.checkpoints.glob("step-*.pt")), default=0)
    with disk_errors(folder.checkpoints):
        free = shutil.disk_usage(folder.checkpoints).free
    if last and free < last + MARGIN:
        raise JobError(
            str(folder.checkpoints),
            f"{free / 2**20:.0f} MiB are free, a checkpoint takes {last / 2**20:.0f}; the last one is whole",
            "free some space and run the same id again",
        )
