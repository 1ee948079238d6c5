"""One writer a run: an object with an expiry, written with conditions, renewed by the uploader.

A lease is over when its holder let go of it, when its process is gone (told on the same machine at once), or when
it was not renewed for TTL seconds. Clocks of two machines are compared with a margin only: else a lease counts as
expired after it was watched for TTL seconds by one clock and did not change.
"""

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from job.storage.store import Entry, Store, StoreError

NAME = ".lease.json"
TTL = 60.0  # seconds
LOOK_EVERY = 2.0  # seconds between two looks at somebody else's lease
SKEW = 600.0  # seconds two clocks may differ: Object Storage refuses requests that are 300 off its own


class LeaseError(StoreError):
    """Somebody else writes this run."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what, "wait for that run, stop it, or use another --run-id", final=True)


class Lease:
    """`held` from `acquire` to `release`, or until somebody else took it over."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.clock = store, clock
        self.id = secrets.token_hex(8)
        self.etag: str | None = None
        self.renewed = 0.0
        self.wait: Callable[[float], None] = time.sleep
        self.lock = threading.Lock()  # one renewal at a time: a second would find another's etag, its own

    @property
    def held(self) -> bool:
        return self.etag is not None

    def acquire(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Returns with the lease held. LeaseError when somebody else holds it and is alive."""
        self.wait = wait
        first: Entry | None = None
        since = self.clock()
        while not self._put(None):
            there = self.store.head(NAME)
            if there is None:
                continue
            other = self._read() or {}
            if other.get("id") == self.id:  # an answer was lost, not the request
                self._hold(there)
                return
            if first is None:
                first = there
            if there.etag != first.etag or _lives(other):
                raise LeaseError(self._where(), f"another process writes this run ({_holder(other)})")
            if self.clock() - since >= TTL or _dead(other) or _expired(other):
                if self._put(there.etag):
                    return
                first = None
            else:
                wait(LOOK_EVERY)

    def renew(self) -> None:
        """Keeps it, when a third of its time is over. LeaseError when it is somebody else's by now."""
        with self.lock:
            self._renew()

    def release(self) -> None:
        if self.held and (self._read() or {}).get("id") == self.id:
            self.store.delete(NAME)
        self.etag = None

    def _renew(self) -> None:
        if not self.held:
            raise LeaseError(self._where(), "this process does not hold the run any more")
        if self.clock() - self.renewed < TTL / 3 or self._put(self.etag):
            return
        there = self.store.head(NAME)
        if there is None and self._put(None):  # removed by hand
            return
        other = self._read()
        if other is None:  # damaged on its way, perhaps by our own hand: whoever holds it renews it
            self.acquire(self.wait)
        elif other.get("id") == self.id and there is not None:
            self._hold(there)
        else:
            self.etag = None
            raise LeaseError(self._where(), f"another process took this run over ({_holder(other)})")

    def _put(self, etag: str | None) -> bool:
        """One conditional write of a lease in our name."""
        at = self.clock()
        with in_memory(json.dumps({"id": self.id, "time": time.time(), "ttl": TTL, **_me()}).encode()) as path:
            entry = self.store.put_if(path, NAME, etag)
        if entry is not None:
            self.etag, self.renewed = entry.etag, at
        return entry is not None

    def _hold(self, entry: Entry) -> None:
        self.etag, self.renewed = entry.etag, self.clock()

    def _read(self) -> dict[str, Any] | None:
        """What is there; None if that is no lease, or cannot be read."""
        with scratch() as folder:
            path = folder / NAME
            try:
                self.store.get(NAME, path)
                content = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, StoreError):
                return None
        return content if isinstance(content, dict) else None

    def _where(self) -> str:
        return f"{self.store.uri}/{NAME}"


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[Path]:
    """A path that holds `content` and takes no disk: a full one must not stand in the way of what goes up."""
    descriptor = os.memfd_create(NAME)
    try:
        os.write(descriptor, content)
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what is read, in memory where there is one: see above."""
    memory = Path("/dev/shm")  # noqa: S108
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


def _me() -> dict[str, Any]:
    """Who holds it, so that the same machine can tell whether the process still lives."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _holder(other: dict[str, Any]) -> str:
    return f"host {other.get('host', 'unknown')}, process {other.get('pid', 'unknown')}"


def _lives(other: dict[str, Any]) -> bool:
    """True if the holder is a process of this machine that still runs."""
    known = other.get("machine") == _machine() and other.get("started") is not None
    return known and _started(other.get("pid")) == other["started"]


def _dead(other: dict[str, Any]) -> bool:
    """True if the holder ran under this kernel, in our process namespace, and does not any more."""
    if other.get("machine") != _machine() or _machine() is None:
        return False
    return _started(other.get("pid")) != other.get("started")


def _expired(other: dict[str, Any]) -> bool:
    written, ttl = other.get("time"), other.get("ttl")
    if not isinstance(written, int | float) or not isinstance(ttl, int | float):
        return False
    return time.time() - written > ttl + SKEW


def _machine() -> str | None:
    """This boot of this kernel and the namespace of our process ids; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: object) -> str | None:
    """When the process started, in the kernel's ticks: a number reused is not the same process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]  # 22nd field of proc(5)'s stat
