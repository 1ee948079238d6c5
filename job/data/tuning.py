"""Chooses how batches are brought, by measuring on this machine with this data and this network.

Candidates are tried from the cheapest up: resident, no workers, then 1, 2, 4 … worker processes. The search ends
as soon as one brings images faster than the network takes them by a margin (more would be waste), or when
`loader.tune_budget` or 2 % of the estimated run is used up, whichever comes first.
"""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from job.data.dataset import Split
from job.data.images import foundation
from job.data.loader import Batch, Pixels, Settings, TrainingBatches
from job.device import Device, cpu_count
from job.errors import JobError
from job.spec.schema import Augment, Loader, Train

ENOUGH = 1.5  # a loader this many times faster than the network never makes it wait
RUN_SHARE = 0.02  # of the estimated training time is the most that tuning may take
SHM = "/dev/shm"  # noqa: S108 - where worker processes hand over their batches


@dataclass(frozen=True)
class Row:
    """A candidate, the images/s it brought (None: not tried) and a remark."""

    settings: Settings
    images_per_second: float | None
    note: str = ""


@dataclass(frozen=True)
class LoaderPlan:
    """The settings, the table they were chosen from, and why."""

    settings: Settings
    rows: tuple[Row, ...]
    why: str
    model_images_per_second: float  # forward and backward on a batch that is already there


def choose(
    split: Split, spec: Loader, augment: Augment, device: Device, pixels: Pixels, rate: float, train: Train
) -> LoaderPlan:
    """Measures what the spec leaves open; what it fixes is taken as it is. `rate` is the network's own, images/s."""
    budget = min(spec.tune_budget, RUN_SHARE * train.epochs * len(split.labels) / rate)
    deadline = time.monotonic() + budget
    rows = candidates(split, spec, device)
    possible, refused = [row for row in rows if not row.note], [row for row in rows if row.note]
    if not possible:
        raise JobError("loader", "; ".join(f"{row.settings}: {row.note}" for row in refused), "change these keys")
    if len(possible) == 1:
        return LoaderPlan(possible[0].settings, (*possible, *refused), "the spec leaves one choice", rate)
    rows = []
    for index, candidate in enumerate(possible):
        left = deadline - time.monotonic()
        if rows and left <= 0:
            rows += [replace(row, note="not tried: the time for tuning was used up") for row in possible[index:]]
            break
        share = left / (len(possible) - index)
        batches = TrainingBatches(split, candidate.settings, device, pixels, augment, train.seed)
        speed = images_per_second(_endless(batches), device, share)
        rows.append(replace(candidate, images_per_second=speed))
        if speed >= ENOUGH * rate:
            rows += [replace(row, note="not needed") for row in possible[index + 1 :]]
            break
    best = max((row for row in rows if row.images_per_second), key=lambda row: row.images_per_second or 0)
    return LoaderPlan(best.settings, (*rows, *refused), reason(best.images_per_second or 0, rate), rate)


def candidates(split: Split, spec: Loader, device: Device) -> list[Row]:
    """Every combination the spec allows, cheapest first; those this machine cannot bear carry the reason."""
    rows = []
    if spec.resident is not False:
        budget = device.free_memory() // 2 if spec.resident_budget == "auto" else spec.resident_budget
        fits = split.images.nbytes <= budget
        note = "" if fits else f"the data set takes {split.images.nbytes / 2**20:.0f} MiB of {budget / 2**20:.0f}"
        rows.append(Row(Settings(spec.batch_size, resident=True), None, note))
    if spec.resident is True or (spec.resident == "auto" and spec.num_workers == "auto" and _in_memory(split, rows)):
        counts: list[int] = [] if spec.resident is True else [0]  # in-memory tensors only get slower through workers
    else:
        counts = worker_counts() if spec.num_workers == "auto" else [spec.num_workers]
    pin = device.kind == "cuda" if spec.pin_memory == "auto" else spec.pin_memory
    for count in counts:
        prefetch = None if count == 0 else (2 if spec.prefetch_factor == "auto" else spec.prefetch_factor)
        settings = Settings(spec.batch_size, False, count, pin and device.kind == "cuda", prefetch)
        rows.append(Row(settings, None, shm_refusal(settings, split)))
    if spec.num_workers != "auto" and spec.resident == "auto":  # the spec asks for workers: no second opinion
        rows = [row for row in rows if not row.settings.resident]
    return rows


def worker_counts() -> list[int]:
    """0, 1, 2, 4 … up to the CPUs this process may use."""
    doubling = itertools.takewhile(lambda count: count < cpu_count(), (2**power for power in range(9)))
    return [0, *doubling, cpu_count()]


def shm_refusal(settings: Settings, split: Split, folder: str = SHM) -> str:
    """Why these workers would die of a full shared memory ('Bus error'), or nothing."""
    if settings.num_workers == 0 or not Path(folder).is_dir():
        return ""
    in_flight = settings.num_workers * ((settings.prefetch_factor or 2) + 1)
    needed = in_flight * settings.batch_size * (int(np.prod(split.images.shape[1:])) + 8)
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if needed <= free:
        return ""
    return f"{folder} has {free / 2**20:.0f} MiB, {needed / 2**20:.0f} are needed: start with --shm-size"


def images_per_second(batches: Iterator[Batch], device: Device, budget: float) -> float:
    """Rate over at most `budget` seconds and 200 batches, after one batch that is not counted."""
    next(batches)
    device.wait()
    began, images, counted = time.monotonic(), 0, 0
    while counted < 200 and (counted < 2 or time.monotonic() - began < budget):  # noqa: PLR2004
        images += len(next(batches).labels)
        counted += 1
    device.wait()
    return images / (time.monotonic() - began)


def reason(speed: float, rate: float) -> str:
    """The choice in words."""
    ratio = speed / rate
    if ratio >= ENOUGH:
        return f"brings {speed:,.0f} images/s, {ratio:.1f}× what the network takes: it never waits"
    if ratio >= 1:
        return f"the fastest tried, {speed:,.0f} images/s, {ratio:.1f}× what the network takes"
    return f"the fastest tried, {speed:,.0f} images/s, yet the network could take {rate:,.0f}: loading limits this run"


def _in_memory(split: Split, rows: list[Row]) -> bool:
    """Whether the pixels are in RAM and the resident copy is possible."""
    return bool(rows) and rows[0].note == "" and not hasattr(foundation(split.images)[0], "filename")


def _endless(batches: TrainingBatches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)
