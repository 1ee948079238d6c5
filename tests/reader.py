"""A stranger who reads a bucket of the test server after every change: what do its pointers and manifests promise?"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.object_storage.objects import Bucket, Stored
from tests.object_storage.server import ObjectStorage


class WatchedBucket(Bucket):
    """Notes in `dangling` what a reader would have missed, and when."""

    def __init__(self, folder: Path, min_part: int) -> None:
        super().__init__(folder, min_part)
        self.dangling: list[str] = []
        self.changes: list[str] = []  # names as they are written, -names as they are deleted

    def _replace(self, stored: Stored) -> None:
        super()._replace(stored)
        self._look(stored.name)

    def delete(self, name: str, if_match: str | None) -> None:
        super().delete(name, if_match)
        with self.lock:
            self._look(f"-{name}")

    def _look(self, change: str) -> None:
        self.changes.append(change)
        for name in self.objects:
            if name.endswith("checkpoints/latest.json"):
                run = name.removesuffix("latest.json")
                promised = [(run + entry["file"], entry["sha256"]) for entry in self._json(name)["files"]]
            elif name.endswith("manifest.json"):
                run = name.removesuffix("manifest.json")
                promised = [(run + claim["path"], claim["sha256"]) for claim in self._json(name)["files"]]
            else:
                continue
            for file, digest in promised:
                if file not in self.objects or self._digest(file) != digest:
                    self.dangling.append(f"after {change}: {name} names {file}")

    def _json(self, name: str) -> Any:
        return json.loads(Path(self.objects[name].data).read_bytes())

    def _digest(self, name: str) -> str:
        return hashlib.sha256(Path(self.objects[name].data).read_bytes()).hexdigest()


def watch(server: ObjectStorage) -> WatchedBucket:
    """The server's first bucket, watched from now on."""
    name = next(iter(server.buckets))
    before = server.buckets[name]
    bucket = WatchedBucket(before.folder, before.min_part)
    server.buckets[name] = bucket
    return bucket


def stored(server: ObjectStorage, run: str) -> dict[str, bytes]:
    """Name below the run → bytes, without the machinery."""
    names = [name for name in server.objects if name.startswith(f"{run}/") and "/." not in name]
    return {name.removeprefix(f"{run}/"): server.content(name) for name in names}
