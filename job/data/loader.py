"""Batches on the device: cut from a resident uint8 copy, or brought by worker processes.

Order follows from (seed, epoch) and augmentation from (seed, epoch, index) alone, so they are the same with 0, 1 or 8
workers, resident or not, on CPU or CUDA, for any number of ranks, and a run can go on at any step without replaying
what came before. Pixels travel as uint8; normalising and augmenting are done per batch on the device.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from job.clock import Clock
from job.data.augment import augment, draw
from job.data.dataset import Split
from job.data.draws import stream
from job.data.images import foundation
from job.data.shards import Ahead, Shards, ahead
from job.device import Device
from job.errors import JobError
from job.interrupt import end_with_parent
from job.spec.schema import Augment

EVALUATION_BATCH = 512  # images; larger ones no longer help the CPU, and a GPU has room for them
CHUNK = 2**18  # pixel values normalised at a time on CPU: 1 MiB of float32 stays in the core's own cache
UPLOAD = 2**28  # bytes copied to the device at a time while a data set becomes resident

Waiting = Callable[[], AbstractContextManager[None]]  # entered while images are waited for; may raise to leave


@dataclass(frozen=True)
class Settings:
    """How batches are brought. A resident data set has no workers, nothing to pin and nothing to prefetch."""

    batch_size: int
    resident: bool
    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int | None = None
    start_method: Literal["fork", "forkserver"] = "fork"  # of the workers

    def __str__(self) -> str:
        if self.resident:
            return "resident"
        pinned = ", pinned" if self.pin_memory else ""
        ahead = f", prefetch {self.prefetch_factor}" if self.num_workers else ""
        server = ", forkserver" if self.num_workers and self.start_method == "forkserver" else ""
        return f"{self.num_workers} worker{'' if self.num_workers == 1 else 's'}{ahead}{pinned}{server}"


@dataclass(frozen=True)
class Batch:
    """Normalised images (N, C, H, W) float32 and labels (N,) int64, both on the device."""

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """While training: places in the split of the step's images, those of all ranks."""


@dataclass(frozen=True)
class Pixels:
    """From uint8 (N, H, W, C) to normalised float32 (N, C, H, W): (pixel / 255 − mean) / std by channel."""

    scale: Tensor  # (C, 1, 1), 1 / (255 × std)
    shift: Tensor  # (C, 1, 1), −mean / std
    channels_last: bool

    @staticmethod
    def on(device: Device, mean: tuple[float, ...], std: tuple[float, ...]) -> "Pixels":
        means, stds = np.asarray(mean), np.asarray(std)
        scale = device.tensor((1 / (255 * stds)).astype(np.float32)).view(-1, 1, 1)
        shift = device.tensor((-means / stds).astype(np.float32)).view(-1, 1, 1)
        return Pixels(scale, shift, device.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        count, height, width, channels = images.shape
        if self.channels_last:  # whole rows of pixels, so that the innermost loop is long: 2 to 3 times as fast
            raw = images.reshape(count, height, width * channels)
            normal = torch.empty(raw.shape, device=images.device)
            scale, shift = self.scale.flatten().repeat(width), self.shift.flatten().repeat(width)
        else:
            raw = images.permute(0, 3, 1, 2)
            normal = torch.empty(raw.shape, device=images.device)
            scale, shift = self.scale, self.shift
        step = count if images.is_cuda else max(1, CHUNK // (height * width * channels))
        for start in range(0, count, max(step, 1)):
            part = slice(start, start + step)
            normal[part].copy_(raw[part]).mul_(scale).add_(shift)
        return normal.view(count, height, width, channels).permute(0, 3, 1, 2) if self.channels_last else normal


class TrainingBatches:
    """The training split, epoch by epoch. Owns the resident copy or the worker processes.

    Each of `ranks` takes its own part of every batch; together they see the batches that one alone would see.
    """

    def __init__(
        self,
        split: Split,
        settings: Settings,
        device: Device,
        pixels: Pixels,
        augment: Augment,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        assert 0 <= rank < ranks
        self.settings, self.device, self.pixels = settings, device, pixels
        self.augment, self.seed, self.count = augment, seed, len(split.labels)
        self.rank, self.ranks = rank, ranks
        self.shape = split.images.shape[1], split.images.shape[2]
        self.images = split.images
        self.waiting: Waiting = contextlib.nullcontext
        self.coming: Ahead | None = None
        self.clock = Clock(device)
        self.resident: _Resident | None = None
        if settings.resident:
            self.resident = _resident(split, device)
        else:
            self.sampler = _Sampler()
            self.workers = _workers(split, settings, self.sampler)

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-self.count // self.settings.batch_size)

    @property
    def full(self) -> int:
        """Images in this rank's part of a whole batch."""
        size = self.settings.batch_size
        return size * (self.rank + 1) // self.ranks - size * self.rank // self.ranks

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of this epoch (counted from 0), from step `start` on."""
        order = self.order(epoch)
        parts = [self._share(step) for step in range(start, len(self))]
        moves = draw(self.augment, self.shape, self.seed, epoch, order).to(self.device.kind)
        raw = self._brought(order, parts) if self.resident is None else self.resident.cut(order, parts)
        size = self.settings.batch_size
        wholes = (slice(step * size, (step + 1) * size) for step in range(start, len(self)))
        for part, whole, (images, labels) in zip(parts, wholes, raw, strict=True):
            with self.clock("prepare"):
                ready = augment(self.pixels(images), moves.part(part), self.augment.cutout)
            yield Batch(ready, labels, order[whole])

    def close(self) -> None:
        """Ends the worker processes now, not when the garbage collector comes by."""
        if self.coming is not None:
            self.coming.close()
        if self.resident is None and (running := self.workers._iterator) is not None and self.settings.num_workers:
            running._shutdown_workers()  # type: ignore[attr-defined]
            self.workers._iterator = None

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The permutation of the training images in this epoch; one that needs few shards at a time."""
        base, places = foundation(self.images)
        if isinstance(base, Shards):
            return base.order(np.arange(self.count) if places is None else places, self.seed, epoch)
        return np.random.default_rng(stream(self.seed, epoch)).permutation(self.count)

    def _share(self, step: int) -> slice:
        """Of the epoch's order: what this rank takes of the step's batch. Sizes differ by one image at most."""
        begin = step * self.settings.batch_size
        size = min(self.settings.batch_size, self.count - begin)
        return slice(begin + size * self.rank // self.ranks, begin + size * (self.rank + 1) // self.ranks)

    def _brought(self, order: NDArray[np.int64], parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (N, H, W, C) and labels from the worker processes, copied one batch ahead."""
        self.sampler.batches = [order[part].tolist() for part in parts]
        with _quiet():
            brought = iter(self.workers)
        batches = self.device.ahead(_whole_batches(brought), lambda: self.clock("copy"))
        begin = parts[0].start if parts else 0
        with ahead(self.images, order[begin:]) as self.coming:  # its threads begin when the workers have been forked
            for part in parts:
                with self.waiting():
                    batch = next(batches)
                if self.coming is not None:
                    self.coming.reached(part.stop - begin)
                yield batch
        assert next(batches, None) is None


_LATEST: "list[tuple[Split, str, _Resident]]" = []  # one at most


def _resident(split: Split, device: Device) -> "_Resident":
    """The split's copy on the device. The tuner, the estimate and the training ask one after the other for the same."""
    for known, kind, made in _LATEST:
        if known is split and kind == device.kind:
            return made
    _LATEST.clear()  # before the next one needs the room
    _LATEST.append((split, device.kind, _Resident(split, device)))
    return _LATEST[0][2]


class _Resident:
    """The split's pixels and labels on the device. On CPU they stay where they are: in memory, or mapped."""

    def __init__(self, split: Split, device: Device) -> None:
        base, places = foundation(split.images)
        self.labels = device.tensor(split.labels)
        self.places: Tensor | None = None
        if device.kind == "cpu" and isinstance(base, np.ndarray):
            self.images = torch.from_numpy(base)
            self.places = None if places is None else torch.from_numpy(places)
            return
        self.images = torch.empty(split.images.shape, dtype=torch.uint8, device=device.kind)
        step = max(1, UPLOAD // max(1, int(np.prod(split.images.shape[1:]))))
        for start in range(0, len(split.labels), step):
            part = slice(start, start + step)
            self.images[part].copy_(torch.from_numpy(np.ascontiguousarray(split.images[part])))

    def cut(self, order: NDArray[np.int64], parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        here = torch.from_numpy(order).to(self.labels.device)
        for part in parts:
            chosen = here[part]
            places = chosen if self.places is None else self.places[chosen]
            yield self.images.index_select(0, places), self.labels.index_select(0, chosen)


def in_order(
    split: Split,
    device: Device,
    pixels: Pixels,
    batch_size: int = EVALUATION_BATCH,
    waiting: Waiting = contextlib.nullcontext,
) -> Iterator[Batch]:
    """The whole split once, unchanged and in its own order, as evaluation needs it."""
    with ahead(split.images, np.arange(len(split.labels))) as coming:
        for start in range(0, len(split.labels), batch_size):
            part = slice(start, start + batch_size)
            if coming is not None:
                coming.reached(part.stop)
            with waiting():
                images = split.images[part]
            yield Batch(pixels(device.tensor(images)), device.tensor(split.labels[part]))


class _Sampler:
    """Lists of indices for the worker processes; replaced before each epoch."""

    batches: list[list[int]] = []  # noqa: RUF012 - replaced, never changed in place

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


Brought = tuple[Tensor, Tensor] | JobError  # an error crosses from a worker as a value: raised there it loses its parts


def _whole_batches(brought: Iterator[Brought]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the workers brought; a JobError for a file that went bad, and for a worker that was killed."""
    try:
        for batch in brought:
            if isinstance(batch, JobError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        why = " ".join(str(error).split())
        cure = "give the container more memory and /dev/shm (--shm-size), or set loader.num_workers: 0"
        raise JobError("loader.num_workers", f"a worker process ended: {why}", cure) from error


class _Images(Dataset[Brought]):
    """What a worker does: bring one batch as uint8, so that little is sent."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images, split.labels

    def __getitems__(self, indices: list[int]) -> Brought:
        try:
            return torch.from_numpy(self.images[indices]), torch.from_numpy(self.labels[indices])
        except JobError as error:
            return error


def _whole(batch: Brought) -> Brought:
    return batch


def _begin_work(_number: int) -> None:
    """Ends with the process that trains, and not only when it looks for more to do: a store may be away."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    if trainer.pid == os.getppid():
        end_with_parent()
        return

    def wait() -> None:  # the parent is the fork server, which a worker keeps alive
        trainer.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="ends with the trainer").start()


def end_fork_server() -> None:
    """It takes memory as long as it is there. Its workers must have ended."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _workers(split: Split, settings: Settings, sampler: _Sampler) -> "DataLoader[Brought]":
    # fork shares the decoded array with the workers without a copy; they touch numpy and CPU tensors only
    context = multiprocessing.get_context(settings.start_method) if settings.num_workers else None
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload([__name__])  # torch once, not in each worker
    with _quiet():
        return DataLoader(
            _Images(split),
            batch_sampler=sampler,
            num_workers=settings.num_workers,
            pin_memory=settings.pin_memory,
            prefetch_factor=settings.prefetch_factor,
            persistent_workers=settings.num_workers > 0,
            generator=torch.Generator(),  # its own: drawing from the process's would change what dropout draws
            multiprocessing_context=context,
            worker_init_fn=_begin_work,
            collate_fn=_whole,  # type: ignore[arg-type]  # __getitems__ has made the batch already
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """More workers than CPUs: the spec asks for it, and the plan shows what it brings. torch need not say more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield
