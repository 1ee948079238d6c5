"""The outbox: brings a run's folder into a store, in an order in which a reader never sees a pointer to nothing.

The folder is the truth. `scan` takes a snapshot of every file that changed (a hard link where files are replaced
whole, a copy where they grow) and notes it in the journal; `bulk` and `live` send one file a call. So a kill at any
moment, a lost journal or another machine's work in between end the same way: what is not known to be stored is sent.

    checkpoints/latest.json   only names what is stored and verified, and what a resume needs beside it is there
    checkpoints/step-*.pt     deleted from the store only after a pointer that does not name them is verified
    manifest.json             last, once every file it names is there with its bytes

RUN/.outbox/  journal.jsonl · files/ (snapshots) · state.json and uploader.log (of `uploader`)
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.errors import JobError
from job.runfolder import OUTBOX, RunFolder, is_hidden, read_pointer
from job.storage.journal import Item, Journal, Stored
from job.storage.lease import in_memory
from job.storage.store import Entry, Store

POINTER, MANIFEST, METRICS = "checkpoints/latest.json", "manifest.json", "metrics.jsonl"
LIVE = ("status.json", "logs/job.log")  # small, and watched from outside: they do not wait behind a checkpoint
GROWING = (METRICS, "logs/job.log")  # appended to in place
BESIDE = ("spec.yaml", "model/best.pt", METRICS)  # what a checkpoint needs to go on elsewhere
SWEPT = ("checkpoints/", "plots/")  # what is there in the store and not in a complete run's folder goes
LIVE_EVERY = 15.0  # seconds between two uploads of a file that keeps changing, at least
TOGETHER = 4  # uploads at once after the end of the run
SHARE = 20.0  # … and at least this many times what the last one took


class Outbox:
    """`connect` first; then `bulk` and `live` may be called from one thread each."""

    store: Store
    guard: Callable[[], None]

    def __init__(self, folder: RunFolder, keep: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.root, self.keep, self.clock = folder.root, keep, clock
        self.files = self.root / OUTBOX / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.root / OUTBOX)
        self.lock = threading.RLock()  # of journal, seen and there; never held while the store is asked
        self.over = False  # the run has ended: nothing is held back any more
        self.seen: dict[str, tuple[int, int, int]] = {}
        self.there: set[str] = set()
        self.due: dict[str, float] = {}
        self.sweep = True  # old checkpoints may lie in the store
        self.landed: list[dict[str, Any]] = []  # stored since the last pointer, newest first, also if expired here
        self.beside: set[str] = set()  # sent for the next pointer
        self.problems: dict[str, str] = {}
        self.sent = 0  # files that went up since the start
        self._forget_snapshots()

    def connect(self, store: Store, guard: Callable[[], None]) -> None:
        """Holds the journal against the store: another machine may have gone on with this run.

        `guard` raises when the run is somebody else's by now.
        """
        self.store, self.guard = store, guard
        listed = {entry.name: entry for entry in self.store.list()}
        published = self._fetch_pointer() if POINTER in listed else []
        with self.lock:
            for name, known in list(self.journal.stored.items()):
                if not _same(listed.get(name), known):
                    self.journal.lose(name)
            for entry in published:  # verified before it was published
                name = f"checkpoints/{entry['file']}"
                if name in listed and name not in self.journal.stored:
                    there = listed[name]
                    self.journal.store(name, Stored(there.size, entry["sha256"], there.etag))
            if published != self.journal.published:
                self.journal.publish(published)
            self.seen.clear()

    def scan(self) -> None:
        """Takes in what changed in the folder, but for live files, which have their own thread."""
        named = {f"checkpoints/{entry['file']}" for entry in read_pointer(self.root / POINTER)}
        names = set()
        for path in self.root.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            if not is_hidden(name) and path.is_file() and (name in named or not _is_checkpoint(name)):
                names.add(name)
        for name in sorted(names - set(LIVE)):
            with self.lock:
                self._look(name)
        with self.lock:
            self.there = names
            for name in set(self.journal.waiting) - names:
                self._drop(name)

    def bulk(self) -> bool:
        """Sends the most urgent file that is not live, or tidies the store; False if there is nothing to do."""
        self.scan()
        local = read_pointer(self.root / POINTER)
        if (pointer := self._pointer_due(local)) is not None:
            # once each: a store that is slower than training must not wait for the newest of them for ever
            beside = [name for name in BESIDE if name in self.journal.waiting and name not in self.beside]
            return self._send_beside(beside[0]) if beside else self._publish(*pointer)
        for entry in local:
            name = f"checkpoints/{entry['file']}"
            if name in self.journal.waiting and self._is_whole(name, entry["sha256"]):
                self._send(name)
                self.landed.insert(0, entry)
                return True
        if self.sweep and self.journal.published:
            return self._sweep_checkpoints()
        others = [name for name in sorted(self.journal.waiting) if not _has_its_place(name)]
        others = [name for name in others if name != METRICS or self._is_due(name)]
        if others and self.over:  # time counts now: requests that wait for their answers do so together
            with ThreadPoolExecutor(TOGETHER) as pool:
                return all(list(pool.map(self._send, others)))
        if others:
            return self._send(others[0])
        if MANIFEST in self.journal.waiting and self.over and not self._unsent(MANIFEST):
            return self._seal()
        return False

    def live(self) -> bool:
        """Sends status or log if one changed and is due."""
        with self.lock:
            for name in LIVE:
                self._look(name)
            waiting = [name for name in LIVE if name in self.journal.waiting and self._is_due(name)]
        sealed = (self.root / MANIFEST).exists()
        if sealed:
            self.scan()
        for name in waiting:
            # a status that says complete comes after what it speaks of
            if not (sealed and name == LIVE[0] and self._unsent(MANIFEST, name)):
                return self._send(name)
        return False

    def unsent(self) -> dict[str, int]:
        """Name → bytes of what the store does not hold yet."""
        self.scan()
        with self.lock:
            for name in LIVE:
                self._look(name)
            names = self._unsent()
            return {name: self.journal.waiting[name].size if name in self.journal.waiting else 0 for name in names}

    def durable(self) -> tuple[list[str], dict[str, Any] | None, float | None]:
        """Checkpoints that are stored, the newest that the store's pointer names, and when the oldest newer one
        that is still to go was saved (Unix seconds)."""
        local = read_pointer(self.root / POINTER)
        with self.lock:
            stored = [entry["file"] for entry in local if self._is_stored(entry)]
            published = self.journal.published
        waiting = []
        for entry in local:
            if published and entry["file"] == published[0]["file"]:
                break
            waiting.append(self.root / "checkpoints" / entry["file"])
        ages = [path.stat().st_mtime for path in waiting if path.exists()]
        return stored, published[0] if published else None, min(ages, default=None)

    def _unsent(self, *but: str) -> set[str]:
        """What is missing, by name; a checkpoint that no pointer names is not missed."""
        local = read_pointer(self.root / POINTER)
        named = {f"checkpoints/{entry['file']}" for entry in local}
        with self.lock:
            names = {name for name in self.journal.waiting if name in named or not _is_checkpoint(name)}
            names -= {POINTER}
            names |= {POINTER} if self._pointer_due(local) is not None else set()
        return names - set(but)

    def _look(self, name: str) -> None:
        """One file: a snapshot and a line in the journal if the store does not hold these bytes."""
        path = self.root / name
        try:
            status = path.stat()
            key = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self.seen.get(name) == key:
                return
            snapshot = self._snapshot(path, name)
        except FileNotFoundError:  # retention was faster
            return
        with snapshot.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.seen[name] = key
        known, waiting = self.journal.stored.get(name), self.journal.waiting.get(name)
        if known is not None and known.sha256 == digest:
            snapshot.unlink()
            self._drop(name)
        elif waiting is not None and waiting.sha256 == digest:
            snapshot.unlink()
        else:
            self.journal.wait(Item(name, snapshot.name, snapshot.stat().st_size, digest))
            if waiting is not None:
                self._unlink(waiting)

    def _snapshot(self, path: Path, name: str) -> Path:
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

    def _send_beside(self, name: str) -> bool:
        self._send(name)
        self.beside.add(name)
        return True

    def _send(self, name: str) -> bool:
        with self.lock:
            item = self.journal.waiting.get(name)
        if item is None:  # dropped meanwhile
            return True
        rest = [entry for entry in self.journal.published if f"checkpoints/{entry['file']}" != name]
        if rest != self.journal.published:  # other bytes under a name that readers are being sent to
            self._publish(rest, None)
        began = self.clock()
        entry = self.store.put(self.files / item.file, name)
        took = self.clock() - began
        with self.lock:
            self.sent += 1
            self.due[name] = self.clock() + max(LIVE_EVERY, SHARE * took)
            self.journal.store(name, Stored(item.size, item.sha256, entry.etag))
            if self.journal.waiting.get(name) == item:
                self._drop(name)
            else:
                self._unlink(item)
        return True

    def _pointer_due(self, local: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Item | None] | None:
        """What the store's pointer should name now, and the file that says exactly this; None if it does."""
        with self.lock:
            self._look(POINTER)
            item, published = self.journal.waiting.get(POINTER), self.journal.published
            if not local:
                return None
            if all(self._is_stored(entry) for entry in local):
                exact = POINTER in self.journal.stored and item is None and published == local
                return None if exact or item is None else (local, item)
            names = [entry["file"] for entry in local]
            landed = [entry for entry in self.landed if entry["file"] not in names]
            names += [entry["file"] for entry in landed]
            older = [*landed, *(entry for entry in published if entry["file"] not in names)]
            known = [entry for entry in [*local, *older] if self._is_stored(entry)][: self.keep]
            return (known, None) if known and known != published else None

    def _publish(self, entries: list[dict[str, Any]], item: Item | None) -> bool:
        """Puts the pointer: the run's own file, or one that names the part of it that is stored."""
        self.guard()
        if item is not None:
            stored = self.store.put(self.files / item.file, POINTER)
            digest, size = item.sha256, item.size
        else:
            content = (json.dumps({"files": entries}, indent=2) + "\n").encode()
            with in_memory(content) as path:
                stored = self.store.put(path, POINTER)
            digest, size = hashlib.sha256(content).hexdigest(), len(content)
        with self.lock:
            self.journal.store(POINTER, Stored(size, digest, stored.etag))
            self.journal.publish(entries)
            self.sweep, self.landed, self.beside = True, [], set()
            if item is not None and self.journal.waiting.get(POINTER) == item:
                self._drop(POINTER)
        return True

    def _sweep_checkpoints(self) -> bool:
        """Deletes from the store what its pointer does not name: retention, and leftovers of a kill."""
        self.guard()
        named = {f"checkpoints/{entry['file']}" for entry in self.journal.published}
        for entry in self.store.list("checkpoints/"):
            if _is_checkpoint(entry.name) and entry.name not in named:
                self.store.delete(entry.name)
                with self.lock:
                    self.journal.lose(entry.name)
                    self.seen.pop(entry.name, None)
        self.sweep = False
        return True

    def _seal(self) -> bool:
        """The manifest, once the store was seen to hold every file as it is, and nothing that is none of the run's."""
        self.guard()
        listed = {entry.name: entry for entry in self.store.list()}
        with self.lock:
            wrong = [
                name for name in self.there - {MANIFEST} if not _same(listed.get(name), self.journal.stored.get(name))
            ]
            for name in wrong:
                self.journal.lose(name)
                self.seen.pop(name, None)
        if wrong:
            where = f"{self.store.uri}/{wrong[0]}"
            raise JobError(where, "the store does not hold what was verified there", "it is sent again")
        claims = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))["files"]
        for claim in claims:
            known = self.journal.stored.get(claim["path"])
            if known is None or known.sha256 != claim["sha256"]:
                where = f"{self.root}/{claim['path']}"
                raise JobError(where, "it is not what manifest.json says", "put the file back, then run upload again")
        for name in sorted(set(listed) - self.there):
            if name.startswith(SWEPT):
                self.store.delete(name)
        return self._send(MANIFEST)

    def _is_stored(self, entry: dict[str, Any]) -> bool:
        known = self.journal.stored.get(f"checkpoints/{entry['file']}")
        return known is not None and known.sha256 == entry["sha256"]

    def _is_whole(self, name: str, digest: str) -> bool:
        if self.journal.waiting[name].sha256 == digest:
            self.problems.pop(name, None)
            return True
        self.problems[name] = f"{self.root}/{name}: its SHA-256 is not the one that was written; it is not uploaded"
        return False

    def _is_due(self, name: str) -> bool:
        return self.over or self.clock() >= self.due.get(name, 0.0)

    def _drop(self, name: str) -> None:
        item = self.journal.waiting.get(name)
        if item is not None:
            self.journal.drop(name)
            self._unlink(item)

    def _unlink(self, item: Item) -> None:
        (self.files / item.file).unlink(missing_ok=True)

    def _forget_snapshots(self) -> None:
        """After a kill: snapshots that no line names, and lines whose snapshot is gone."""
        for name, item in list(self.journal.waiting.items()):
            if not (self.files / item.file).is_file():
                self.journal.drop(name)
        kept = {item.file for item in self.journal.waiting.values()}
        for path in self.files.iterdir():
            if path.name not in kept:
                path.unlink()

    def _fetch_pointer(self) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "latest.json"
            self.store.get(POINTER, path)
            return read_pointer(path)


def _same(entry: Entry | None, known: Stored | None) -> bool:
    return entry is not None and known is not None and (entry.size, entry.etag) == (known.size, known.etag)


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/") and name.endswith(".pt")


def _has_its_place(name: str) -> bool:
    """Not just any file: sent at a time of its own."""
    return name in (POINTER, MANIFEST, *LIVE) or _is_checkpoint(name)
