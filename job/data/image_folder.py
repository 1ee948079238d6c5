"""Your own images, one folder a class: found, checked, decoded to one uint8 array.

    root/train/CLASS/*, root/test/CLASS/*   given splits, with root/validation/CLASS/* or root/val/CLASS/* if you like
    root/CLASS/*                            divided by dataset.split

Every file is decoded before training begins, so that a bad one is told then and not after an hour. Images are resized
on the shorter side and centre-cropped; transparency is laid over white; 16-bit images are scaled to 8.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from job.device import available_memory, cpu_count
from job.errors import DataError
from job.runfolder import disk_errors
from job.spec.schema import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
PARTS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}  # folder → split
GREY = frozenset({"1", "L", "I;16", "I;16B", "I;16L", "I", "F"})  # Pillow's modes of one channel
SIXTEEN = frozenset({"I;16", "I;16B", "I;16L", "I"})
WORDS = {
    "1": "black and white: taken as grey",
    "P": "palette images: their colours were looked up",
    "RGBA": "RGBA: transparency was laid over white",
    "LA": "grey with transparency, which was laid over white",
    "CMYK": "CMYK: converted to RGB",
    **dict.fromkeys(SIXTEEN, "16-bit: scaled to 8 bits"),
}
MEMORY_PART = 0.5  # of what is free; a larger data set is kept in a file and mapped
SHOWN = 3  # bad files named in an error before the rest is only counted
Image.MAX_IMAGE_PIXELS = 200_000_000  # beyond this Pillow suspects a decompression bomb


@dataclass(frozen=True)
class Seen:
    """A file's header: Pillow's mode and the size as shown, (width, height); or what is wrong with it."""

    mode: str
    size: tuple[int, int]
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """All images with labels, and the split each belongs to where the folders say so ('' where they do not)."""

    images: NDArray[np.uint8]  # (N, H, W, C); mapped from a file that has no name where it is large
    labels: NDArray[np.int64]
    parts: NDArray[np.str_]
    good: NDArray[np.int64]  # places of those that could be decoded; the others hold nothing
    classes: tuple[str, ...]
    notices: tuple[str, ...]
    skipped: tuple[str, ...]


def holds(root: Path) -> bool:
    """Whether there is any folder to read."""
    return root.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir())


def read(spec: Dataset, root: Path) -> Found:
    """Everything below `root`. DataError with one line for what cannot be used."""
    files, classes, notices = _listed(root)
    with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
        seen = list(pool.map(lambda item: look(item[0]), files))
        side = _side(spec, [(item[0], header) for item, header in zip(files, seen, strict=True)])
        channels = _channels(spec, seen)
        images = _room(len(files), side, channels)
        jobs = [(place, item[0], header) for place, (item, header) in enumerate(zip(files, seen, strict=True))]
        problems = list(pool.map(lambda job: _decode_into(images, job[0], job[1], job[2], spec.resize), jobs))
    bad = {place: problem for place, problem in enumerate(problems) if problem is not None}
    skipped = tuple(f"{files[place][0].relative_to(root)}: {problem}" for place, problem in bad.items())
    if bad and spec.on_bad_image == "fail":
        some = "; ".join(skipped[:SHOWN]) + (f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else "")
        cure = "repair or remove them, or set dataset.on_bad_image: skip"
        raise DataError(str(root), f"{_count(len(bad), 'file')} cannot be used: {some}", cure)
    good = np.array([place for place in range(len(files)) if place not in bad], np.int64)
    if bad:
        notices.append(f"{_count(len(bad), 'bad file')} left out; the first: {skipped[0]}")
    labels = np.array([item[1] for item in files], np.int64)
    parts = np.array([item[2] for item in files], np.str_)
    _refuse_empty(root, labels[good], classes)
    notices += _conversions(files, seen, root, channels)
    return Found(images, labels, parts, good, classes, tuple(notices), skipped)


def look(path: Path) -> Seen:
    """What the header says, at little cost."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}  # EXIF orientation: lies on its side
                mode = "RGBA" if image.mode == "P" and "transparency" in image.info else image.mode
                return Seen(mode, (height, width) if turned else (width, height))
    except Exception as error:
        return Seen("", (0, 0), problem_of(error))


def read_image(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """One image as (size, size, channels), as training saw its own. DataError if it cannot be."""
    if not path.is_file():
        raise DataError(str(path), "there is no such file", "check the path")
    header = look(path)
    images = np.empty((1, size, size, channels), np.uint8)
    problem = _decode_into(images, 0, path, header, size)
    if problem is not None:
        raise DataError(str(path), problem, "give a whole image")
    only: NDArray[np.uint8] = images[0]
    return only


def problem_of(error: Exception) -> str:
    """A decoder's complaint in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    if isinstance(error, PermissionError):
        return "it may not be read"
    words = " ".join(str(error).split()) or type(error).__name__
    return f"it is damaged ({words})"


def _listed(root: Path) -> tuple[list[tuple[Path, int, str]], tuple[str, ...], list[str]]:
    """(file, label, split) sorted by path, the class names, and notices of what was passed over."""
    with disk_errors(root):
        folders = _folders(root)
        given = {PARTS[path.name.lower()]: path for path in folders if path.name.lower() in PARTS}
        if not {"train", "test"} <= given.keys():
            given = {"": root}
        by_class: dict[str, list[tuple[Path, str]]] = {}
        passed: Counter[str] = Counter()
        for part, folder in given.items():
            for class_folder in _folders(folder):
                images = by_class.setdefault(class_folder.name, [])
                for path in sorted(class_folder.rglob("*")):
                    if path.is_dir() or any(name.startswith(".") for name in path.relative_to(folder).parts):
                        continue
                    if path.suffix.lower() in SUFFIXES:
                        images.append((path, part))
                    else:
                        passed[path.suffix.lower() or path.name] += 1
    classes = tuple(sorted(by_class))
    _refuse_unusable(root, by_class, given)
    files = [(path, label, part) for label, name in enumerate(classes) for path, part in by_class[name]]
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed.most_common(5))
    return files, classes, [f"files that are no images were passed over: {kinds}"] if passed else []


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_unusable(root: Path, by_class: dict[str, list[tuple[Path, str]]], given: dict[str, Path]) -> None:
    layout = "put them in one folder a class, as in root/cat/1.jpg"
    if not any(by_class.values()):
        raise DataError(str(root), "there are no images in it", layout)
    if len(by_class) == 1:
        raise DataError(
            str(root), f"there is one class only, {next(iter(by_class))!r}", "add a folder for another class"
        )
    for name, images in by_class.items():
        if not images:
            raise DataError(str(root / name), "the class has no images", "add some or remove the folder")
    if "test" not in given:
        return
    for name, images in by_class.items():
        parts = {part for _, part in images}
        if "train" not in parts:
            what = f"the class {name!r} is in {' and '.join(sorted(parts))} and not in train"
            raise DataError(str(root), what, "add training images of it or remove it there")


def _refuse_empty(root: Path, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    for label, count in enumerate(np.bincount(labels, minlength=len(classes))):
        if count == 0:
            what = f"the class {classes[label]!r} has no image that can be used"
            raise DataError(str(root), what, "add whole images or remove the folder")


def _side(spec: Dataset, files: Sequence[tuple[Path, Seen]]) -> tuple[int, int]:
    """(height, width) of every image: dataset.resize, or the one size that all have."""
    if spec.resize is not None:
        return spec.resize, spec.resize
    whole = [(path, header.size) for path, header in files if header.problem is None]
    if not whole:
        return 1, 1
    first, size = whole[0]
    for path, other in whole:
        if other != size:
            what = f"images differ in size: {first} is {_size(size)}, {path} is {_size(other)}"
            raise DataError("dataset.resize", what, f"set dataset.resize, for example to {min(*size, *other)}")
    return size[1], size[0]


def _channels(spec: Dataset, seen: Sequence[Seen]) -> int:
    if spec.color != "auto":
        return 3 if spec.color == "rgb" else 1
    return 1 if all(header.mode in GREY for header in seen if header.problem is None) else 3


def _room(count: int, side: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Memory for all images; a mapped file where they are too many for it."""
    shape = (count, *side, channels)
    size = int(np.prod(shape, dtype=np.int64))
    if size <= MEMORY_PART * available_memory():
        return np.empty(shape, np.uint8)
    return mapped(shape)


def mapped(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array in a file without a name, which goes away with the process."""
    size = int(np.prod(shape, dtype=np.int64))
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:  # the map outlives the handle
        file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _decode_into(images: NDArray[np.uint8], place: int, path: Path, header: Seen, resize: int | None) -> str | None:
    """Fills images[place]; what is wrong with the file, or None."""
    if header.problem is not None:
        return header.problem
    channels = images.shape[3]
    try:
        with Image.open(path) as opened:
            if resize is not None:
                opened.draft(None, (resize, resize))  # JPEG decodes at a fraction of the size, never below this
            image = _plain(ImageOps.exif_transpose(opened), channels)
    except Exception as error:
        return problem_of(error)
    if resize is not None:
        image = ImageOps.fit(image, (resize, resize), Image.Resampling.BILINEAR)
    if image.size != images.shape[2:0:-1]:
        return f"it is {_size(image.size)}, not {_size((images.shape[2], images.shape[1]))}"
    images[place] = np.asarray(image).reshape(images.shape[1:])
    return None


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Any image as 8-bit grey or RGB."""
    if image.mode in SIXTEEN:
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("L" if channels == 1 else "RGB")


def _conversions(files: Sequence[tuple[Path, int, str]], seen: Sequence[Seen], root: Path, channels: int) -> list[str]:
    """A line for each kind of image that was changed to fit."""
    kinds: dict[str, list[Path]] = {}
    for (path, _, _), header in zip(files, seen, strict=True):
        words = WORDS.get(header.mode)
        if header.mode == "L" and channels == 3:  # noqa: PLR2004 - RGB
            words = "grey among colour images: taken as RGB"
        if header.mode == "RGB" and channels == 1:
            words = "colour images taken as grey (dataset.color)"
        if words is not None:
            kinds.setdefault(words, []).append(path)
    return [
        f"{_count(len(paths), 'image')}, {words}; the first: {paths[0].relative_to(root)}"
        for words, paths in kinds.items()
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
