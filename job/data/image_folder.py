"""Your own images, one folder a class: found, checked, decoded once.

    root/train/CLASS/*, root/test/CLASS/*   given splits, with root/validation/CLASS/* or root/val/CLASS/* if you like
    root/CLASS/*                            divided by dataset.split

Every file is decoded before training begins, so that a bad one is told then and not after an hour. The pixels are kept
(job.data.kept) where there is room for them, else in memory; where there is room in neither they stay encoded in their
files and are decoded at each use. Images are resized on the shorter side and centre-cropped.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from job.data import kept
from job.data.decode import VERSION, Encoded, Form, Header, decode, header, problem_of, size_text
from job.data.images import Images
from job.data.kept import Copy, Maker, Place
from job.data.survey import Sink, row, shared, survey
from job.device import available_memory
from job.errors import DataError
from job.runfolder import disk_errors
from job.spec.schema import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
PARTS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}  # folder → split
GREY = frozenset({"1", "L", "I;16", "I;16B", "I;16L", "I", "F"})  # Pillow's modes of one channel
WORDS = {
    "1": "black and white: taken as grey",
    "P": "palette images: their colours were looked up",
    "RGBA": "RGBA: transparency was laid over white",
    "LA": "grey with transparency, which was laid over white",
    "CMYK": "CMYK: converted to RGB",
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I"), "16-bit: scaled to 8 bits"),
}
MEMORY_PART = 0.5  # of what is free may hold decoded pixels where no copy is kept on disk
SHOWN = 3  # bad files named in an error before the rest is only counted


class File(NamedTuple):
    """An image file: path below the root, label, split ('' where the folders do not say), bytes and time of change."""

    name: str
    label: int
    part: str
    size: int
    changed: int


@dataclass(frozen=True)
class Found:
    """All images with labels, and the split each belongs to where the folders say so ('' where they do not)."""

    images: Images
    table: NDArray[np.void]  # what decoding found out about each, see row()
    labels: NDArray[np.int64]
    parts: NDArray[np.str_]
    good: NDArray[np.int64]  # places of those that could be decoded; the others hold nothing
    classes: tuple[str, ...]
    notices: tuple[str, ...]
    skipped: tuple[str, ...]


def holds(root: Path) -> bool:
    """Whether there is any folder to read."""
    return root.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir())


def read(spec: Dataset, root: Path, *, keep: bool, poll: Callable[[], None]) -> Found:
    """Everything below `root`. DataError with one line for what cannot be used. Without `keep` nothing is written.

    `poll` is called now and then and may raise to leave early.
    """
    files, classes, notices = _listed(root)
    images, table, problems = _decoded(spec, root, files, keep, poll, notices)
    skipped = tuple(f"{files[place].name}: {problem}" for place, problem in sorted(problems.items()))
    if skipped and spec.on_bad_image == "fail":
        some = "; ".join(skipped[:SHOWN]) + (f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else "")
        cure = "repair or remove them, or set dataset.on_bad_image: skip"
        raise DataError(str(root), f"{_count(len(skipped), 'file')} cannot be used: {some}", cure)
    good = np.flatnonzero(table["good"])
    if skipped:
        notices.append(f"{_count(len(skipped), 'bad file')} left out; the first: {skipped[0]}")
    labels = np.array([file.label for file in files], np.int64)
    parts = np.array([file.part for file in files], np.str_)
    _refuse_empty(root, labels[good], classes)
    notices += _conversions(files, table["mode"], images.shape[3])
    return Found(images, table, labels, parts, good, classes, tuple(notices), skipped)


def paths(root: Path) -> list[Path]:
    """Of the images below `root`, in the order in which `read` has them."""
    return [root / file.name for file in _listed(root)[0]]


def read_image(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """One image as (size, size, channels), as training saw its own. DataError if it cannot be."""
    if not path.is_file():
        raise DataError(str(path), "there is no such file", "check the path")
    try:
        content = path.read_bytes()
        return decode(content, Form(size, size, channels, resize=True), header(content))
    except Exception as error:
        raise DataError(str(path), problem_of(error), "give a whole image") from error


Decoded = tuple[Images, NDArray[np.void], dict[int, str]]  # the pixels, the table, and what is wrong with which


def _decoded(
    spec: Dataset, root: Path, files: Sequence[File], keep: bool, poll: Callable[[], None], notices: list[str]
) -> Decoded:
    """From the kept copy, or by decoding everything, which makes one."""
    place = kept.place_for(spec)
    if place is None:
        return _decode_all(spec, root, files, poll)
    key = _key(spec, root, files)
    copy, damage = kept.find(place.of(key))
    if copy is None and keep:
        try:
            with kept.making(place, key):
                copy, damage = kept.find(place.of(key))  # another process may have made it while this one waited
                if damage is not None:
                    notices.append(f"the decoded copy in {place.of(key)} was damaged and is made anew: {damage}")
                if copy is None:
                    return _make(spec, root, files, poll, place, key)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            cure = "dataset.cache or JOB_CACHE_DIR may name another folder"
            notices.append(f"no decoded copy is kept in {place.folder} ({why}), so every start decodes anew; {cure}")
    return _decode_all(spec, root, files, poll) if copy is None else _from(copy, root, files)


def _key(spec: Dataset, root: Path, files: Sequence[File]) -> str:
    """Of everything the pixels follow from."""
    decoders = [version(package) for package in ("pillow", "torchvision")]
    listed = [f"{file.name}\0{file.size}\0{file.changed}" for file in files]
    return kept.key_of(VERSION, *decoders, _identity(spec, root), *listed)


def _identity(spec: Dataset, root: Path) -> str:
    """Of which there is never more than one copy: when its files change the older one goes."""
    return f"{root.resolve()}, resize {spec.resize}, color {spec.color}"


def _make(
    spec: Dataset, root: Path, files: Sequence[File], poll: Callable[[], None], place: Place, key: str
) -> Decoded:
    form = _form(spec, root, files)
    nbytes = len(files) * form.nbytes
    room = nbytes <= place.room()
    kept.forget(place, _identity(spec, root))
    maker = Maker(place, key, (len(files), *form.shape), nbytes if room else 0)
    try:
        memory = None if room else _memory(len(files), form)
        table, problems = _survey(root, files, form, maker.write if room else _filler(memory), poll)
        about = {"identity": _identity(spec, root), "form": asdict(form), "problems": problems}
        copy = maker.keep(table, about)
    except BaseException:
        maker.drop()
        raise
    return _from(copy, root, files) if memory is None else (memory, table, problems)


def _from(copy: Copy, root: Path, files: Sequence[File]) -> Decoded:
    problems = {int(place): str(problem) for place, problem in copy.about["problems"].items()}
    form = Form(**copy.about["form"])
    return (_encoded(root, files, form) if copy.pixels is None else copy.pixels), copy.table, problems


def _decode_all(spec: Dataset, root: Path, files: Sequence[File], poll: Callable[[], None]) -> Decoded:
    """Without a copy on disk: into memory, or looked through once where it is too much for that."""
    form = _form(spec, root, files)
    memory = _memory(len(files), form)
    table, problems = _survey(root, files, form, _filler(memory), poll)
    return (_encoded(root, files, form) if memory is None else memory), table, problems


def _memory(count: int, form: Form) -> NDArray[np.uint8] | None:
    """Room for all images, or None where that is too much."""
    if count * form.nbytes > MEMORY_PART * available_memory():
        return None
    return shared(count, form)


def _encoded(root: Path, files: Sequence[File], form: Form) -> Encoded:
    return Encoded([str(root / file.name) for file in files], form)


def _filler(memory: NDArray[np.uint8] | None) -> Sink:
    def fill(place: int, image: NDArray[np.uint8]) -> None:
        if memory is not None:
            memory[place] = image

    return fill


def _survey(
    root: Path, files: Sequence[File], form: Form, sink: Sink, poll: Callable[[], None]
) -> tuple[NDArray[np.void], dict[int, str]]:
    """Decodes every file, hands its pixels on, and notes what it found out; what is wrong with the bad ones."""
    table = np.zeros(len(files), row(form.channels))
    problems: dict[int, str] = {}
    with contextlib.closing(survey([root / file.name for file in files], form, sink)) as found:
        for piece in found:
            poll()
            table[piece.places.start : piece.places.stop] = piece.rows
            for place, problem, seen in piece.bad:
                if seen is not None and not form.resize and seen.size != (form.width, form.height):
                    _refuse_sizes(root, files, place, seen.size, form)
                problems[place] = problem
    return table, problems


def _form(spec: Dataset, root: Path, files: Sequence[File]) -> Form:
    """What images are brought to: by the spec, else the size of the first and grey where every image is."""
    seen = (found for _, found in _headers(root, files))
    first = next(seen, None)
    if first is None:
        return Form(1, 1, 3, resize=spec.resize is not None)
    width, height = first.size if spec.resize is None else (spec.resize, spec.resize)
    if spec.color == "auto":
        channels = 1 if first.mode in GREY and all(other.mode in GREY for other in seen) else 3
    else:
        channels = 3 if spec.color == "rgb" else 1
    return Form(height, width, channels, resize=spec.resize is not None)


def _headers(root: Path, files: Sequence[File]) -> Iterator[tuple[File, Header]]:
    """Of the files that have one, one after the other as they are asked for."""
    for file in files:
        with contextlib.suppress(Exception):
            yield file, header((root / file.name).read_bytes())


def _refuse_sizes(root: Path, files: Sequence[File], place: int, size: tuple[int, int], form: Form) -> None:
    own = (form.width, form.height)
    first = next(file for file, seen in _headers(root, files) if seen.size == own)
    what = f"images differ in size: {root / first.name} is {size_text(own)}, {root / files[place].name} is "
    cure = f"set dataset.resize, for example to {min(*size, *own)}"
    raise DataError("dataset.resize", what + size_text(size), cure)


def _listed(root: Path) -> tuple[list[File], tuple[str, ...], list[str]]:
    """The files by class and path, the class names, and notices of what was passed over."""
    with disk_errors(root, "dataset.root"):
        given = {PARTS[name.lower()]: name for name in _folders(root) if name.lower() in PARTS}
        if not {"train", "test"} <= given.keys():
            given = {"": ""}
        by_class: dict[str, list[tuple[os.DirEntry[str], str, str]]] = {}
        passed: Counter[str] = Counter()
        for part, folder in given.items():
            for name in _folders(root / folder):
                images = by_class.setdefault(name, [])
                below = "/".join(filter(None, (folder, name)))
                for path, entry in _walk(root / below, below):
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each file is slow
                    if suffix in SUFFIXES:
                        images.append((entry, path, part))
                    else:
                        passed[suffix or entry.name] += 1
    classes = tuple(sorted(by_class))
    _refuse_unusable(root, {name: [part for _, _, part in by_class[name]] for name in classes}, given)
    files = [
        _file(entry, path, label, part) for label, name in enumerate(classes) for entry, path, part in by_class[name]
    ]
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed.most_common(5))
    return files, classes, [f"files that are no images were passed over: {kinds}"] if passed else []


def _file(entry: os.DirEntry[str], path: str, label: int, part: str) -> File:
    try:
        state = entry.stat()
    except OSError:  # a link to nothing: told when it is opened
        return File(path, label, part, 0, 0)
    return File(path, label, part, state.st_size, state.st_mtime_ns)


def _walk(folder: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below `folder` with their paths, in the order of the names; nothing hidden, no links to folders."""
    with os.scandir(folder) as entries:
        for entry in sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
        ):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, f"{below}/{entry.name}")
            elif not entry.is_dir():
                yield f"{below}/{entry.name}", entry


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _refuse_unusable(root: Path, by_class: dict[str, list[str]], given: dict[str, str]) -> None:
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
        parts = set(images)
        if "train" not in parts:
            what = f"the class {name!r} is in {' and '.join(sorted(parts))} and not in train"
            raise DataError(str(root), what, "add training images of it or remove it there")


def _refuse_empty(root: Path, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    for label, count in enumerate(np.bincount(labels, minlength=len(classes))):
        if count == 0:
            what = f"the class {classes[label]!r} has no image that can be used"
            raise DataError(str(root), what, "add whole images or remove the folder")


def _conversions(files: Sequence[File], modes: NDArray[np.str_], channels: int) -> list[str]:
    """A line for each kind of image that was changed to fit."""
    kinds: dict[str, list[int]] = {}
    for mode in np.unique(modes):
        words = WORDS.get(str(mode))
        if mode == "L" and channels == 3:  # noqa: PLR2004 - RGB
            words = "grey among colour images: taken as RGB"
        if mode == "RGB" and channels == 1:
            words = "colour images taken as grey (dataset.color)"
        if words is not None:
            kinds.setdefault(words, []).extend(np.flatnonzero(modes == mode).tolist())
    return [
        f"{_count(len(places), 'image')}, {words}; the first: {files[min(places)].name}"
        for words, places in sorted(kinds.items(), key=lambda kind: min(kind[1]))
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
