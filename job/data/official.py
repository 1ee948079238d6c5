"""The data sets that torchvision knows by name, read straight from the files it leaves on disk.

Files are held against the published checksums before they are opened, and CIFAR's pickles can name nothing but numpy
arrays. Importing torchvision costs a second or two, so that it is left to downloading.
"""

import gzip
import hashlib
import io
import pickle
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError

THREADS = 2  # reading, hashing and copying a file each; more take more memory and are no faster
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, H, W, C) and (N,)


@dataclass(frozen=True)
class Official:
    """Where a data set's files lie below the root, and what they are. md5 sums are those of torchvision 0.29."""

    torchvision: str  # class in torchvision.datasets
    folder: str
    archive: str | None  # the official archive's name, if it is one file
    archive_md5: str | None
    train: dict[str, str]  # file name → md5
    test: dict[str, str]
    classes: tuple[str, ...]  # empty: read from the files

    @property
    def files(self) -> dict[str, str]:
        return {**self.train, **self.test}


MNIST_FOLDER, FASHION_FOLDER = "MNIST/raw", "FashionMNIST/raw"
OFFICIAL = {
    "cifar10": Official(
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),  # the tutorial's names
    ),
    "cifar100": Official(
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "meta": "7973b15100ade9c7d40fb424638fde48"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        (),
    ),
    "mnist": Official(
        "MNIST",
        MNIST_FOLDER,
        None,
        None,
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        },
        {
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple("0123456789"),
    ),
    "fashion_mnist": Official(
        "FashionMNIST",
        FASHION_FOLDER,
        None,
        None,
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        },
        {
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def holds(name: str, root: Path) -> bool:
    """Whether the folder of this data set is there at all; damage in it is told when it is read."""
    return (root / OFFICIAL[name].folder).is_dir()


def read(name: str, root: Path) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Training and test images with their labels, and the class names. DataError for a missing or damaged file."""
    official = OFFICIAL[name]
    folder = root / official.folder
    if name.startswith("cifar"):
        train, test = (_read_cifar(folder, files, official) for files in (official.train, official.test))
    else:
        train, test = (_read_idx(folder, files, official) for files in (official.train, official.test))
    classes = official.classes
    if not classes:
        names = _unpickle(_whole(folder, "meta", official))["fine_label_names"]
        classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return train, test, classes


def _whole(folder: Path, file: str, official: Official) -> bytes:
    """The file's bytes, if they are the published ones. Of an .gz the unpacked file will do."""
    path = folder / file
    cure = f"delete {folder} to have it downloaded again, or put the whole file there"
    try:
        if not path.exists() and path.suffix == ".gz":
            return _unpacked(path.with_suffix(""), cure)
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), "the file is missing", cure) from None
    except OSError as error:
        raise DataError(str(path), (error.strerror or str(error)).lower(), "make it readable for this user") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != official.files[file]:
        what = f"the file is damaged: {len(content):,} bytes with md5 {found}, not {official.files[file]}"
        raise DataError(str(path), what, cure)
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _unpacked(path: Path, cure: str) -> bytes:
    """An unpacked idx file has no published checksum: its length must be what its header says."""
    content = path.read_bytes()
    header = 4 + 4 * content[3] if len(content) > 3 else 0  # noqa: PLR2004 - the fourth byte counts the dimensions
    sizes = np.frombuffer(content[4:header], ">u4") if header > 4 and len(content) >= header else None  # noqa: PLR2004
    if sizes is None or len(content) != header + int(np.prod(sizes, dtype=np.int64)):
        raise DataError(str(path), f"the file is damaged: {len(content):,} bytes are not what its header says", cure)
    return content


def _read_cifar(folder: Path, files: Iterable[str], official: Official) -> Labelled:
    """CIFAR's pickles: 'data' (N, 3072) uint8, channel by channel, and 'labels' or 'fine_labels'.

    Hashing and copying let go of the interpreter's lock. Each file's pixels go when they are copied: CIFAR-10 takes
    little more memory than its images.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        named = [file for file in files if file != "meta"]
        parts = list(pool.map(lambda file: _unpickle(_whole(folder, file, official)), named))
        ends = np.cumsum([len(part["data"]) for part in parts]).tolist()
        images = np.empty((ends[-1], 32, 32, 3), np.uint8)

        def place(number: int) -> NDArray[np.int64]:
            part, end = parts[number], ends[number]
            pixels = part.pop("data").reshape(-1, 3, 32, 32)
            images[end - len(pixels) : end] = pixels.transpose(0, 2, 3, 1)
            return np.asarray(part["labels" if "labels" in part else "fine_labels"], np.int64)

        return images, np.concatenate(list(pool.map(place, range(len(parts)))))


def _read_idx(folder: Path, files: Iterable[str], official: Official) -> Labelled:
    """MNIST's format: images with a header of 16 bytes, labels with one of 8."""
    pixels, labels = (_whole(folder, file, official) for file in files)
    count, height, width = np.frombuffer(pixels[4:16], ">u4").tolist()
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(count, height, width, 1).copy()  # may be written
    return images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Refuses every name but those that numpy arrays of bytes are made of."""

    ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as numpy 1 called it
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return super().find_class(module, name)


def _unpickle(content: bytes) -> dict[str, Any]:
    """Python 2's strings as bytes: as text, the pixels would be decoded and encoded again."""
    loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in loaded.items()}
