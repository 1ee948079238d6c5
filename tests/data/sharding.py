"""Shards to test with: of a folder of small images, some of them JPEGs, made by the job's own verb."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from job.data import shards_write
from job.data.shards_index import INDEX
from job.spec.schema import Dataset

EACH = 40  # images a class, of three
SIZE = 20_000  # bytes of a shard: about 6 images of 60


def pictures(root: Path, size: tuple[int, int] = (10, 8), each: int = EACH) -> Path:
    """A folder a class."""
    generator = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        (root / label).mkdir(parents=True)
        for number in range(each):
            image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            image.save(root / label / f"{number}.{'jpg' if number % 3 else 'png'}")
    return root


def made(root: Path, destination: str, size: int = SIZE, **keys: object) -> list[str]:
    """What the verb says."""
    spec = Dataset.model_validate({"name": "image_folder", "root": str(root), **keys})
    return list(shards_write.write(spec, destination, size))


def spec(uri: str | Path, **keys: object) -> Dataset:
    return Dataset.model_validate({"name": "shards", "uri": str(uri), **keys})


def change(folder: Path, mend: Callable[[dict[str, Any]], None]) -> None:
    """The index, otherwise than it was made."""
    index = json.loads((folder / INDEX).read_text())
    mend(index)
    (folder / INDEX).write_text(json.dumps(index))
