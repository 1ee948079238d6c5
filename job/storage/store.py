"""Where results end up and mirrors come from: one small interface, and the folder that implements it."""

import importlib
import shutil
from pathlib import Path
from typing import Protocol

from job.errors import JobError, UsageError
from job.runfolder import atomic, disk_errors

STORES = {"file": "job.storage.store"}  # scheme → module with open_uri(uri) -> Store, imported on use


class Store(Protocol):
    """Files by name below one place. Names use '/', never start with it and never climb out."""

    uri: str

    def put(self, path: Path, name: str) -> None:
        """Stores the file under `name`, replacing what was there."""

    def get(self, name: str, path: Path) -> None:
        """Writes the stored bytes to `path`, whole or not at all. JobError if there is none."""

    def list(self, prefix: str = "") -> list[str]:
        """Names that start with `prefix`, sorted."""

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None:
        """Removes it; not an error if there is none."""


def open_store(uri: str) -> Store:
    """The store behind `uri`: a folder's path, or SCHEME://… for a scheme in STORES."""
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme not in STORES:
        known = "a folder" if set(STORES) == {"file"} else "a folder or " + ", ".join(f"{s}://" for s in STORES)
        raise UsageError(uri, f"this version has no store for {scheme}://", f"use {known}")
    store: Store = importlib.import_module(STORES[scheme]).open_uri(uri)
    return store


def open_uri(uri: str) -> "FolderStore":
    return FolderStore(Path(uri.removeprefix("file://")))


class FolderStore:
    """Files below a folder. Writes are atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def put(self, path: Path, name: str) -> None:
        target = self._path(name)
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, atomic(target) as file:
            shutil.copyfileobj(source, file, 2**20)

    def get(self, name: str, path: Path) -> None:
        source = self._path(name)
        if not source.is_file():
            raise JobError(f"{self.uri}/{name}", "there is no such file", "check the name and the folder")
        with source.open("rb") as stored, atomic(path) as file:
            shutil.copyfileobj(stored, file, 2**20)

    def list(self, prefix: str = "") -> list[str]:
        names = (p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(".part"))

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise JobError(f"{self.uri}/{name}", "the name leaves the store's folder", "use a plain relative name")
        return self.root.joinpath(*parts)
