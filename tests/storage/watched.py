"""A folder as a store that misbehaves on demand, and a reader who looks at it after every change."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from job.storage.store import Entry, FolderStore, StoreError

FAULTS = ("refuse", "lose the answer", "kill before", "kill after")


class Killed(BaseException):
    """The process is gone: nothing after this line happens."""


class WatchedStore(FolderStore):
    """`fault` is asked before each write and read; after each write the reader checks what a stranger would see."""

    def __init__(self, root: Path, fault: Callable[[str], str | None] = lambda _: None) -> None:
        super().__init__(root)
        self.fault = fault
        self.seen: list[str] = []  # writes and deletions, in their order

    def put(self, path: Path, name: str) -> Entry:
        with self._trouble(name):
            entry = super().put(path, name)
            self._changed(name)
        return entry

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        with self._trouble(name):
            return super().put_if(path, name, etag)

    def delete(self, name: str) -> None:
        with self._trouble(name):
            super().delete(name)
            self._changed(f"-{name}")

    def list(self, prefix: str = "") -> list[Entry]:
        with self._trouble(prefix):
            return super().list(prefix)

    def get(self, name: str, path: Path) -> None:
        with self._trouble(name):
            super().get(name, path)

    @contextmanager
    def _trouble(self, name: str) -> Iterator[None]:
        fault = self.fault(name)
        if fault == "refuse":
            raise StoreError(name, "503", "try again", final=False)
        if fault == "kill before":
            raise Killed
        yield
        if fault == "lose the answer":
            raise StoreError(name, "connection reset", "try again", final=False)
        if fault == "kill after":
            raise Killed

    def _changed(self, what: str) -> None:
        self.seen.append(what)
        assert dangling(self.root) == []


def dangling(root: Path) -> list[str]:
    """What a pointer or a manifest in the store promises and the store does not hold."""
    found = []
    pointer, manifest = root / "checkpoints/latest.json", root / "manifest.json"
    if pointer.exists():
        for entry in json.loads(pointer.read_text())["files"]:
            path = root / "checkpoints" / entry["file"]
            if not path.exists() or digest(path) != entry["sha256"]:
                found.append(f"pointer: {entry['file']}")
    if manifest.exists():
        for claim in json.loads(manifest.read_text())["files"]:
            path = root / claim["path"]
            if not path.exists() or digest(path) != claim["sha256"]:
                found.append(f"manifest: {claim['path']}")
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a run by name; the machinery beside it left out."""
    names = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {
        name.as_posix(): (root / name).read_bytes()
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    }
