"""Checkpoints: everything a run needs to go on, whole on disk, named by a pointer that is written last.

checkpoints/step-00000782.pt     torch.save of tensors and plain values: torch.load(weights_only=True) reads it
checkpoints/latest.json          {"files": [{"file", "sha256", "epoch", "step"}, …]}, newest first

Of a network in parts (`job.training.parts`) a checkpoint is several files: "parts": [{"file", "sha256"}, …] names them.

A file that the pointer names is never written over: a kill at any moment leaves what was there.
"""

import contextlib
import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from job.errors import JobError
from job.runfolder import RunFolder, atomic, disk_errors, files_of, sha256, uploaded, write_json

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

POINTER = "latest.json"
PARTS = "parts"  # in the file that names a checkpoint in parts: what they are
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
    ensure_room(folder, keep)
    return name(folder, free_name(folder, place), state, place, keep)


def name(folder: RunFolder, path: Path, state: dict[str, Any], place: Place, keep: int) -> Path:
    """The file that makes a checkpoint of what lies beside it, and the pointer."""
    with atomic(path) as file:
        _save(state, file)
    entry = {"file": path.name, "sha256": sha256(path), "epoch": place.epoch, "step": place.step}
    if PARTS in state:
        entry["parts"] = state[PARTS]["files"]
    old = [one for one in _entries(folder) if (folder.checkpoints / one["file"]).exists()]
    entries = [entry, *old][:keep]
    write_json(folder.checkpoints / POINTER, {"files": entries})
    kept = {one["file"] for entry in entries for one in files_of(entry)}
    for other in folder.checkpoints.glob("step-*.pt"):
        if other.name not in kept:
            other.unlink(missing_ok=True)
    return path


def files(path: Path) -> list[Path]:
    """All that belongs to the checkpoint of this name."""
    head = _head(path)
    return [path, *(path.parent / one["file"] for one in head.get(PARTS, {}).get("files", []))]


def newest(folder: RunFolder, mesh: "DeviceMesh | None" = None) -> Restored | None:
    """The newest checkpoint whose bytes are what was written; None if there is none.

    A damaged one is passed over for the one before it, and said. With a `mesh`, what was saved in parts is read in
    parts.
    """
    refused: list[str] = []
    for entry in _entries(folder):
        path = folder.checkpoints / entry["file"]
        if (why := _damage(folder, entry)) is None:
            return Restored(read(path, mesh), path, tuple(refused))
        refused.append(why)
    if refused:
        raise JobError(
            refused[0].partition(": ")[0], "no checkpoint of this run is whole", "start a run with another id"
        )
    return None


def read(path: Path, mesh: "DeviceMesh | None" = None) -> dict[str, Any]:
    """The content of a file made by torch.save, without running any code in it; of a checkpoint in parts all of it,
    or this rank's part."""
    state = _head(path)
    if PARTS not in state:
        return state
    from job.training import parts

    return parts.assemble(path, state, mesh)


def _damage(folder: RunFolder, entry: dict[str, Any]) -> str | None:
    for one in files_of(entry):
        path = folder.checkpoints / one["file"]
        if not path.is_file():
            return f"{path}: it is gone"
        if sha256(path) != one["sha256"]:
            return f"{path}: its SHA-256 is not the one that was written"
    return None


def _head(path: Path) -> dict[str, Any]:
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


def free_name(folder: RunFolder, place: Place) -> Path:
    """Two states can stand at one step: before and after the evaluation that ends an epoch."""
    taken = {entry["file"] for entry in _entries(folder)}
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


def _size(folder: RunFolder, entry: dict[str, Any]) -> int:
    paths = [folder.checkpoints / one["file"] for one in files_of(entry)]
    return sum(path.stat().st_size for path in paths if path.exists())


def _free(folder: RunFolder) -> int:
    with disk_errors(folder.checkpoints):
        return shutil.disk_usage(folder.checkpoints).free


def ensure_room(folder: RunFolder, keep: int) -> None:
    """A full disk is said before a checkpoint is begun, with the last good one untouched.

    Older ones go first, the oldest before the others: those that the run's store holds, then those that `keep` would
    not cover any more after this one.
    """
    known, stored = _entries(folder), uploaded(folder)
    last = max((_size(folder, entry) for entry in known), default=0)
    older = list(reversed(known[1:]))
    expiring = known[max(1, keep - 1) :]
    needless = [entry for entry in older if entry["file"] in stored]
    needless += [entry for entry in older if entry in expiring and entry not in needless]
    gone = []
    while (free := _free(folder)) < last + MARGIN and needless:
        gone.append(needless[0]["file"])
        for one in files_of(needless.pop(0)):
            (folder.checkpoints / one["file"]).unlink(missing_ok=True)
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
