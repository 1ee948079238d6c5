"""The outbox's memory: what waits, what is stored. Lines are only ever added, so a kill costs at most the last one.

{"kind": "wait", "name": "model/best.pt", "file": "3f2a-best.pt", "size": 81920, "sha256": "…"}   a whole file on disk
{"kind": "stored", "name": "model/best.pt", "size": 81920, "sha256": "…", "etag": "…"}            verified in the store
{"kind": "drop", "name": …}   newer bytes or retention made it needless    {"kind": "lost", "name": …}   not stored
{"kind": "published", "entries": [{"file", "sha256", …}]}              what the pointer in the store names

Losing lines is safe: the run's folder is the truth, and what is not known to be stored is sent again.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from job.runfolder import atomic

ROOM = 2000  # lines beyond four times what they say before the file is written anew


@dataclass(frozen=True)
class Item:
    """A file that has to go up: its name in the store, and the snapshot that holds its bytes."""

    name: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """What the store was seen to hold under a name."""

    size: int
    sha256: str
    etag: str


class Journal:
    """Owns journal.jsonl in `folder`. Not thread-safe: the outbox has the lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.waiting: dict[str, Item] = {}
        self.stored: dict[str, Stored] = {}
        self.published: list[dict[str, Any]] = []
        self.lines = 0
        self.torn = False  # the last write did not end with its newline
        self._replay()
        with contextlib.suppress(Exception):  # on a full disk the old lines serve
            self._rewrite()

    def wait(self, item: Item) -> None:
        self._add(kind="wait", **asdict(item))

    def store(self, name: str, stored: Stored) -> None:
        self._add(kind="stored", name=name, **asdict(stored))

    def drop(self, name: str) -> None:
        self._add(kind="drop", name=name)

    def lose(self, name: str) -> None:
        self._add(kind="lost", name=name)

    def publish(self, entries: list[dict[str, Any]]) -> None:
        self._add(kind="published", entries=entries)

    def _add(self, **line: Any) -> None:
        self._apply(line)
        if self.lines > ROOM + 4 * (len(self.waiting) + len(self.stored)):
            with contextlib.suppress(Exception):
                self._rewrite()
                return
        self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        """A full disk loses the line, not the run: see above."""
        data = (b"\n" if self.torn else b"") + json.dumps(line).encode() + b"\n"
        self.torn = True
        with contextlib.suppress(OSError), self.path.open("ab", buffering=0) as file:
            self.torn = file.write(data) != len(data)
            os.fsync(file.fileno())
        self.lines += 1

    def _apply(self, line: dict[str, Any]) -> None:
        match line["kind"]:
            case "wait":
                self.waiting[line["name"]] = Item(line["name"], line["file"], line["size"], line["sha256"])
            case "stored":
                self.stored[line["name"]] = Stored(line["size"], line["sha256"], line["etag"])
            case "drop":
                self.waiting.pop(line["name"], None)
            case "lost":
                self.stored.pop(line["name"], None)
            case "published":
                self.published = list(line["entries"])

    def _replay(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        self.torn = not data.endswith(b"\n") and bool(data)
        for raw in data.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
                self._apply(json.loads(raw))

    def _rewrite(self) -> None:
        """The same knowledge in as few lines as it takes."""
        lines: list[dict[str, Any]] = [{"kind": "published", "entries": self.published}]
        lines += [{"kind": "stored", "name": name, **asdict(stored)} for name, stored in self.stored.items()]
        lines += [{"kind": "wait", **asdict(item)} for item in self.waiting.values()]
        with atomic(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self.lines, self.torn = len(lines), False
