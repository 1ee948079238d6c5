"""Checkpoints written beside the training: the training thread pays for a copy of the state and nothing else.

    saver.begin(state, place, healthy)      copies the state into buffers that are used again, returns at once
    for written in saver.finished(): …      what has become durable since; raises what went wrong in the background
    saver.flush()                           returns when nothing is in flight any more

One checkpoint is in flight at most: the next waits for it, so that a run has exactly the checkpoints its spec asks
for. Serialising, hashing, writing and the pointer stay in their order, in one thread. torch.save, hashlib and the
disk let go of the interpreter's lock, so the steps go on meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from job.runfolder import RunFolder
from job.training import checkpoint
from job.training.checkpoint import Place

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


Write = Callable[[RunFolder, dict[str, Any], Place, int], Path | None]


@dataclass(frozen=True)
class Written:
    """A checkpoint that is durable on disk, named by the pointer."""

    path: Path
    place: Place


class Saver:
    """Owns the thread and the buffers. All methods are for the training thread."""

    def __init__(
        self, folder: RunFolder, keep: int, mesh: "DeviceMesh | None" = None, write: Write = checkpoint.write
    ) -> None:
        """`mesh` is what tensors in parts are copied on, in main memory; `write` is None where others write."""
        self.folder, self.keep, self.write = folder, keep, write
        self.snapshot = Snapshot(mesh)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.flying: list[Future[Written | None]] = []

    def begin(self, state: dict[str, Any], place: Place, healthy: Callable[[dict[str, Any]], None]) -> list[Written]:
        """Copies the state and has it written; what had been in flight is waited for and returned.

        `healthy` looks at the copy in the background and raises where it must not be written over good ones.
        """
        before = self.flush()
        copy = self.snapshot.take(state)
        ready = _event() if self.snapshot.queued else None

        def write() -> Written | None:
            if ready is not None:
                ready.synchronize()  # the copies from the GPU have arrived
            healthy(copy)
            path = self.write(self.folder, copy, place, self.keep)
            return None if path is None else Written(path, place)

        self.flying.append(self.thread.submit(write))
        return before

    def weights(self, path: Path, state: dict[str, Tensor]) -> None:
        """Has a plain state_dict written, before any checkpoint begun later. The tensors must not change any more."""

        def write() -> None:
            checkpoint.save_weights(path, state)

        self.flying.append(self.thread.submit(write))

    def finished(self) -> list[Written]:
        """Checkpoints that have become durable since the last call. Does not wait."""
        if not self.flying or not self.flying[0].done():  # asked at every step
            return []
        count = next((n for n, future in enumerate(self.flying) if not future.done()), len(self.flying))
        return self._take(count)

    def flush(self) -> list[Written]:
        """The same, once nothing is in flight."""
        return self._take(len(self.flying))

    def settle(self) -> None:
        """Waits, whatever comes of it: for a run that ends because of something else."""
        done, self.flying = self.flying, []
        for future in done:
            future.exception()

    def _take(self, count: int) -> list[Written]:
        found: list[Written] = []
        for _ in range(count):
            if found and self.flying[0].exception() is not None:
                break  # what is durable is told first, what went wrong at the next call
            written = self.flying.pop(0).result()
            if written is not None:
                found.append(written)
        return found


class Snapshot:
    """A copy of a nested state on the host. The buffers are made once: fresh memory costs six times the copy."""

    def __init__(self, mesh: "DeviceMesh | None" = None) -> None:
        self.mesh = mesh
        self.buffers: dict[tuple[Any, ...], Tensor] = {}
        self.queued = False  # some of the copies are from a GPU

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Valid until the next call. From a GPU the copies are queued, not awaited."""
        copy: dict[str, Any] = self._copy(state, ())
        return copy

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        match value:
            case Tensor() if self.mesh is not None and hasattr(value, "full_tensor"):
                from job.training import sharding

                return sharding.in_buffer(value, self._tensor(sharding.local(value.detach()), path), self.mesh)
            case Tensor():
                return self._tensor(value.detach(), path)
            case dict():
                return {name: self._copy(inner, (*path, name)) for name, inner in value.items()}
            case list() | tuple():
                return type(value)(self._copy(inner, (*path, place)) for place, inner in enumerate(value))
            case _:
                return value

    def _tensor(self, value: Tensor, path: tuple[Any, ...]) -> Tensor:
        buffer = self.buffers.get(path)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            # pinned, so that the copy from a GPU runs beside the next steps
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.buffers[path] = buffer
        self.queued |= value.is_cuda
        return buffer.copy_(value, non_blocking=value.is_cuda)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
