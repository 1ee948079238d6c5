"""From the spec's dataset section to arrays: found or fetched, checked, divided, measured.

Bytes come from dataset.root (or $JOB_DATA_ROOT) if it holds them, else from dataset.mirror, else from torchvision's
download. Shards stay where dataset.uri says and are read as they are needed.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from job.data import image_folder, official, shards
from job.data.images import Images, choose, foundation
from job.data.shards_index import MAKE
from job.data.split import stratified
from job.errors import DataError
from job.spec.schema import Dataset

CHUNK = 250  # images measured at a time: their squares add up to less than 2**24, which float32 holds exactly


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Images  # (N, H, W, C) uint8, C is 1 or 3
    labels: NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Splits:
    """A data set, ready to learn from."""

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # by channel, on the scale 0–1; the network sees (pixel / 255 − mean) / std
    std: tuple[float, ...]
    sha256: str  # of pixels (of own images: the files' bytes), labels and class names as used
    source: str  # in words: where the bytes came from
    notices: tuple[str, ...]  # a line each: conversions, files left out, leakage
    skipped: tuple[str, ...]  # files left out: 'path: why'
    leaked: int  # test images that are pixel for pixel among the training images


@dataclass(frozen=True)
class Source:
    """Where the bytes are, or would come from."""

    kind: Literal["root", "mirror", "download", "bundled", "stream"]
    where: str


@dataclass(frozen=True)
class _Raw:
    """A data set as its files have it. `validation` is given by folders only."""

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    notices: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    table: NDArray[np.void] | None = None  # of own images: what decoding found out about each, see image_folder.row
    sharded: shards.Found | None = None


def locate(spec: Dataset) -> Source:
    """Where the data would come from. Needs no network and writes nothing; DataError if nothing can serve."""
    root = root_of(spec)
    if spec.name == "digits":
        return Source("bundled", "bundled")
    if spec.name == "shards":
        return _locate_shards(spec.uri or "")
    if image_folder.holds(root) if spec.name == "image_folder" else official.holds(spec.name, root):
        return Source("root", f"from {root}")
    if spec.mirror is not None:
        return Source("mirror", f"from {spec.mirror}, unpacked into {root}")
    if spec.name == "image_folder":
        what = "there are no images in it" if root.is_dir() else "there is no such folder"
        cure = "set dataset.root to the folder that holds one folder a class, or name a dataset.mirror"
        raise DataError(str(root), what, cure)
    return Source("download", f"downloaded by torchvision into {root}")


def _locate_shards(uri: str) -> Source:
    here = shards.holds(uri)
    if here is False:
        raise DataError(uri, "there is no index.json in it", MAKE)
    return Source("stream", f"streamed from {uri}") if here is None else Source("root", f"shards in {uri}")


def load(spec: Dataset, *, keep: bool = True, poll: Callable[[], None] = lambda: None) -> Splits:
    """The data set, ready; fetches what is missing. DataError for what cannot be learned from.

    `keep` allows a decoded copy on disk for the next start. `poll` is called now and then and may raise to leave early.
    """
    source, root = locate(spec), root_of(spec)
    if source.kind in ("mirror", "download"):
        from job.data import fetch

        fetch.unpack_mirror(spec, root) if source.kind == "mirror" else fetch.download(spec.name, root)
    raw = _read(spec, root, keep, poll)
    raw = _shrink(raw, spec)
    raw = _hold_back(raw, spec)
    if raw.sharded is not None:
        return _in_shards(raw, raw.sharded, spec, source)
    with ThreadPoolExecutor(3) as pool:  # each lets go of the interpreter's lock while it goes over the pixels
        leaking, digest = pool.submit(_leaked, raw), pool.submit(_digest, raw)
        mean, std = _normalisation(spec, raw)
    return _splits(raw, source, (mean, std), digest.result(), leaking.result())


def _in_shards(raw: _Raw, found: shards.Found, spec: Dataset, source: Source) -> Splits:
    """What would take every image was found out when the shards were made."""
    index, channels, auto = found.index, found.images.shape[3], spec.normalize == "auto"
    digest = hashlib.sha256(found.sha256.encode())
    for part in (raw.train, raw.validation, raw.test):
        if part is not None:
            digest.update(repr(part.images.shape).encode())
            places = foundation(part.images)[1]
            digest.update(b"" if places is None else np.ascontiguousarray(places).data)
    mean, std = (tuple(index.mean), tuple(index.std)) if auto else _given(spec, channels)
    return _splits(raw, source, (mean, std), digest.hexdigest(), index.leaked)


def _splits(
    raw: _Raw, source: Source, statistics: tuple[tuple[float, ...], tuple[float, ...]], sha256: str, leaked: int
) -> Splits:
    mean, std = statistics
    return Splits(
        train=raw.train,
        validation=raw.validation,
        test=raw.test,
        classes=raw.classes,
        mean=mean,
        std=std,
        sha256=sha256,
        source=source.where,
        notices=raw.notices + _leakage(leaked),
        skipped=raw.skipped,
        leaked=leaked,
    )


def _leakage(count: int) -> tuple[str, ...]:
    if count == 0:
        return ()
    what = "test image is" if count == 1 else "test images are"
    return (f"{count} {what} pixel for pixel in the training data: accuracy is overstated; remove them there",)


def root_of(spec: Dataset) -> Path:
    """dataset.root, else $JOB_DATA_ROOT, else data."""
    return Path(spec.root or os.environ.get("JOB_DATA_ROOT") or "data")


def no_labels(count: int) -> NDArray[np.int64]:
    """For images whose class is asked for."""
    return np.zeros(count, np.int64)


def _read(spec: Dataset, root: Path, keep: bool, poll: Callable[[], None]) -> _Raw:
    if spec.name == "digits":
        return _digits(spec)
    if spec.name == "image_folder":
        return _own(image_folder.read(spec, root, keep=keep, poll=poll), spec)
    if spec.name == "shards":
        return _sharded(shards.read(spec))
    (images, labels), (test_images, test_labels), classes = official.read(spec.name, root)
    return _Raw(Split(images, labels), None, Split(test_images, test_labels), classes)


def _digits(spec: Dataset) -> _Raw:
    """1,797 scans of handwriting, 8×8 pixels of 0–16.

    The test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, doi 10.24432/C50P49, licence CC BY 4.0: the pixels and labels that scikit-learn's load_digits gives.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as digits:
        images = (digits["images"] * (255 / 16)).round().astype(np.uint8)[..., None]
        everything = Split(images, digits["labels"].astype(np.int64))
    return _divide(everything, spec, tuple("0123456789"), np.arange(len(images)))


def _own(found: image_folder.Found, spec: Dataset) -> _Raw:
    everything, parts = Split(found.images, found.labels), found.parts[found.good]
    if not parts[0]:
        raw = _divide(everything, spec, found.classes, found.good)
    else:
        of = {part: found.good[parts == part] for part in ("train", "validation", "test")}
        held = _take(everything, of["validation"]) if len(of["validation"]) else None
        raw = _Raw(_take(everything, of["train"]), held, _take(everything, of["test"]), found.classes)
    return replace(raw, notices=found.notices, skipped=found.skipped, table=found.table)


def _sharded(found: shards.Found) -> _Raw:
    everything = Split(found.images, found.labels)
    held = _take(everything, found.validation) if len(found.validation) else None
    train, test = _take(everything, found.train), _take(everything, found.test)
    return _Raw(train, held, test, tuple(found.index.classes), sharded=found)


def _divide(everything: Split, spec: Dataset, classes: tuple[str, ...], good: NDArray[np.int64]) -> _Raw:
    """dataset.split of the places in `good`: each class in the same proportion, at least one image on either side."""
    labels = everything.labels[good]
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count < 2:  # noqa: PLR2004 - one to train, one to test
            what = f"the class {name!r} has {count} image, too few to train and to test"
            raise DataError("dataset.split", what, "add images of it, or give train/ and test/ folders")
    train, test = stratified(labels, round(spec.split.train * len(labels)), spec.split.seed)
    for part, chosen in (("training", train), ("test", test)):
        missing = np.flatnonzero(np.bincount(labels[chosen], minlength=len(classes)) == 0)
        if len(missing):
            name = classes[missing[0]]
            what = f"train: {spec.split.train:g} leaves no {part} image of the {counts[missing[0]]} in class {name!r}"
            raise DataError("dataset.split", what, "add images of it, or change dataset.split.train")
    return _Raw(_take(everything, good[train]), None, _take(everything, good[test]), classes)


def _shrink(raw: _Raw, spec: Dataset) -> _Raw:
    """dataset.subset: training and validation images together, and the other splits in the same proportion."""
    if spec.subset is None:
        return raw
    held = 0 if raw.validation is None else len(raw.validation.labels)
    available = len(raw.train.labels) + held
    if isinstance(spec.subset, int) and spec.subset > available:
        what = f"{spec.subset:,} images are asked for, {available:,} are there"
        raise DataError("dataset.subset", what, f"ask for {available:,} at most, or for a fraction")
    fraction = spec.subset / available if isinstance(spec.subset, int) else spec.subset
    parts = [None if part is None else _part(part, fraction, spec) for part in (raw.train, raw.validation, raw.test)]
    train, validation, test = parts
    assert train is not None
    assert test is not None
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(raw.classes)) == 0)
    if len(missing) or len(test.labels) == 0:
        what = f"{spec.subset:g} leaves a class without training images, or no test image"
        raise DataError("dataset.subset", what, f"ask for more; there are {len(raw.classes)} classes")
    return replace(raw, train=train, validation=validation, test=test)


def _part(split: Split, fraction: float, spec: Dataset) -> Split:
    """Of shards, which lie in a random order, the first: the others need not be brought."""
    seed = None if spec.name == "shards" else spec.split.seed
    return _take(split, stratified(split.labels, round(fraction * len(split.labels)), seed)[0])


def _hold_back(raw: _Raw, spec: Dataset) -> _Raw:
    """dataset.validation: a part of the training images, where the folders do not give one."""
    if spec.validation == 0 or raw.validation is not None:
        return raw
    labels, count = raw.train.labels, round(spec.validation * len(raw.train.labels))
    if raw.sharded is None:
        held, rest = stratified(labels, count, spec.split.seed + 1)
    else:  # the last of each class, so that training and validation share few shards
        rest, held = stratified(labels, len(labels) - count, None)
    left = np.bincount(raw.train.labels[rest], minlength=len(raw.classes))
    if len(held) == 0 or left.min() == 0:
        name = raw.classes[int(left.argmin())]
        what = f"{spec.validation:g} leaves no image to validate, or none of the class {name!r} to train"
        raise DataError("dataset.validation", what, "add images or change dataset.validation")
    return replace(raw, train=_take(raw.train, rest), validation=_take(raw.train, held))


def _take(split: Split, chosen: NDArray[np.int64]) -> Split:
    return Split(choose(split.images, chosen), split.labels[chosen])


def _leaked(raw: _Raw) -> int:
    """Test images whose very pixels are also trained or chosen on: found by checksum, then compared."""
    test, known = raw.test.images, [part.images for part in (raw.train, raw.validation) if part is not None]
    checks, known_checks = _checks(test, raw), [_checks(images, raw) for images in known]
    suspects = np.flatnonzero(np.isin(checks, np.concatenate(known_checks)))
    return sum(
        any(
            np.array_equal(test[place], images[other])
            for images, others in zip(known, known_checks, strict=True)
            for other in np.flatnonzero(others == checks[place])
        )
        for place in suspects
    )


def _checks(images: Images, raw: _Raw) -> NDArray[np.uint32]:
    """CRC-32 of each image's pixels."""
    if raw.table is not None:
        return np.asarray(_rows(images, raw.table)["check"], np.uint32)
    found = (zlib.crc32(image.data) for chunk in _chunks(images) for image in chunk.reshape(len(chunk), -1))
    return np.fromiter(found, np.uint32, len(images))


def _rows(images: Images, table: NDArray[np.void]) -> NDArray[np.void]:
    """The table's lines of these images."""
    places = foundation(images)[1]
    return table if places is None else table[places]


def _chunks(images: Images) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), CHUNK):
        yield np.ascontiguousarray(images[start : start + CHUNK])


def _normalisation(spec: Dataset, raw: _Raw) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, 0–1: the spec's, or those of the training pixels."""
    images = raw.train.images
    channels = images.shape[3]
    if spec.normalize != "auto":
        return _given(spec, channels)
    if raw.table is not None:
        rows = _rows(images, raw.table)
        count, total, squares = rows["counted"].sum(), rows["total"].sum(0), rows["squares"].sum(0)
    else:
        count, (total, squares) = int(np.prod(images.shape[:3])), _sums(images)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std < 1] = 255  # a channel of one value carries nothing; it is not blown up either
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _sums(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of all values and of their squares, by channel."""
    channels = images.shape[3]
    total, squares = np.zeros(channels), np.zeros(channels)
    for chunk in _chunks(images):
        pixels = chunk.astype(np.float32)
        total += pixels.sum(0).sum((0, 1), dtype=np.float64)
        squares += np.square(pixels, out=pixels).sum(0).sum((0, 1), dtype=np.float64)
    return total, squares


def _given(spec: Dataset, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    assert spec.normalize != "auto"
    return _by_channel(spec.normalize.mean, "mean", channels), _by_channel(spec.normalize.std, "std", channels)


def _by_channel(value: float | Sequence[float], key: str, channels: int) -> tuple[float, ...]:
    values = [value] * channels if isinstance(value, float | int) else list(value)
    if len(values) != channels:
        what = f"{len(values)} numbers for images of {channels} channel{'' if channels == 1 else 's'}"
        raise DataError(f"dataset.normalize.{key}", what, f"give one number, or {channels}")
    return tuple(float(number) for number in values)


def _digest(raw: _Raw) -> str:
    digest = hashlib.sha256("\0".join(raw.classes).encode("utf-8", "surrogateescape"))
    for part in (raw.train, raw.validation, raw.test):
        if part is not None:
            digest.update(repr(part.images.shape).encode())
            if raw.table is not None:
                digest.update(np.ascontiguousarray(_rows(part.images, raw.table)["digest"]).data)
            else:
                for chunk in _chunks(part.images):
                    digest.update(chunk.data)
            digest.update(np.ascontiguousarray(part.labels).data)
    return digest.hexdigest()
