"""Checkpoints: everything a run needs to go on, whole on disk, named by a pointer that is written last.

checkpoints/step-00000782.pt     torch.save of tensors and plain values: torch.load(weights_only=True) reads it
checkpoints/latest.json          {"files": [{"file", "sha256", "epoch", "step"}, …]}, newest first

A file that the pointer names is never written over: a kill at any moment leaves what was there.
"""

import contextlib
import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from job.errors import JobError
from job.runfolder import RunFolder, atomic, disk_errors, sha256, uploaded, write_json

POINTER = "latest.json"
MARGIN = 16 * 2**20  # bytes kept free beyond the checkpoint itself, for the report and the log
LETS_GO = 5.0  # seconds in which the uploader notices that a file it has not sent is gone


@dataclass(frozen=True)
class Place:
    """Where in a run: epochs done, mini-batches done in the one under way, mini-batches done since the beginning."""

    epoch: int
    step: int
    total: int


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read, and what was wrong with newer ones."""

    state: dict[str, Any]
    path: Path
    refused: tuple[str, ...]


def write(folder: RunFolder, state: dict[str, Any], place: Place, keep: int) -> Path:
    """Writes a checkpoint, then the pointer, then removes what `keep` no longer covers."""
    known = _entries(folder)
    path = _free_name(folder, place, {entry["file"] for entry in known})
    _ensure_room(folder, known, keep)
    with atomic(path) as file:
        _save(state, file)
    entry = {"file": path.name, "sha256": sha256(path), "epoch": place.epoch, "step": place.step}
    entries = [entry, *(old for old in known if (folder.checkpoints / old["file"]).exists())][:keep]
    write_json(folder.checkpoints / POINTER, {"files": entries})
    kept = {old["file"] for old in entries}
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


def same(one: Any, other: Any) -> bool:
    """Whether two values of checkpoints are equal to the last bit; NaN is equal to NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = (one.shape, one.dtype) == (other.shape, other.dtype)
        return alike and bool(torch.equal(_bytes(one), _bytes(other)))
    return type(one) is type(other) and bool(one == other)


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A plain state_dict on the CPU, as `torch.save(net.state_dict(), PATH)` leaves it."""
    with atomic(path) as file:
        _save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save; a full disk is the operating system's error, not the one that torch makes of it while closing."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _free_name(folder: RunFolder, place: Place, taken: set[str]) -> Path:
    """Two states can stand at one step: before and after the evaluation that ends an epoch."""
    names = (
        f"step-{place.total:08d}{mark}.pt"
        for mark in itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    )
    return folder.checkpoints / next(name for name in names if name not in taken)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _entries(folder: RunFolder) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        entries: list[dict[str, Any]] = json.loads((folder.checkpoints / POINTER).read_text())["files"]
        return entries
    return []


def _free(folder: RunFolder) -> int:
    with disk_errors(folder.checkpoints):
        return shutil.disk_usage(folder.checkpoints).free


def _ensure_room(folder: RunFolder, known: list[dict[str, Any]], keep: int) -> None:
    """A full disk is said before a checkpoint is begun, with the last good one untouched.

    Older ones go first, the oldest before the others: those that the run's store holds, then those that `keep` would
    not cover any more after this one.
    """
    last = max((path.stat().st_size for path in folder.checkpoints.glob("step-*.pt")), default=0)
    stored = uploaded(folder)
    older = [entry["file"] for entry in reversed(known[1:])]
    expiring = [entry["file"] for entry in known[max(1, keep - 1) :]]
    needless = [name for name in older if name in stored]
    needless += [name for name in older if name in expiring and name not in stored]
    gone = []
    while (free := _free(folder)) < last + MARGIN and needless:
        gone.append(needless.pop(0))
        (folder.checkpoints / gone[-1]).unlink(missing_ok=True)
    until = time.monotonic() + LETS_GO
    while free < last + MARGIN and not set(gone) <= set(stored) and time.monotonic() < until:
        time.sleep(0.05)  # the outbox held what was not uploaded yet, and lets go of it when it sees that it is gone
        free = _free(folder)
    if last and free < last + MARGIN:
        raise JobError(
            str(folder.checkpoints),
            f"{free / 2**20:.0f} MiB are free; a checkpoint takes {last / 2**20:.0f}, and {MARGIN / 2**20:.0f} more "
            "are kept for log and report; the last checkpoint is whole",
            "free some space and run the same id again",
        )
