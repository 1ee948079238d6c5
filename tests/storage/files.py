"""Files that tests put into a store and take out again."""

import os
from pathlib import Path

from job.storage.store import Store

SMALL, LARGE = os.urandom(700), os.urandom(7_300)  # one request, and eight parts


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def back(store: Store, name: str, folder: Path) -> bytes:
    """What the store gives back; nothing is left beside it."""
    store.get(name, folder / "back")
    assert [path.name for path in folder.iterdir() if path.name.endswith(".part")] == []
    return (folder / "back").read_bytes()
