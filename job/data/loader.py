"""Batches on the device: cut from a resident uint8 copy, or brought by worker processes.

Order and augmentation are functions of (seed, epoch, step) alone, so they are the same with 0, 1 or 8 workers,
resident or not, on CPU or CUDA, and a run can go on at any step without replaying what came before.
"""

import contextlib
import hashlib
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from job.data.augment import augment
from job.data.dataset import Split
from job.device import Device
from job.spec.schema import Augment

EVALUATION_BATCH = 512  # images; larger ones no longer help the CPU, and a GPU has room for them


@dataclass(frozen=True)
class Settings:
    """How batches are brought. A resident data set has no workers, nothing to pin and nothing to prefetch."""

    batch_size: int
    resident: bool
    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int | None = None

    def __str__(self) -> str:
        if self.resident:
            return "resident"
        pinned = ", pinned" if self.pin_memory else ""
        ahead = f", prefetch {self.prefetch_factor}" if self.num_workers else ""
        return f"{self.num_workers} worker{'' if self.num_workers == 1 else 's'}{ahead}{pinned}"


@dataclass(frozen=True)
class Batch:
    """Normalised images (N, C, H, W) float32 and labels (N,) int64, both on the device."""

    images: Tensor
    labels: Tensor


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
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        # NHWC memory seen as NCHW is channels_last already: only the other layout is a copy
        return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).mul_(self.scale).add_(self.shift)


class TrainingBatches:
    """The training split, epoch by epoch. Owns the resident copy or the worker processes."""

    def __init__(
        self, split: Split, settings: Settings, device: Device, pixels: Pixels, augment: Augment, seed: int
    ) -> None:
        self.settings, self.device, self.pixels = settings, device, pixels
        self.augment, self.seed, self.count = augment, seed, len(split.labels)
        self.resident: tuple[Tensor, Tensor] | None = None
        if settings.resident:
            self.resident = device.tensor(split.images), device.tensor(split.labels)
        else:
            self.sampler = _Sampler()
            self.workers = _workers(split, settings, self.sampler)

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-self.count // self.settings.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of this epoch (counted from 0), from step `start` on."""
        places = torch.split(torch.from_numpy(self.order(epoch)), self.settings.batch_size)[start:]
        for step, (place, raw) in enumerate(zip(places, self._cut(places), strict=True), start):
            images, labels = (self.device.tensor(part, pinned=self.settings.pin_memory) for part in raw)
            generator = torch.Generator().manual_seed(stream(self.seed, epoch, step))
            yield Batch(augment(self.pixels(images), self.augment, generator, epoch, place, self.seed), labels)

    def _cut(self, places: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (N, H, W, C) and labels for each list of indices."""
        if self.resident is None:
            self.sampler.batches = [place.tolist() for place in places]
            with _quiet():
                brought = iter(self.workers)
            yield from brought
            return
        images, labels = self.resident
        for place in places:
            on_device = place.to(images.device)
            yield images.index_select(0, on_device), labels.index_select(0, on_device)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The permutation of the training images in this epoch."""
        return np.random.default_rng(stream(self.seed, epoch)).permutation(self.count)


def in_order(split: Split, device: Device, pixels: Pixels, batch_size: int = EVALUATION_BATCH) -> Iterator[Batch]:
    """The whole split once, unchanged and in its own order, as evaluation needs it."""
    for start in range(0, len(split.labels), batch_size):
        part = slice(start, start + batch_size)
        yield Batch(pixels(device.tensor(split.images[part])), device.tensor(split.labels[part]))


def stream(*position: int) -> int:
    """A seed of its own for each position, such as (seed, epoch, step)."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # 63 bits: what torch.Generator takes without a sign


class _Sampler:
    """Lists of indices for the worker processes; replaced before each epoch."""

    batches: list[list[int]] = []  # noqa: RUF012 - replaced, never changed in place

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """What a worker does: cut one batch out of the shared array, as uint8, so that little is sent."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images, split.labels

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images[indices]), torch.from_numpy(self.labels[indices])


def _whole(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _workers(split: Split, settings: Settings, sampler: _Sampler) -> "DataLoader[tuple[Tensor, Tensor]]":
    # fork shares the decoded array with the workers without a copy; they touch numpy and CPU tensors only
    fork = multiprocessing.get_context("fork") if settings.num_workers else None
    with _quiet():
        return DataLoader(
            _Images(split),
            batch_sampler=sampler,
            num_workers=settings.num_workers,
            pin_memory=settings.pin_memory,
            prefetch_factor=settings.prefetch_factor,
            persistent_workers=settings.num_workers > 0,
            multiprocessing_context=fork,
            collate_fn=_whole,  # type: ignore[arg-type]  # __getitems__ has made the batch already
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """More workers than CPUs: the spec asks for it, and the plan shows what it brings. torch need not say more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield
