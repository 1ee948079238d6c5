"""The outbox: brings a run's folder into a store, in an order in which a reader never sees a pointer to nothing.

The folder is the truth. `scan` takes a snapshot of every file that changed (a hard link where files are replaced
whole, a copy where they grow) and notes it in the journal; `bulk` and `live` send one file a call. So a kill at any
moment, a lost journal or another machine's work in between end the same way: what is not known to be stored is sent.

    checkpoints/latest.json   only names what is stored and verified, and what a resume needs beside it is there
    checkpoints/step-*.pt     deleted from the store only after a pointer that does not name them is verified; what a
                              disk that ran short gave up before `keep` did stays until the run is complete
    manifest.json             last, once every file it names is there with its bytes

RUN/.outbox/  journal.jsonl · files/ (snapshots) · state.json and uploader.log (of `uploader`)
"""

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from job.errors import JobError
from job.runfolder import RunFolder, files_of, place, read_pointer
from job.storage.journal import Item, Stored
from job.storage.lease import in_memory, scratch
from job.storage.snapshots import LOG, METRICS, POINTER, Snapshots, is_checkpoint
from job.storage.store import Entry, Store, StoreError

MANIFEST = "manifest.json"
LIVE = ("status.json", LOG)  # small, and watched from outside: they do not wait behind a checkpoint
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
        self.snapshots = Snapshots(self.root)
        self.journal, self.lock = self.snapshots.journal, self.snapshots.lock
        self.over = False  # the run has ended: nothing is held back any more
        self.due: dict[str, float] = {}
        self.sweep = True  # old checkpoints may lie in the store
        self.landed: list[dict[str, Any]] = []  # stored since the last pointer, newest first, also if expired here
        self.beside: set[str] = set()  # sent for the next pointer
        self.problems: dict[str, str] = {}
        self.sending: str | None = None  # by the bulk lane
        self.refusals: dict[str, StoreError] = {}
        self.sent = 0  # files that went up since the start

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
            for one in (one for entry in published for one in files_of(entry)):  # verified before it was published
                name = f"checkpoints/{one['file']}"
                if name in listed and name not in self.journal.stored:
                    there = listed[name]
                    self.journal.store(name, Stored(there.size, one["sha256"], there.etag))
            if published != self.journal.published:
                self.journal.publish(published)
            self.snapshots.seen.clear()

    def scan(self) -> None:
        self.snapshots.scan(apart=LIVE)

    def bulk(self) -> bool:
        """Sends the most urgent file that is not live, or tidies the store; False if there is nothing to do.

        A file that the store refuses for good does not stand in the way of the others; it is told when they are done.
        """
        try:
            return self._bulk()
        except StoreError as error:
            if not error.final or self.sending is None:
                raise
            self.refusals[self.sending] = error
            return True

    def _bulk(self) -> bool:
        self.sending = None
        self.scan()
        local = read_pointer(self.root / POINTER)
        if (pointer := self._pointer_due(local)) is not None:
            # once each: a store that is slower than training must not wait for the newest of them for ever
            beside = [name for name in BESIDE if self._can_go(name) and name not in self.beside]
            return self._send_beside(beside[0]) if beside else self._publish(*pointer)
        for owner, one in [(entry, one) for entry in local for one in files_of(entry)]:
            name = f"checkpoints/{one['file']}"
            if self._can_go(name) and self._is_whole(name, one["sha256"]):
                self._send(name)
                if self._is_stored(owner):  # with all its parts
                    self.landed.insert(0, owner)
                return True
        others = [name for name in sorted(self.journal.waiting) if self._can_go(name) and not _has_its_place(name)]
        others = [name for name in others if name != METRICS or self._is_due(name)]
        if others and self.over:  # time counts now: requests that wait for their answers do so together
            return self._send_all(others)
        if others:
            return self._send(others[0])
        if self.sweep and self.journal.published:  # a store that will not delete holds up the manifest, no more
            return self._sweep_checkpoints()
        if MANIFEST in self.journal.waiting and self.over and not self._unsent(MANIFEST):
            return self._seal()
        if self.refusals:
            raise self.refusals.pop(next(iter(self.refusals)))  # the next call tries it again
        return False

    def live(self) -> bool:
        """Sends status or log if one changed and is due."""
        with self.lock:
            for name in LIVE:
                self.snapshots.look(name)
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
                self.snapshots.look(name)
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
        named = _named(local)
        with self.lock:
            known = set(self.journal.waiting) | (self.snapshots.there - set(self.journal.stored))
            names = {name for name in known if name in named or not is_checkpoint(name)}
            names -= {POINTER}
            names |= {POINTER} if self._pointer_due(local) is not None else set()
        return names - set(but)

    def _send_all(self, names: list[str]) -> bool:
        with ThreadPoolExecutor(TOGETHER) as pool:
            futures = {name: pool.submit(self._send, name) for name in names}
        self.sending = None
        for name, future in futures.items():
            error = future.exception()
            if isinstance(error, StoreError) and error.final:
                self.refusals[name] = error
            elif error is not None:
                raise error
        return True

    def _send_beside(self, name: str) -> bool:
        self._send(name)
        self.beside.add(name)
        return True

    def _send(self, name: str) -> bool:
        if name not in LIVE:
            self.sending = name
        with self.lock:
            item = self.journal.waiting.get(name)
        if item is None:  # dropped meanwhile
            return True
        rest = [entry for entry in self.journal.published if name not in _named([entry])]
        if rest != self.journal.published:  # other bytes under a name that readers are being sent to
            self._publish(rest, None)
        began = self.clock()
        with self.snapshots.sending(item) as path:
            entry = self.store.put(path, name)
        took = self.clock() - began
        with self.lock:
            self.sent += 1
            self.due[name] = self.clock() + max(LIVE_EVERY, SHARE * took)
            self.journal.store(name, Stored(item.size, item.sha256, entry.etag))
            if self.journal.waiting.get(name) == item:
                self.snapshots.drop(name)
        return True

    def _pointer_due(self, local: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Item | None] | None:
        """What the store's pointer should name now, and the file that says exactly this; None if it does."""
        with self.lock:
            self.snapshots.look(POINTER)
            item, published = self.journal.waiting.get(POINTER), self.journal.published
            if not local:
                return None
            if all(self._is_stored(entry) for entry in local):
                if older := self._older(local):
                    return None if [*local, *older] == published else ([*local, *older], None)
                # the file may have been replaced since `local` was read: then the next round takes it in
                same = item is not None and read_pointer(self.snapshots.files / item.file) == local
                return (local, item) if same else None
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
            with self.snapshots.sending(item) as path:
                stored = self.store.put(path, POINTER)
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
                self.snapshots.drop(POINTER)
        return True

    def _sweep_checkpoints(self) -> bool:
        """Deletes from the store what its pointer does not name: retention, and leftovers of a kill."""
        self.guard()
        named = _named(self.journal.published)
        for entry in self.store.list("checkpoints/"):
            if is_checkpoint(entry.name) and entry.name not in named:
                self.store.delete(entry.name)
                with self.lock:
                    self.journal.lose(entry.name)
                    self.snapshots.seen.pop(entry.name, None)
        self.sweep = False
        return True

    def _seal(self) -> bool:
        """The manifest, once the store was seen to hold every file as it is, and nothing that is none of the run's."""
        self.guard()
        listed = {entry.name: entry for entry in self.store.list()}
        with self.lock:
            stored, names = self.journal.stored, sorted(self.snapshots.there - {MANIFEST})
            wrong = [name for name in names if not _same(listed.get(name), stored.get(name))]
            for name in wrong:
                self.journal.lose(name)
                self.snapshots.seen.pop(name, None)
        if wrong:
            where = f"{self.store.uri}/{wrong[0]}"
            raise JobError(where, "the store does not hold what was verified there", "it is sent again")
        claims = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))["files"]
        for claim in claims:
            known = self.journal.stored.get(claim["path"])
            if known is None or known.sha256 != claim["sha256"]:
                where = f"{self.root}/{claim['path']}"
                raise JobError(where, "it is not what manifest.json says", "put the file back, then run upload again")
        for name in sorted(set(listed) - self.snapshots.there):
            if name.startswith(SWEPT):
                self.store.delete(name)
        return self._send(MANIFEST)

    def _older(self, local: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the store still has of the `keep` newest, and the folder has not. A manifest names the folder's own."""
        if (self.root / MANIFEST).exists():
            return []
        older = [entry for entry in self.journal.published if place(entry) < place(local[-1])]
        return [entry for entry in older if self._is_stored(entry)][: max(0, self.keep - len(local))]

    def _is_stored(self, entry: dict[str, Any]) -> bool:
        known = [(self.journal.stored.get(f"checkpoints/{one['file']}"), one["sha256"]) for one in files_of(entry)]
        return all(one is not None and one.sha256 == digest for one, digest in known)

    def _can_go(self, name: str) -> bool:
        return name in self.journal.waiting and name not in self.refusals

    def _is_whole(self, name: str, digest: str) -> bool:
        if self.journal.waiting[name].sha256 == digest:
            self.problems.pop(name, None)
            return True
        self.problems[name] = f"{self.root}/{name}: its SHA-256 is not the one that was written; it is not uploaded"
        return False

    def _is_due(self, name: str) -> bool:
        return self.over or self.clock() >= self.due.get(name, 0.0)

    def _fetch_pointer(self) -> list[dict[str, Any]]:
        with scratch() as folder:
            path = folder / "latest.json"
            self.store.get(POINTER, path)
            return read_pointer(path)


def _same(entry: Entry | None, known: Stored | None) -> bool:
    return entry is not None and known is not None and (entry.size, entry.etag) == (known.size, known.etag)


def _named(entries: list[dict[str, Any]]) -> set[str]:
    """The files that a pointer of these entries sends readers to."""
    return {f"checkpoints/{one['file']}" for entry in entries for one in files_of(entry)}


def _has_its_place(name: str) -> bool:
    """Not just any file: sent at a time of its own."""
    return name in (POINTER, MANIFEST, *LIVE) or is_checkpoint(name)
