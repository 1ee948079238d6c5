"""What has to go up, held fast: a snapshot of each file that changed, noted in the journal.

A hard link where files are replaced whole, so that it takes no second place on the disk and retention cannot remove
what is being sent; a copy where files grow.
"""

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.runfolder import OUTBOX, files_of, is_hidden, read_pointer
from job.storage.journal import Item, Journal

POINTER, METRICS, LOG = "checkpoints/latest.json", "metrics.jsonl", "logs/job.log"
GROWING = (METRICS, LOG)  # appended to in place


class Snapshots:
    """Owns .outbox/files and the journal. `lock` is for both, and is never held while a store is asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / OUTBOX / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(root / OUTBOX)
        self.lock = threading.RLock()
        self.scanning = threading.Lock()  # one at a time: what an older list lacks may have come since
        self.seen: dict[str, tuple[int, int, int]] = {}
        self.there: set[str] = set()  # names in the folder, as of the last scan
        self.busy: set[str] = set()  # snapshots that are being sent
        self._forget()

    def scan(self, apart: tuple[str, ...]) -> None:
        """Takes in what changed in the folder, but for `apart`, which has its own thread."""
        with self.scanning:
            self._scan(apart)

    def _scan(self, apart: tuple[str, ...]) -> None:
        entries = read_pointer(self.root / POINTER)
        named = {f"checkpoints/{one['file']}" for entry in entries for one in files_of(entry)}
        names = set()
        for path in self.root.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            if not is_hidden(name) and path.is_file() and (name in named or not is_checkpoint(name)):
                names.add(name)
        for name in sorted(names - set(apart)):
            with self.lock:
                self.look(name)
        with self.lock:
            self.there = names
            for name in set(self.journal.waiting) - names:
                if is_checkpoint(name) or not (self.root / name).exists():  # it may have come since they were listed
                    self.drop(name)
                    self.seen.pop(name, None)

    def look(self, name: str) -> None:
        """One file: a snapshot and a line in the journal if the store does not hold these bytes."""
        path = self.root / name
        try:
            status = path.stat()
            key = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self.seen.get(name) == key:
                return
            snapshot = self._take(path, name)
        except FileNotFoundError:  # retention was faster
            return
        with snapshot.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.seen[name] = key
        known, waiting = self.journal.stored.get(name), self.journal.waiting.get(name)
        if known is not None and known.sha256 == digest:
            snapshot.unlink()
            self.drop(name)
        elif waiting is not None and waiting.sha256 == digest:
            snapshot.unlink()
        else:
            self.journal.wait(Item(name, snapshot.name, snapshot.stat().st_size, digest))
            if waiting is not None:
                self._unlink(waiting)

    def drop(self, name: str) -> None:
        item = self.journal.waiting.get(name)
        if item is not None:
            self.journal.drop(name)
            self._unlink(item)

    @contextmanager
    def sending(self, item: Item) -> Iterator[Path]:
        """Its bytes, which stay as they are and where they are until this ends."""
        with self.lock:
            self.busy.add(item.file)
        try:
            yield self.files / item.file
        finally:
            with self.lock:
                self.busy.discard(item.file)
                if self.journal.waiting.get(item.name) != item:
                    self._unlink(item)

    def _take(self, path: Path, name: str) -> Path:
        snapshot = self.files / f"{secrets.token_hex(6)}-{path.name}"
        try:
            if name in GROWING:
                shutil.copyfile(path, snapshot)
            else:
                os.link(path, snapshot)
        except FileNotFoundError:
            raise
        except OSError:  # no room for a copy, or no hard links here: the other way
            snapshot.unlink(missing_ok=True)
            if name in GROWING:
                os.link(path, snapshot)
            else:
                shutil.copyfile(path, snapshot)
        return snapshot

    def _unlink(self, item: Item) -> None:
        if item.file in self.busy:  # by whoever is sending it
            return
        (self.files / item.file).unlink(missing_ok=True)

    def _forget(self) -> None:
        """After a kill: snapshots that no line names, and lines whose snapshot is gone."""
        for name, item in list(self.journal.waiting.items()):
            if not (self.files / item.file).is_file():
                self.journal.drop(name)
        kept = {item.file for item in self.journal.waiting.values()}
        for path in self.files.iterdir():
            if path.name not in kept:
                path.unlink()


def is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/") and name.endswith(".pt")
