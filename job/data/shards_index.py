"""What shards are there and what is in them: index.json and samples.npy, beside the shards.

    URI/index.json           this, and the SHA-256 of every other file; written last
        samples.npy          of each image: where it lies in its shard, and its label
        train-000000.tar     webdataset's format: 000000000.jpg, 000000000.cls, 000000001.jpg, …
        validation-000000.tar, test-000000.tar, …

A sample's place in the table is its number, so that a data set of millions is an array of 12 bytes each, and any
image is one read at a known place of a file.
"""

import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from job.errors import DataError, JobError
from job.storage.store import Store

INDEX, TABLE = "index.json", "samples.npy"
ROW = np.dtype([("offset", "<u4"), ("size", "<u4"), ("label", "<u4")])
PARTS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")  # their order in the table
MAKE = "make the shards with `python -m job shard SPEC DEST`, and name DEST in dataset.uri"
AGAIN = "copy the shards again, or make them anew"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Stored(BaseModel):
    """A file beside the index."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    size: Annotated[int, Field(ge=1, lt=2**32)]
    sha256: Sha256


class Shard(Stored):
    """One with so many images."""

    images: Annotated[int, Field(ge=1)]


class Index(BaseModel):
    """index.json."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal["gpu-job shards 1"]
    classes: Annotated[list[str], Field(min_length=2)]
    size: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    """Width and height, where all images have the same."""
    differ: str
    """Where they have not: two images and their sizes, in words."""
    grey: bool
    """Whether every image is."""
    resize: int | None
    """dataset.resize when mean and std were measured."""
    mean: list[float]
    std: list[float]
    leaked: Annotated[int, Field(ge=0)]
    """Test images that are pixel for pixel among the training images."""
    table: Stored
    train: Annotated[list[Shard], Field(min_length=1)]
    validation: list[Shard]
    test: Annotated[list[Shard], Field(min_length=1)]

    @property
    def shards(self) -> list[Shard]:
        return [*self.train, *self.validation, *self.test]


@dataclass(frozen=True)
class Listed:
    """An index with its table, whole and checked."""

    index: Index
    table: NDArray[np.void]
    shard: NDArray[np.int32]  # of each image: its shard's place in index.shards
    sha256: str  # of index.json, which names everything else by its own

    def places(self, part: Literal["train", "validation", "test"]) -> NDArray[np.int64]:
        """Of a split's images in the table."""
        counts = [sum(shard.images for shard in getattr(self.index, name)) for name in PARTS]
        end = sum(counts[: PARTS.index(part) + 1])
        return np.arange(end - counts[PARTS.index(part)], end)


def read(store: Store) -> Listed:
    """DataError in one line for whatever is missing, damaged or contradicts itself."""
    where = f"{store.uri}/{INDEX}"
    content = _content(store, INDEX)
    try:
        index = Index.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(where, f"it is no index of shards ({f'{key}: ' if key else ''}{first['msg']})", MAKE) from error
    table = _table(store, index)
    images = [shard.images for shard in index.shards]
    if sum(images) != len(table):
        raise DataError(where, f"its shards have {sum(images):,} images, its table {len(table):,}", AGAIN)
    shard = np.repeat(np.arange(len(images), dtype=np.int32), images)
    _check(where, index, table, shard)
    return Listed(index, table, shard, hashlib.sha256(content).hexdigest())


def _content(store: Store, name: str) -> bytes:
    """A small file's."""
    where = f"{store.uri}/{name}"
    try:
        if not store.exists(name):
            raise DataError(where, "there is no such file", MAKE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            store.get(name, path)
            return path.read_bytes()
    except DataError:
        raise
    except JobError as error:
        raise DataError(error.where, error.what, error.cure) from error


def _table(store: Store, index: Index) -> NDArray[np.void]:
    content = _content(store, index.table.name)
    found = hashlib.sha256(content).hexdigest()
    if found != index.table.sha256:
        what = f"its checksum is {found}, not {index.table.sha256}"
        raise DataError(f"{store.uri}/{index.table.name}", what, AGAIN)
    try:
        table: NDArray[np.void] = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{store.uri}/{index.table.name}", f"it is no table ({error})", AGAIN) from error
    if table.dtype != ROW or table.ndim != 1:
        raise DataError(f"{store.uri}/{index.table.name}", "its columns are not those of samples", AGAIN)
    return table


def _check(where: str, index: Index, table: NDArray[np.void], shard: NDArray[np.int32]) -> None:
    """Labels that are classes, and images that lie within their shards."""
    sizes = np.array([shard.size for shard in index.shards], np.int64)
    wrong = np.flatnonzero(table["label"] >= len(index.classes))
    if len(wrong):
        label, name = table["label"][wrong[0]], index.shards[shard[wrong[0]]].name
        what = f"image {wrong[0]:,}, in {name}, has the label {label}, and there are {len(index.classes)} classes"
        raise DataError(where, what, "make the shards anew")
    beyond = np.flatnonzero(table["offset"].astype(np.int64) + table["size"] > sizes[shard])
    if len(beyond):
        what = f"image {beyond[0]:,} lies beyond the end of {index.shards[shard[beyond[0]]].name}"
        raise DataError(where, what, "make the shards anew")
    names = [each.name for each in index.shards]
    if len(set(names)) != len(names):
        raise DataError(where, "it names a shard twice", "make the shards anew")
