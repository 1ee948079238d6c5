"""Checkpoints in parts, through torch.distributed.checkpoint: every rank writes what it has, any number reads it.

    checkpoints/step-00000782.pt           the head: everything that is not in parts, and where in them what lies
    checkpoints/step-00000782.part-0.pt    the tensors' rows of rank 0, and so on

Rank 0 brings the parts into the run's folder, also those of other machines: there is one writer. Which rows lie where
is kept as plain values: torch's own file for this is a pickle, which runs what it is told to. The tensors in the parts
are files of torch.save, and are read as weights only.
"""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from job.errors import JobError
from job.runfolder import RunFolder, atomic, sha256
from job.training import checkpoint, sharding
from job.training.checkpoint import PARTS, Place
from job.training.distributed import PATIENCE, Ranks

MARK = "in parts: "  # in the head, in place of a tensor: its name in the parts follows
CHUNK = 16 * 2**20  # bytes that travel at once


@dataclass(frozen=True)
class Channel:
    """The ranks' own line for checkpoints, so that they can be written while training talks on another."""

    ranks: Ranks
    group: Any

    @classmethod
    def open(cls, ranks: Ranks) -> "Channel":
        """All ranks ask at the same place."""
        return cls(ranks, torch.distributed.new_group(backend="gloo", timeout=PATIENCE))


def write(folder: RunFolder, state: dict[str, Any], place: Place, keep: int, channel: Channel) -> Path | None:
    """As checkpoint.write, of all ranks at once; None on those that do not write."""
    if not channel.ranks.leads:
        _gather(folder, "", state, channel)
        return None
    checkpoint.ensure_room(folder, keep)
    path = checkpoint.free_name(folder, place)
    head = _gather(folder, path.stem, state, channel)
    return checkpoint.name(folder, path, head, place, keep)


def assemble(path: Path, head: dict[str, Any], mesh: DeviceMesh | None) -> dict[str, Any]:
    """The state that was written: whole, or this rank's part of it where there is a mesh. Checks the parts' hashes."""
    about = head[PARTS]
    for file in about["files"]:
        part = path.parent / file["file"]
        if not part.is_file():
            raise JobError(str(part), "it is gone, and a checkpoint with it", "take another checkpoint")
        if sha256(part) != file["sha256"]:
            what = "its SHA-256 is not the one that was written"
            raise JobError(str(part), what, "take another checkpoint")
    tensors = {
        name: sharding.empty(torch.Size(one["size"]), getattr(torch, one["dtype"]), mesh)
        for name, one in about["tensors"].items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads what it needs
        load(tensors, storage_reader=_Reader(path.parent, about), no_dist=True)
    rest = {name: value for name, value in head.items() if name != PARTS}
    found: dict[str, Any] = _joined(rest, tensors)
    return found


class _Reader(FileSystemReader):
    """Reads files that bear the run's names, by what the head says of them."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        super().__init__(folder)
        self.about = about

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        files = [file["file"] for file in self.about["files"]]
        tensors: dict[str, Any] = {}
        places = {}
        for name, one in self.about["tensors"].items():
            chunks = [ChunkStorageMetadata(torch.Size(start), torch.Size(size)) for start, size, *_ in one["chunks"]]
            properties = TensorProperties(dtype=getattr(torch, one["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(one["size"]), chunks)
            for start, _, number, offset, length in one["chunks"]:
                places[MetadataIndex(name, start)] = _StorageInfo(files[number], offset, length)
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _gather(folder: RunFolder, stem: str, state: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """The parts of all ranks into rank 0's folder, and there what the head has to hold."""
    tensors: dict[str, DTensor] = {}
    head = _split(state, "", tensors)
    with tempfile.TemporaryDirectory(dir=folder.root, prefix=".parts-") as name:
        writer = FileSystemWriter(name, sync_files=False)
        found = save(tensors, storage_writer=writer, process_group=channel.group)
        mine = Path(name) / f"__{channel.ranks.rank}_0.distcp"
        if not channel.ranks.leads:
            _send(mine, channel)
            return {}
        files = []
        for rank in range(channel.ranks.count):
            path = folder.checkpoints / f"{stem}.part-{rank}.pt"
            _receive(path, mine, rank, channel)
            files.append({"file": path.name, "sha256": sha256(path)})
    return {**head, PARTS: {"files": files, "tensors": _described(found)}}


def _described(found: Metadata) -> dict[str, Any]:
    """Plain values: of each tensor its type, its size and where its rows lie."""
    described = {}
    for name, one in found.state_dict_metadata.items():
        assert isinstance(one, TensorStorageMetadata)
        chunks = []
        for chunk in one.chunks:
            place = found.storage_data[MetadataIndex(name, chunk.offsets)]
            number = int(place.relative_path.removeprefix("__").partition("_")[0])
            chunks.append([list(chunk.offsets), list(chunk.sizes), number, place.offset, place.length])
        kind = str(one.properties.dtype).removeprefix("torch.")
        described[name] = {"dtype": kind, "size": list(one.size), "chunks": chunks}
    return described


def _split(value: Any, name: str, tensors: dict[str, DTensor]) -> Any:
    """The state with a mark in place of each tensor in parts; those go to `tensors`."""
    match value:
        case DTensor():
            tensors[name] = value
            return MARK + name
        case dict():
            return {key: _split(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(_split(inner, f"{name}/{number}", tensors) for number, inner in enumerate(value))
        case _:
            return value


def _joined(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case str() if value.startswith(MARK):
            return tensors[value.removeprefix(MARK)]
        case dict():
            return {key: _joined(inner, tensors) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(_joined(inner, tensors) for inner in value)
        case _:
            return value


def _send(path: Path, channel: Channel) -> None:
    size = path.stat().st_size if path.exists() else 0  # a rank without a row of anything writes nothing
    torch.distributed.send(torch.tensor([size]), 0, channel.group)
    if size:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                torch.distributed.send(torch.frombuffer(bytearray(block), dtype=torch.uint8), 0, channel.group)


def _receive(path: Path, mine: Path, rank: int, channel: Channel) -> None:
    with atomic(path) as target:
        if rank == 0:
            with mine.open("rb") as file:
                while block := file.read(CHUNK):
                    target.write(block)
            return
        size = torch.zeros(1, dtype=torch.int64)
        torch.distributed.recv(size, rank, channel.group)
        for start in range(0, int(size), CHUNK):
            part = torch.empty(min(CHUNK, int(size) - start), dtype=torch.uint8)
            torch.distributed.recv(part, rank, channel.group)
            target.write(part.numpy().tobytes())
