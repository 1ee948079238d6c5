"""Shards as files: in the folder they are in, or streamed from a store into a cache of limited size.

    CACHE/shards/KEY/NAME    whole and verified; KEY is a data set's, the oldest of all data sets go first
                    .NAME.new, .NAME.lock    on its way, and who brings it

A shard is held against its SHA-256 before its first use in a run, whoever uses it first: worker processes are told by
shared memory. Any number of processes may share the cache; one brings a shard, the others wait. Nobody deletes a shard
whose lock is held, and who brings it opens it before letting go: so each opening brings it once at most, however small
the cache is for all that share it. A file that goes while somebody reads it stays readable until it is closed.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from job.data.kept import DISK_PART, Place
from job.data.shards_index import AGAIN, Shard
from job.errors import DataError, JobError
from job.runfolder import sha256
from job.storage.store import FolderStore, Store, StoreError, open_store

WAITS = (1, 2, 4, 8, 16, 30, 60, 60, 60, 60)  # seconds between tries, each several requests, while a store is away
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EIO)
NEVER = threading.Event()


class File:
    """An open shard, closed when nobody has it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.number, size, offset)


class ShardFiles:
    """The shards of a data set. Worker processes are forked with it."""

    def __init__(self, store: Store, shards: Sequence[Shard], place: Place | None, key: str) -> None:
        self.uri, self.shards, self.place = store.uri, shards, place
        self.local = store.root if isinstance(store, FolderStore) else None
        assert self.local is not None or place is not None
        self.folder = self.local or (place.of(key) if place is not None else Path())
        self.known = np.frombuffer(mmap.mmap(-1, len(shards)), np.uint8)  # 1: verified, in whichever process
        self.stores = {os.getpid(): store}  # a lock that another thread held when this one was forked stays locked

    def open(self, number: int, stop: threading.Event = NEVER) -> File:
        """Brings and verifies it if need be. DataError where it cannot be had; `stop` ends waiting for a store."""
        path = self.folder / self.shards[number].name
        if self.local is not None:
            return self._open_local(number, path)
        if self.known[number]:
            with contextlib.suppress(FileNotFoundError):
                return _used(path)
        with _disk_of(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(_lock_of(path)):
                self._bring(number, path, stop)
                return _used(path)

    def _open_local(self, number: int, path: Path) -> File:
        shard, where = self.shards[number], f"{self.uri}/{self.shards[number].name}"
        if not self.known[number]:
            self._verify(path, shard, where)
            self.known[number] = 1
        try:
            return File(path)
        except OSError as error:
            raise DataError(where, (error.strerror or str(error)).lower(), AGAIN) from error

    def _bring(self, number: int, path: Path, stop: threading.Event) -> None:
        shard = self.shards[number]
        if path.exists() and not self.known[number]:
            try:
                self._verify(path, shard, str(path))
            except DataError:  # left by an earlier run, damaged since: this is only a copy
                path.unlink(missing_ok=True)
        if not path.exists():
            coming = path.with_name(f".{path.name}.new")
            coming.unlink(missing_ok=True)  # left by a process that was killed
            self._make_room(shard.size, coming)
            try:
                self._download(shard, coming, stop)
                self._verify(coming, shard, f"{self.uri}/{shard.name}")
                coming.replace(path)
            except BaseException:
                coming.unlink(missing_ok=True)
                raise
        self.known[number] = 1

    def _download(self, shard: Shard, path: Path, stop: threading.Event) -> None:
        for wait in (*WAITS, None):
            try:
                self._store().get(shard.name, path)
                return
            except StoreError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK:
                    raise error.__cause__ from None  # the cache's, not the store's
                if error.final or wait is None or stop.wait(wait):
                    raise DataError(error.where, error.what, error.cure) from error

    def _verify(self, path: Path, shard: Shard, where: str) -> None:
        try:
            size = path.stat().st_size
            if size != shard.size:
                raise DataError(where, f"it has {size:,} bytes, not {shard.size:,}", AGAIN)
            found = sha256(path)
        except FileNotFoundError:
            raise DataError(where, "the shard is missing", AGAIN) from None
        except OSError as error:
            raise DataError(where, (error.strerror or str(error)).lower(), AGAIN) from error
        if found != shard.sha256:
            raise DataError(where, f"its checksum is {found}, not {shard.sha256}", AGAIN)

    def _store(self) -> Store:
        process = os.getpid()
        if process not in self.stores:
            self.stores[process] = open_store(self.uri)
        return self.stores[process]

    def _make_room(self, size: int, coming: Path) -> None:
        """Deletes the oldest until `size` fits within the limit, and keeps that room with a file of holes.

        What others are bringing stays: waiting for them could be for ever, so the limit may be passed by that much.
        """
        assert self.place is not None
        with _locked(self.place.folder / ".lock"):
            held = sorted(_held(self.place.folder), key=lambda one: one[1])
            total, limit = sum(bytes_ for _, _, bytes_ in held), limit_of(self.place)
            for path, _, bytes_ in held:
                if total + size <= limit:
                    break
                with _free(_lock_of(path)) as free:
                    if free:
                        path.unlink(missing_ok=True)
                        total -= bytes_
            coming.touch()
            os.truncate(coming, size)


def limit_of(place: Place) -> int:
    """Bytes that all shards in the cache may take together."""
    if place.limit is not None:
        return place.limit
    with _disk_of(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        held = sum(size for _, _, size in _held(place.folder))
        return int(DISK_PART * (shutil.disk_usage(place.folder).free + held))


def _held(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Shards here or on their way, what was left of one whose process was killed too: path, time of use, bytes."""
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # another process may be at it
            state = path.stat()
            unfinished = (
                path.name.endswith(".part") and (path.parent / f"{path.name.partition('.new')[0][1:]}.new").exists()
            )
            if not path.name.endswith(".lock") and not unfinished:
                yield path, state.st_mtime_ns, state.st_size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time, over all processes and threads. Unlocked before it is closed: a fork may have copied it."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextlib.contextmanager
def _free(path: Path) -> Iterator[bool]:
    """Locked while this lasts, unless somebody has it: nobody is waited for."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def _lock_of(path: Path) -> Path:
    """Of a shard, and of all that is there while it is on its way."""
    return path.with_name(f".{path.name.lstrip('.').partition('.new')[0]}.lock")


def _used(path: Path) -> File:
    """Opened, and marked as used now: others are older."""
    file = File(path)
    with contextlib.suppress(OSError):
        os.utime(file.number)
    return file


@contextlib.contextmanager
def _disk_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except JobError:
        raise
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        cure = "free some space there, lower dataset.cache_limit, or name another folder with dataset.cache"
        raise DataError(str(folder), what, cure) from error
