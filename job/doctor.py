"""Is this machine fit for a run? A line each for GPU, shared memory, disk, data and store, with the cure."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from job.device import available_memory, cpu_count, gpus
from job.environment import gpu
from job.errors import JobError
from job.runfolder import WHERE_RUNS_LIE

SHM_ENOUGH = 2**30  # bytes; Docker gives 64 MiB unless told otherwise
DISK_ENOUGH = 5 * 2**30  # bytes for checkpoints and a data set
MEMORY_ENOUGH = 4 * 2**30
STORE_SECONDS = 15.0  # without a byte from it
SHM = "/dev/shm"  # noqa: S108 - where worker processes hand over their batches


def examine(spec_path: str | None) -> tuple[list[str], bool]:
    """Lines 'ok …' or '!! …', and whether nothing is wrong."""
    checks: list[Callable[[], Iterator[tuple[bool, str]]]] = [_cpu, _gpu, _memory, _shm, _disk]
    found = [line for check in checks for line in check()]
    if spec_path is not None:
        found += _spec(spec_path)
    return [f"{'ok' if good else '!!'}  {text}" for good, text in found], all(good for good, _ in found)


def _cpu() -> Iterator[tuple[bool, str]]:
    yield True, f"CPU: {cpu_count()} usable"


def _gpu() -> Iterator[tuple[bool, str]]:
    try:
        found = gpus()
    except Exception as error:  # a broken install fails on import in many ways
        yield False, f"torch: {error}; install the locked requirements: make setup"
        return
    seen = gpu()
    if not found and seen["gpu"] is None:
        yield True, "GPU: none; the job runs on CPU"
    elif not found:
        yield (
            False,
            f"GPU: {seen['gpu']}, driver {seen['driver']}: not usable; CUDA 13 needs driver 580 or later",
        )
    for index, (name, problem, free, total) in enumerate(found):
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        facts = f"{name}, driver {seen['driver']}, {memory}"
        yield problem is None, f"GPU {index}: {problem or facts}"


def _memory() -> Iterator[tuple[bool, str]]:
    free = available_memory()
    cure = "" if free >= MEMORY_ENOUGH else "; give the container more, or use a smaller data set"
    yield free >= MEMORY_ENOUGH, f"memory: {free / 2**30:.1f} GiB available{cure}"


def _shm() -> Iterator[tuple[bool, str]]:
    if not Path(SHM).is_dir():
        return
    size = shutil.disk_usage(SHM).free
    cure = "" if size >= SHM_ENOUGH else "; start the container with --shm-size=8g, or set loader.num_workers: 0"
    yield size >= SHM_ENOUGH, f"{SHM}: {size / 2**20:,.0f} MiB free{cure}"


def _disk(folder: Path | None = None) -> Iterator[tuple[bool, str]]:
    folder = Path.cwd() if folder is None else folder
    free = shutil.disk_usage(folder).free
    cure = "" if free >= DISK_ENOUGH else f"; free some, or choose a larger disk with {WHERE_RUNS_LIE}"
    yield free >= DISK_ENOUGH, f"disk: {free / 2**30:.1f} GiB free in {folder}{cure}"


def _spec(path: str) -> Iterator[tuple[bool, str]]:
    from job.data.dataset import locate
    from job.spec.load import load

    try:
        spec = load(path).spec
        yield True, f"spec: {path} is valid"
        yield True, f"data: {spec.dataset.name}, {locate(spec.dataset).where}"
    except JobError as error:
        yield False, str(error)
        return
    yield from _store(spec.store.uri)


def _store(uri: str) -> Iterator[tuple[bool, str]]:
    """Which credentials are found; then writes, reads and deletes a small file where results will go."""
    from job.storage.store import open_store

    name = f"doctor-check-{secrets.token_hex(4)}"
    try:
        store = open_store(uri, STORE_SECONDS)
        if uri.startswith("oci://"):
            from job import auth

            yield True, f"credentials: {auth.find().found}"
        with tempfile.TemporaryDirectory() as folder:
            sent, back = Path(folder) / "sent", Path(folder) / "back"
            sent.write_bytes(os.urandom(64))
            store.put(sent, name)
            store.get(name, back)
            same = sent.read_bytes() == back.read_bytes()
            store.delete(name)
    except JobError as error:
        yield False, f"store: {error}"
        return
    text = f"store: {uri} can be written, read and deleted"
    yield same, text if same else f"store: {uri} gave back other bytes; write to another one"
