"""Makes shards of a data set that the job reads: `python -m job shard SPEC DEST`.

Files go in as they are, arrays as PNG. The order of each split is drawn once, over all classes, so that a few shards
that follow one another are a fair sample. Everything that takes every image is found out here: what is damaged, sizes,
mean and standard deviation, test images among the training images. index.json comes last: a reader finds all or
nothing. Equal data gives equal shards, byte for byte.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from job.data import dataset, image_folder
from job.data.dataset import Split, Splits
from job.data.decode import header, problem_of, size_text
from job.data.draws import stream
from job.data.image_folder import GREY
from job.data.images import foundation
from job.data.shards_index import INDEX, PARTS, ROW, TABLE, Index, Shard, Stored
from job.errors import DataError, UsageError
from job.runfolder import sha256, write_text
from job.spec.schema import Dataset
from job.storage.store import Store, open_store

SIZE = 64 * 2**20  # bytes of a shard
LARGEST = 2**31
Named = tuple[str, str, bytes]  # where it is from, suffix, content


@dataclass
class _Seen:
    """What the images turned out to be."""

    size: tuple[int, int] | None = None
    first: str = ""
    differ: str = ""
    grey: bool = True
    rows: list[tuple[int, int, int]] = field(default_factory=list)  # of the table

    def look(self, where: str, content: bytes) -> None:
        try:
            found = header(content)
        except Exception as error:
            raise DataError(where, problem_of(error), "it was whole a moment ago: see what changes it") from error
        self.grey = self.grey and found.mode in GREY
        if self.size is None:
            self.size, self.first = found.size, where
        elif found.size != self.size and not self.differ:
            self.differ = f"{self.first} is {size_text(self.size)}, {where} is {size_text(found.size)}"


def write(spec: Dataset, destination: str, size: int = SIZE) -> Iterator[str]:
    """A line for each shard stored. JobError where data or store refuse, and there is no index then."""
    if not 1 <= size <= LARGEST:
        raise UsageError("--size", f"{size:,} bytes", f"take 1 byte to {LARGEST // 2**30} GiB")
    if spec.name == "shards":
        raise UsageError("dataset.name", "these are shards already", "copy them, index.json last")
    store = open_store(destination)
    if store.exists(INDEX):
        raise UsageError(destination, f"there are shards in it: {INDEX}", "name another place, or delete that file")
    splits = dataset.load(spec, keep=False)
    yield from splits.notices
    content, seen = _content_of(spec, splits), _Seen()
    made: dict[str, list[Shard]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            split: Split | None = getattr(splits, part)
            if split is None:
                continue
            for shard in _shards(split, content, part, spec.split.seed, size, Path(folder), seen):
                store.put(Path(folder) / shard.name, shard.name)
                (Path(folder) / shard.name).unlink()
                made[part].append(shard)
                yield f"{shard.name}: {shard.images:,} images, {shard.size / 2**20:,.1f} MiB"
        _finish(store, spec, splits, made, seen, Path(folder))
    counts = ", ".join(f"{sum(shard.images for shard in made[part]):,} {part}" for part in PARTS if made[part])
    yield f"{destination}: {counts}; learn from them with dataset: {{name: shards, uri: {destination}}}"


def _content_of(spec: Dataset, splits: Splits) -> Callable[[Split, int], Named]:
    """What an image of a split is stored as."""
    if spec.name != "image_folder":
        return lambda split, place: (f"image {place:,}", ".png", _png(split.images[place]))
    files = image_folder.paths(dataset.root_of(spec))
    if len(files) != len(foundation(splits.train.images)[0]):
        raise DataError(
            str(dataset.root_of(spec)), "it changed while it was read", "try again when nobody writes there"
        )

    def stored(split: Split, place: int) -> Named:
        places = foundation(split.images)[1]
        path = files[place if places is None else int(places[place])]
        try:
            return str(path), path.suffix.lower(), path.read_bytes()
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise DataError(str(path), what, "it was there a moment ago: see what changes it") from error

    return stored


def _png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(content, "PNG")
    return content.getvalue()


def _shards(
    split: Split, content: Callable[[Split, int], Named], part: str, seed: int, size: int, folder: Path, seen: _Seen
) -> Iterator[Shard]:
    """Each is in the folder when it is given out. One is full when the next image would make it larger than `size`."""
    order = np.random.default_rng(stream(seed, "shards", part)).permutation(len(split.labels))
    numbered, count = iter(order.tolist()), 0
    waiting = next(numbered, None)
    for number in range(len(order)):
        if waiting is None:
            return
        path, images = folder / f"{part}-{number:06d}.tar", 0
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            while waiting is not None:
                where, suffix, image = content(split, waiting)
                if images and _with(tar.offset, len(image)) > size:
                    break
                seen.look(where, image)
                seen.rows.append((tar.offset + tarfile.BLOCKSIZE, len(image), int(split.labels[waiting])))
                _add(tar, f"{count:09d}{suffix}", image)
                _add(tar, f"{count:09d}.cls", str(int(split.labels[waiting])).encode())
                images, count, waiting = images + 1, count + 1, next(numbered, None)
        yield Shard(**_stored(path).model_dump(), images=images)


def _with(offset: int, image: int) -> int:
    """Bytes of a shard that ends with this image: two headers, the label's block, and two blocks at the end."""
    end = offset + (5 - (-image // tarfile.BLOCKSIZE)) * tarfile.BLOCKSIZE
    return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """With no time or owner: equal data shall give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _stored(path: Path) -> Stored:
    return Stored(name=path.name, size=path.stat().st_size, sha256=sha256(path))


def _finish(
    store: Store, spec: Dataset, splits: Splits, made: dict[str, list[Shard]], seen: _Seen, folder: Path
) -> None:
    """The table, then the index that names everything."""
    with (folder / TABLE).open("wb") as file:
        np.save(file, np.array(seen.rows, ROW), allow_pickle=False)
    assert seen.size is not None
    index = Index(
        format="gpu-job shards 1",
        classes=list(splits.classes),
        size=None if seen.differ else list(seen.size),
        differ=seen.differ,
        grey=seen.grey,
        resize=spec.resize,
        mean=list(splits.mean),
        std=list(splits.std),
        leaked=splits.leaked,
        table=_stored(folder / TABLE),
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
    )
    store.put(folder / TABLE, TABLE)
    write_text(folder / INDEX, index.model_dump_json(indent=1) + "\n")
    store.put(folder / INDEX, INDEX)
