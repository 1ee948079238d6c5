"""One image file to pixels: the same uint8 on every path, whether decoded once and kept or at each use.

JPEGs of their own size go through torchvision's decoder; where the spec resizes, Pillow has libjpeg decode at 1/2, 1/4
or 1/8 of the size, never below what is asked for. On one core, 256×256: 3,500 images/s against Pillow's 1,500 at full
size, and 3,100 resized to 64. Everything that is not a plain JPEG goes through Pillow: transparency is laid over
white, 16 bits are scaled to 8, a camera held on its side is turned upright.
"""

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from job.device import cpu_count
from job.errors import DataError

VERSION = 1  # raised when the same file would give other pixels, so that kept copies are made anew
SIXTEEN = frozenset({"I;16", "I;16B", "I;16L", "I"})
FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # JPEG: baseline, extended, progressive; 8 bits, Huffman
ORIENTATION = 0x0112  # EXIF: how the camera was held
Image.MAX_IMAGE_PIXELS = 200_000_000  # beyond this Pillow suspects a decompression bomb


class Header(NamedTuple):
    """Pillow's mode, and the size as shown: (width, height)."""

    mode: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Form:
    """What every image of a data set is brought to. Without `resize` an image must have this size itself."""

    height: int
    width: int
    channels: int
    resize: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def nbytes(self) -> int:
        return self.height * self.width * self.channels


def header(content: bytes) -> Header:
    """What the first bytes say, at little cost. Raises what Pillow raises."""
    plain = _plain_jpeg(content)
    if plain is not None:
        return plain
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) in {5, 6, 7, 8}
            mode = "RGBA" if image.mode == "P" and "transparency" in image.info else image.mode
            return Header(mode, (height, width) if turned else (width, height))


def decode(content: bytes, form: Form, seen: Header) -> NDArray[np.uint8]:
    """The pixels, (height, width, channels). Raises what the decoder raises, ValueError for another size."""
    whole = seen.size == (form.width, form.height)
    if not whole and not form.resize:
        raise ValueError(f"it is {size_text(seen.size)}, not {size_text((form.width, form.height))}")
    plain = _plain_jpeg(content) is not None
    if whole and plain:
        found = _torchvision(content, form.channels)
        if found is not None:
            return found
    with Image.open(io.BytesIO(content), formats=("JPEG",) if plain else None) as opened:
        if not whole:
            opened.draft(None, (form.width, form.height))
        image = _plain(opened if plain else ImageOps.exif_transpose(opened), form.channels)
    if not whole:
        image = ImageOps.fit(image, (form.width, form.height), Image.Resampling.BILINEAR)
    return np.array(image).reshape(form.shape)


def prepare() -> None:
    """Loads the decoders now, so that processes forked later need not each do it."""
    Image.preinit()
    _operator()


def problem_of(error: Exception) -> str:
    """A decoder's complaint in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    if isinstance(error, PermissionError):
        return "it may not be read"
    if isinstance(error, ValueError) and str(error).startswith("it is "):
        return str(error)
    words = " ".join(str(error).split()) or type(error).__name__
    return f"it is damaged ({words})"


def size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


class Encoded:
    """Images that stay in their files and are decoded at each use: for what fits neither memory nor the kept copy.

    In the process that trains, all CPUs decode together; a worker process decodes by itself.
    """

    def __init__(self, files: Sequence[str], form: Form) -> None:
        self.files, self.form = files, form

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.form.shape)

    @property
    def nbytes(self) -> int:
        return len(self.files) * self.form.nbytes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Any, /) -> NDArray[np.uint8]:
        places = np.arange(len(self.files))[place]
        return self._read(int(places)) if places.ndim == 0 else together(self._read, places, self.form)

    def _read(self, place: int) -> NDArray[np.uint8]:
        path = Path(self.files[place])
        try:
            content = path.read_bytes()
            return decode(content, self.form, header(content))
        except Exception as error:
            cure = "it was whole when this data set was first read: put it back, or leave it out"
            raise DataError(str(path), problem_of(error), cure) from error


def together(read: Callable[[int], NDArray[np.uint8]], places: NDArray[np.int64], form: Form) -> NDArray[np.uint8]:
    """What `read` gives for each place, by all CPUs, in a worker process by its own."""
    images = np.empty((len(places), *form.shape), np.uint8)

    def fill(into: int) -> None:
        images[into] = read(int(places[into]))

    threads = _threads()
    if threads == 1 or len(places) <= 1:
        for into in range(len(places)):
            fill(into)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(len(places))))
    return images


def _threads() -> int:
    from torch.utils.data import get_worker_info

    return 1 if get_worker_info() is not None else cpu_count()


def _plain_jpeg(content: bytes) -> Header | None:
    """The header of an upright 8-bit grey or colour JPEG; None for anything else, also for a damaged one."""
    if content[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:  # noqa: PLR2004 - each marker begins with it
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker in FRAMES:
            precision, components = content[place + 4], content[place + 9]
            height, width = (int.from_bytes(content[place + at : place + at + 2]) for at in (5, 7))
            usual = precision == 8 and components in (1, 3) and 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0)  # noqa: PLR2004
            return Header("L" if components == 1 else "RGB", (width, height)) if usual else None
        if content[place + 4 : place + 8] == b"Exif" and _turned(content[place + 4 : place + 2 + length]):
            return None
        place += 2 + length
    return None


def _turned(segment: bytes) -> bool:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return bool(exif.get(ORIENTATION, 1) != 1)
    except Exception:  # EXIF is written by many hands: Pillow shall say what it makes of it
        return True


@functools.cache
def _operator() -> Callable[..., Any] | None:
    """torchvision's JPEG decoder, loaded without importing torchvision, which takes a second; None: Pillow decodes."""
    import torch

    found = importlib.util.find_spec("torchvision")
    for folder in [] if found is None else found.submodule_search_locations or []:
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:
                continue
            operator: Callable[..., Any] = torch.ops.image.decode_jpeg
            return operator
    return None


def _torchvision(content: bytes, channels: int) -> NDArray[np.uint8] | None:
    """None where it cannot: Pillow then decodes, or says what is wrong."""
    operator = _operator()
    if operator is None:
        return None
    import torch

    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)  # bytes would warn that they cannot be written
    try:
        found: NDArray[np.uint8] = operator(raw, channels, False).permute(1, 2, 0).numpy()  # 1: grey, 3: RGB
    except RuntimeError:
        return None
    return np.ascontiguousarray(found)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Any image as 8-bit grey or RGB."""
    if image.mode in SIXTEEN:
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("L" if channels == 1 else "RGB")
