"""The ways batches could be brought here: what the spec leaves open, less what this machine cannot bear."""

import itertools
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from job.data.dataset import Split
from job.data.decode import Encoded
from job.data.images import foundation
from job.data.loader import Settings
from job.data.shards import streamed
from job.device import Device, available_memory, cpu_count
from job.spec.schema import Loader

SHM = "/dev/shm"  # noqa: S108 - where worker processes hand over their batches
PREFETCH = 2  # batches a worker keeps ready, before others are tried
PREFETCHES = (2, 4, 8)
WORKER_BYTES = 64 * 2**20  # memory of its own that a worker process takes
SERVER_BYTES = 320 * 2**20  # the same of a fork server, which imports torch
OPEN_FILES = 256  # descriptors the rest of a run may need
MEMORY_PART = 0.5  # of what is free may be taken by workers and the batches they hold


@dataclass(frozen=True)
class Row:
    """A candidate, the images/s found with it (None: not tried) and a remark."""

    settings: Settings
    images_per_second: float | None
    note: str = ""


def candidates(split: Split, spec: Loader, device: Device) -> list[Row]:
    """Every combination the spec allows, cheapest first; those this machine cannot bear carry the reason."""
    rows = []
    if spec.resident is not False and (spec.num_workers == "auto" or spec.resident is True):
        rows.append(Row(Settings(spec.batch_size, resident=True), None, resident_refusal(split, spec, device)))
    pin = device.kind == "cuda" and spec.pin_memory is not False
    for count in _worker_counts(spec, rows):
        prefetch = None if count == 0 else (PREFETCH if spec.prefetch_factor == "auto" else spec.prefetch_factor)
        settings = Settings(spec.batch_size, False, count, pin, prefetch, _first_method(spec))
        rows.append(Row(settings, None, refusal(settings, split)))
    return rows


def refinements(best: Settings, split: Split, spec: Loader, device: Device) -> list[Row]:
    """Variations of the best: more batches ahead, the other pinning, workers begun otherwise, where left open."""
    rows = []
    if best.num_workers and spec.prefetch_factor == "auto":
        rows += [replace(best, prefetch_factor=factor) for factor in PREFETCHES if factor != best.prefetch_factor]
    if device.kind == "cuda" and not best.resident and spec.pin_memory == "auto":
        rows.append(replace(best, pin_memory=not best.pin_memory))
    if best.num_workers and spec.start_method == "auto":
        rows.append(replace(best, start_method="forkserver"))
    return [Row(settings, None, refusal(settings, split)) for settings in rows]


def _first_method(spec: Loader) -> Literal["fork", "forkserver"]:
    return "fork" if spec.start_method == "auto" else spec.start_method


def worker_counts() -> list[int]:
    """0, 1, 2, 4 … up to the CPUs this process may use."""
    doubling = itertools.takewhile(lambda count: count < cpu_count(), (2**power for power in range(9)))
    return [0, *doubling, cpu_count()]


def resident_refusal(split: Split, spec: Loader, device: Device) -> str:
    """Why the data set cannot be kept on the device, or nothing."""
    if isinstance(foundation(split.images)[0], Encoded):
        return "there is not the memory or disk to keep it decoded"
    if streamed(split.images) and spec.resident is not True:
        return "it is streamed; loader.resident: true keeps it in memory all the same"
    mapped = device.kind == "cpu"  # its pages may be dropped and read again: only what is asked for binds
    if spec.resident_budget == "auto":
        budget = device.free_memory() if mapped else device.free_memory() // 2
    else:
        budget = spec.resident_budget
    if split.images.nbytes <= budget:
        return ""
    return f"the data set takes {split.images.nbytes / 2**20:.0f} MiB of {budget / 2**20:.0f}"


def refusal(settings: Settings, split: Split, shm: str = SHM) -> str:
    """Why these workers would die, of a full shared memory ('Bus error') or otherwise; or nothing."""
    return next(filter(None, _refusals(settings, split, shm)), "") if settings.num_workers else ""


def _refusals(settings: Settings, split: Split, shm: str) -> Iterator[str]:
    server = settings.start_method == "forkserver"
    if server and not isinstance(foundation(split.images)[0], Encoded):
        yield "workers that are not forked from this process would each get a copy of the images"
    workers, in_flight = settings.num_workers, settings.num_workers * ((settings.prefetch_factor or PREFETCH) + 1)
    needed = in_flight * settings.batch_size * (int(np.prod(split.images.shape[1:])) + 8)
    if Path(shm).is_dir():
        room = os.statvfs(shm)
        free = room.f_bavail * room.f_frsize
        if needed > free:
            yield f"{shm} has {free / 2**20:.0f} MiB, {needed / 2**20:.0f} are needed: start with --shm-size"
    memory, free = needed + workers * WORKER_BYTES + server * SERVER_BYTES, int(MEMORY_PART * available_memory())
    if memory > free:
        yield f"workers and their batches take {memory / 2**20:.0f} MiB of the {free / 2**20:.0f} that may be used"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = 2 * in_flight + 4 * workers + OPEN_FILES  # a batch is two tensors, a worker two pipes
    if limit not in (resource.RLIM_INFINITY, -1) and files > limit:
        yield f"{files} open files are needed, {limit} are allowed: raise ulimit -n"


def _worker_counts(spec: Loader, rows: list[Row]) -> list[int]:
    if spec.resident is True:
        return []
    if spec.num_workers != "auto":
        return [spec.num_workers]
    resident = any(not row.note for row in rows)
    # pixels that are in memory or mapped only get slower through workers: they would be copied once more
    return [0] if resident else worker_counts()
