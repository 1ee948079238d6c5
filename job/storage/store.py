"""Where results end up and mirrors come from: one small interface, and the folder that implements it."""

import contextlib
import errno
import fcntl
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from job.errors import JobError, UsageError
from job.runfolder import atomic, disk_errors

# scheme → module with open_uri(uri, timeout) -> Store, imported on use
STORES = {"file": "job.storage.store", "oci": "job.storage.object_storage"}
TIMEOUT = 60.0  # seconds without a byte after which a request is given up
LOCK = ".lock"  # beside the files, never one of them
NEVER_BETTER = (errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Entry:
    """One stored file. `etag` changes whenever the file is written again, with the same bytes too."""

    name: str
    size: int
    etag: str


class StoreError(JobError):
    """A store refused, failed or lied. `final`: the same request would fail again, so nobody should retry it."""

    def __init__(self, where: str, what: str, cure: str, *, final: bool) -> None:
        super().__init__(where, what, cure)
        self.final = final


class Store(Protocol):
    """Files by name below one place. Names use '/', never start with it and never climb out.

    Every method raises StoreError when the store fails, after the retries it finds worth while.
    """

    uri: str

    def put(self, path: Path, name: str) -> Entry:
        """Stores the file under `name`, replacing what was there; returns once what is stored is verified."""

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        """The same in one atomic step, only if `name` is absent (None) or still has this etag; None if it is not."""

    def get(self, name: str, path: Path) -> None:
        """Writes the stored bytes to `path`, whole and verified or not at all. StoreError if there is none."""

    def head(self, name: str) -> Entry | None:
        """What is stored under `name`, or None."""

    def list(self, prefix: str = "") -> list[Entry]:
        """Everything whose name starts with `prefix`, sorted by name."""

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None:
        """Removes it; not an error if there is none."""


def open_store(uri: str, timeout: float = TIMEOUT) -> Store:
    """The store behind `uri`: a folder's path, or SCHEME://… for a scheme in STORES."""
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme not in STORES:
        known = "a folder" if set(STORES) == {"file"} else "a folder or " + ", ".join(f"{s}://" for s in STORES)
        raise UsageError(uri, f"this version has no store for {scheme}://", f"use {known}")
    store: Store = importlib.import_module(STORES[scheme]).open_uri(uri, timeout)
    return store


def unfinished(path: Path) -> tuple[Path, Path]:
    """Beside `path`, what a `get` that was cut off may have left: the bytes, and a note of which of them are there."""
    return path.with_name(f".{path.name}.get.part"), path.with_name(f".{path.name}.journal.part")


def open_uri(uri: str, _timeout: float = TIMEOUT) -> "FolderStore":
    return FolderStore(Path(uri.removeprefix("file://")))


class FolderStore:
    """Files below a folder. Writes are atomic; those with a condition hold a lock from the look to the rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def put(self, path: Path, name: str) -> Entry:
        entry = self._write(path, name, lambda _: True)
        assert entry is not None
        return entry

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        return self._write(path, name, lambda there: (None if there is None else there.etag) == etag)

    def get(self, name: str, path: Path) -> None:
        source = self._path(name)
        if not source.is_file():
            where = f"{self.uri}/{name}"
            raise StoreError(where, "there is no such file", "check the name and the folder", final=True)
        with refusals(path), source.open("rb") as stored, atomic(path, "") as file:
            shutil.copyfileobj(stored, file, 2**20)

    def head(self, name: str) -> Entry | None:
        path = self._path(name)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(name, status.st_size, _etag(status)) if path.is_file() else None

    def list(self, prefix: str = "") -> list[Entry]:
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        names = [path.relative_to(self.root).as_posix() for path in start.rglob("*") if _is_content(path)]
        found = [self.head(name) for name in sorted(names) if name.startswith(prefix)]
        return [entry for entry in found if entry is not None]

    def exists(self, name: str) -> bool:
        return self.head(name) is not None

    def delete(self, name: str) -> None:
        path = self._path(name)
        if path.exists():
            with refusals(path, "store.uri"), self._locked():
                path.unlink(missing_ok=True)

    def _write(self, path: Path, name: str, wanted: Callable[[Entry | None], bool]) -> Entry | None:
        """Copies, then takes the lock, asks `wanted` about what is there now, and renames; copying may take long."""
        target = self._path(name)
        with contextlib.suppress(_UnwantedError), contextlib.ExitStack() as stack, refusals(target, "store.uri"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _readable(path) as source, atomic(target, "store.uri") as file:
                shutil.copyfileobj(source, file, 2**20)
                file.flush()
                now = time.time_ns()  # finer than the clock of most file systems, so that etags differ
                os.utime(file.fileno(), ns=(now, now))
                stack.enter_context(self._locked())
                if not wanted(self.head(name)):
                    raise _UnwantedError
            return self.head(name)
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, over all processes; the lock goes with its process."""
        with (self.root / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            where = f"{self.uri}/{name}"
            raise StoreError(where, "the name leaves the store's folder", "use a plain relative name", final=True)
        return self.root.joinpath(*parts)


class _UnwantedError(Exception):
    """Leaves a write before its rename."""


def _readable(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(
            str(path), f"it cannot be read ({error.strerror})", "see what removed it", final=True
        ) from error


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_content(path: Path) -> bool:
    return path.name != LOCK and not path.name.endswith(".part") and path.is_file()


@contextlib.contextmanager
def refusals(path: Path, setting: str = "") -> Iterator[None]:
    """The operating system's refusals as StoreErrors; those that time may mend are not final."""
    try:
        with disk_errors(path, setting):
            yield
    except JobError as error:
        number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        if isinstance(error, StoreError) or number is None:
            raise
        raise StoreError(error.where, error.what, error.cure, final=number in NEVER_BETTER) from error.__cause__
