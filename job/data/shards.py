"""Data that outgrows one machine: images in shards, streamed from a store, in an order that a position names.

The order of an epoch is a pure function of (seed, epoch): shards in random order, each spread over the next
`shuffle_window` shards' length. So it is the same for any number of workers and ranks, each image comes exactly once,
and going on in the middle costs nothing; at any moment `shuffle_window` + 1 shards are in use. The next ones are
brought meanwhile.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.data import kept, shards_index
from job.data.decode import Form, decode, header, problem_of, together
from job.data.draws import stream
from job.data.images import Images, foundation
from job.data.shards_cache import File, ShardFiles, limit_of
from job.data.shards_index import AGAIN, INDEX, MAKE, Index
from job.errors import DataError, JobError
from job.spec.schema import Dataset
from job.storage.store import FolderStore, open_store

AHEAD = 4  # shards brought before they are needed
FETCHERS = 2  # at a time: while one is asked for or verified, another comes
LEAVE = 2.0  # seconds that the fetchers may take to leave: one may be asking a store that is away
OPEN = 64  # shards kept open by a process at most: one that went from the cache takes room until it is closed


@dataclass(frozen=True)
class Found:
    """A data set in shards: its images and labels, and the places of those of each split."""

    images: "Shards"
    labels: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    index: Index
    sha256: str


class Shards:
    """All images, decoded at each use, as in any array of images."""

    def __init__(
        self, files: ShardFiles, table: NDArray[np.void], shard: NDArray[np.int32], form: Form, window: int
    ) -> None:
        self.files, self.table, self.shard, self.form, self.window = files, table, shard, form, window
        self.open: dict[int, File] = {}
        self.process = os.getpid()

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.table), *self.form.shape)

    @property
    def nbytes(self) -> int:
        return len(self.table) * self.form.nbytes

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: Any, /) -> NDArray[np.uint8]:
        places = np.arange(len(self.table))[place]
        files = {number: self._file(number) for number in np.unique(self.shard[places]).tolist()}

        def read(where: int) -> NDArray[np.uint8]:
            return self._read(files[int(self.shard[where])], where)

        return read(int(places)) if places.ndim == 0 else together(read, places, self.form)

    def order(self, places: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of `places`, by index. Every shard lies within a window of the epoch."""
        used, turn = np.unique(self.shard[places], return_inverse=True)
        generator = np.random.default_rng(stream(seed, epoch))
        if len(used) <= self.window:
            return generator.permutation(len(places))
        at = generator.permutation(len(used))[turn] + self.window * generator.random(len(places))
        return np.argsort(at, kind="stable")

    def _file(self, number: int) -> File:
        if self.process != os.getpid():  # forked: a position in a file of its own
            self.process, self.open = os.getpid(), {}
        if number not in self.open:
            while len(self.open) >= min(OPEN, 2 * (self.window + 1)):  # of an epoch, half of them are done
                self.open.pop(next(iter(self.open)))
            self.open[number] = self.files.open(number)
        return self.open[number]

    def _read(self, file: File, place: int) -> NDArray[np.uint8]:
        row = self.table[place]
        try:
            content = file.read(int(row["offset"]), int(row["size"]))
            return decode(content, self.form, header(content))
        except Exception as error:
            where = f"{self.files.uri}/{self.files.shards[self.shard[place]].name}"
            raise DataError(where, f"image {place:,}: {problem_of(error)}", "make the shards anew") from error


class Ahead:
    """Brings shards before they are needed, in the order of their first use; `reached` tells how far their use is."""

    def __init__(self, files: ShardFiles, shards: NDArray[np.int32]) -> None:
        used, first = np.unique(shards, return_index=True)
        turn = np.argsort(first)
        self.files, self.numbers, self.first = files, used[turn].tolist(), first[turn]
        self.next, self.wanted = 0, AHEAD
        self.turned, self.stop = threading.Condition(), threading.Event()
        self.threads = [threading.Thread(target=self._fetch, daemon=True, name="shards") for _ in range(FETCHERS)]
        for thread in self.threads:
            thread.start()

    def reached(self, position: int) -> None:
        with self.turned:
            self.wanted = int(np.searchsorted(self.first, position)) + AHEAD
            self.turned.notify_all()

    def close(self) -> None:
        with self.turned:
            self.stop.set()
            self.turned.notify_all()
        until = time.monotonic() + LEAVE
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _fetch(self) -> None:
        while (number := self._take()) is not None:
            with contextlib.suppress(JobError, OSError):  # who needs it tries again, and tells
                self.files.open(number, self.stop)

    def _take(self) -> int | None:
        with self.turned:
            while self.next >= min(self.wanted, len(self.numbers)) and not self.stop.is_set():
                if self.next >= len(self.numbers):
                    return None
                self.turned.wait()
            if self.stop.is_set():
                return None
            self.next += 1
            return int(self.numbers[self.next - 1])


@contextlib.contextmanager
def ahead(images: Images, order: NDArray[np.int64]) -> Iterator[Ahead | None]:
    """While entered, what `order` needs next of the images comes before it is asked for; None: it is all here."""
    base, places = foundation(images)
    if not isinstance(base, Shards):
        yield None
        return
    with contextlib.closing(Ahead(base.files, base.shard[order if places is None else places[order]])) as fetching:
        yield fetching


def streamed(images: Images) -> bool:
    """Whether looking at images here and there would bring shards for each."""
    return isinstance(foundation(images)[0], Shards)


def holds(uri: str) -> bool | None:
    """Whether a folder has an index; None: a store is not asked."""
    store = open_store(uri)
    return store.exists(INDEX) if isinstance(store, FolderStore) else None


def read(spec: Dataset) -> Found:
    """The data set of dataset.uri. DataError in one line for whatever is wrong with it."""
    assert spec.uri is not None
    store = open_store(spec.uri)
    listed = shards_index.read(store)
    index = listed.index
    place = kept.place_for(spec)
    if place is not None:
        place = kept.Place(place.folder.parent / "shards", place.limit)
    files = ShardFiles(store, index.shards, place, listed.sha256[:32])
    if files.local is None and place is not None:
        _refuse_small_cache(place, index, spec.shuffle_window)
    images = Shards(files, listed.table, listed.shard, _form(spec, index), spec.shuffle_window)
    labels = listed.table["label"].astype(np.int64)
    train, validation, test = (listed.places(part) for part in shards_index.PARTS)
    missing = np.flatnonzero(np.bincount(labels[train], minlength=len(index.classes)) == 0)
    if len(missing):
        what = f"the class {index.classes[missing[0]]!r} has no training images"
        raise DataError(f"{spec.uri}/{INDEX}", what, MAKE)
    return Found(images, labels, train, validation, test, index, listed.sha256)


def _form(spec: Dataset, index: Index) -> Form:
    channels = {"auto": 1 if index.grey else 3, "grey": 1, "rgb": 3}[spec.color]
    if spec.normalize == "auto" and (spec.resize, channels) != (index.resize, len(index.mean)):
        measured = f"resize: {'null' if index.resize is None else index.resize}, {_channels(len(index.mean))}"
        what = f"mean and standard deviation were measured with {measured}, not {spec.resize}, {_channels(channels)}"
        cure = f"set dataset.resize and color as they were, or give mean and std; {AGAIN}"
        raise DataError("dataset.normalize", what, cure)
    if spec.resize is not None:
        return Form(spec.resize, spec.resize, channels, resize=True)
    if index.size is None:
        raise DataError("dataset.resize", f"images differ in size: {index.differ}", "set dataset.resize")
    return Form(index.size[1], index.size[0], channels, resize=False)


def _channels(count: int) -> str:
    return "grey" if count == 1 else "rgb"


def _refuse_small_cache(place: kept.Place, index: Index, window: int) -> None:
    """Shards that went before their last image was read would be brought again and again."""
    sizes, limit = [shard.size for shard in index.shards], limit_of(place)
    needed = min(sum(sizes), max(sizes) * (window + 1 + AHEAD + FETCHERS))
    if limit < needed:
        what = f"{limit / 2**20:,.1f} MiB in {place.folder}, and {needed / 2**20:,.1f} MiB are in use at a time"
        cure = "raise it, free some disk, lower dataset.shuffle_window, or make smaller shards"
        raise DataError("dataset.cache_limit", what, cure)
