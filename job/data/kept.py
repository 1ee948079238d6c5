"""One decoded copy of a data set on disk, mapped into memory, so that the second start and all ranks share it.

    CACHE/images/KEY/pixels · table.npy · about.json

KEY is a hash of everything the pixels follow from: the files' names, sizes and times, the decode settings and the
decoders' versions; another KEY is another copy. A copy appears whole (made beside, then renamed) and every image has a
checksum, which is compared at each start: a damaged copy is made anew. Processes that want the same copy wait for the
one that makes it. Where the folder cannot be written the run goes on without, and says so once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from job.device import cpu_count
from job.spec.schema import Dataset

T = TypeVar("T")
PIXELS, TABLE, ABOUT = "pixels", "table.npy", "about.json"
DISK_PART = 0.5  # of what is free on the disk (beside what is kept already) may be used for copies
CHECKED = 64  # images a task: enough that handing it out costs nothing


@dataclass(frozen=True)
class Copy:
    """A data set's pixels as kept, and what making them found out; pixels are None where only that is kept."""

    pixels: NDArray[np.uint8] | None  # (N, H, W, C), mapped; writing to it would change this process's view only
    table: NDArray[np.void]
    about: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where copies are kept, and how many bytes all of them together may take."""

    folder: Path
    limit: int | None  # None: a part of the disk

    def of(self, key: str) -> Path:
        return self.folder / key

    def room(self) -> int:
        """Bytes that a new copy may take; OSError where nothing can be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = sum(_size(copy) for copy in _copies(self.folder))
        free = shutil.disk_usage(self.folder).free
        return min(free + held, self.limit if self.limit is not None else int(DISK_PART * (free + held)))


def place_for(spec: Dataset) -> Place | None:
    """By dataset.cache, else $JOB_CACHE_DIR, $XDG_CACHE_HOME/gpu-job or ~/.cache/gpu-job; None: nothing is kept."""
    if spec.cache is False:
        return None
    limit = None if spec.cache_limit == "auto" else spec.cache_limit
    return Place((cache_root() if spec.cache == "auto" else Path(spec.cache)) / "images", limit)


def cache_root() -> Path:
    """The folder for what may be deleted at any time: it only saves time."""
    if named := os.environ.get("JOB_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "gpu-job"


def key_of(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def find(folder: Path) -> tuple[Copy | None, str | None]:
    """The copy in `folder` if there is one and it is whole; what is wrong with it if it is not."""
    if not (folder / ABOUT).is_file():
        return None, None
    try:
        copy = _open(folder)
    except (OSError, ValueError, KeyError) as error:
        return None, f"its files cannot be read ({error})"
    bad = _damaged(copy)
    if bad:
        return None, f"{bad} of its {len(copy.table)} images do not have their checksum"
    with contextlib.suppress(OSError):
        os.utime(folder)  # used last now: the oldest goes first when room is needed
    return copy, None


@contextlib.contextmanager
def making(place: Place, key: str) -> Iterator[None]:
    """While held, no other process makes this copy. OSError where the folder cannot be written."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with (place.folder / f".{key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Maker:
    """A copy being made: `write` takes pixels in any order from any thread, `keep` makes it appear."""

    def __init__(self, place: Place, key: str, shape: Sequence[int], nbytes: int) -> None:
        self.final, self.shape = place.of(key), tuple(shape)
        self.part = place.folder / f".{key}.part"
        self.bytes_each = int(np.prod(self.shape[1:]))
        shutil.rmtree(self.part, ignore_errors=True)  # left by a process that was killed; the lock is ours
        shutil.rmtree(self.final, ignore_errors=True)  # damaged
        _make_room(place, nbytes)
        self.part.mkdir()
        self.file = os.open(self.part / PIXELS, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if nbytes:
                os.posix_fallocate(self.file, 0, nbytes)  # a disk that is too full is told now, not half-way
        except BaseException:
            self.drop()
            raise

    def write(self, number: int, image: NDArray[np.uint8]) -> None:
        written = os.pwrite(self.file, image.data, number * self.bytes_each)
        assert written == self.bytes_each

    def keep(self, table: NDArray[np.void], about: dict[str, Any]) -> Copy:
        """Nothing is forced to the disk: what a power cut tears does not have its checksum."""
        with (self.part / TABLE).open("wb") as file:
            np.save(file, table, allow_pickle=False)
        checksum = zlib.crc32(np.ascontiguousarray(table).view(np.uint8).data)
        described = {**about, "shape": list(self.shape), "table_crc32": checksum}
        (self.part / ABOUT).write_text(json.dumps(described), encoding="utf-8")
        os.close(self.file)
        self.part.replace(self.final)
        return _open(self.final)

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.file)
        shutil.rmtree(self.part, ignore_errors=True)


def forget(place: Place, identity: str) -> None:
    """Deletes copies of the same folder and settings made from other files."""
    for copy in _copies(place.folder):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((copy / ABOUT).read_text(encoding="utf-8")).get("identity") == identity:
                shutil.rmtree(copy, ignore_errors=True)


def in_parallel(task: Callable[[range], T], count: int) -> Generator[T, None, None]:
    """`task` over 0 … count − 1 in pieces, on all CPUs; results in order. Closed early, the rest is not begun."""
    pieces = [range(start, min(count, start + CHECKED)) for start in range(0, count, CHECKED)]
    pool = ThreadPoolExecutor(cpu_count())
    try:
        yield from pool.map(task, pieces)
    finally:
        pool.shutdown(cancel_futures=True)


def _open(folder: Path) -> Copy:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    table = np.load(folder / TABLE, allow_pickle=False)
    if zlib.crc32(np.ascontiguousarray(table).view(np.uint8).data) != about["table_crc32"]:
        raise ValueError("the table does not have its checksum")
    pixels = None
    if (folder / PIXELS).stat().st_size:
        # copy-on-write: the file is never changed, and torch need not warn that it cannot write
        pixels = np.asarray(np.memmap(folder / PIXELS, np.uint8, "c", shape=tuple(about["shape"])))
    return Copy(pixels, table, about)


def _damaged(copy: Copy) -> int:
    """Images whose pixels are not those that were written. What does not fit memory is read through all the same."""
    if copy.pixels is None:
        return 0
    pixels, checks, good = copy.pixels, copy.table["check"], copy.table["good"]

    def bad(piece: range) -> int:
        return sum(bool(good[k]) and zlib.crc32(pixels[k].data) != checks[k] for k in piece)

    return sum(in_parallel(bad, len(pixels)))


def _copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _size(copy: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in copy.iterdir())
    return 0


def _make_room(place: Place, nbytes: int) -> None:
    """Deletes copies, the one used longest ago first, until another of `nbytes` fits. A run that has one mapped
    keeps it."""
    copies = sorted(_copies(place.folder), key=lambda path: path.stat().st_mtime)
    held, limit = {path: _size(path) for path in copies}, place.room()
    while copies and sum(held.values()) + nbytes > limit:
        oldest = copies.pop(0)
        held.pop(oldest)
        shutil.rmtree(oldest, ignore_errors=True)
