"""A folder of photographs to measure with, made once from CIFAR-10: 256×256, about 13 KB each, the same every time."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from job.data import official
from job.data.kept import cache_root
from job.device import cpu_count

SIDE = 256
QUALITY = 80
GRAIN = 12  # of 255: what a sensor adds, so that a file is as large as that of a photograph of this size
BLOCK = 500  # images a task


def folder(data: Path, count: int) -> Path:
    """The folder with train/CLASS/*.jpg and ten test images; made where it is not there yet."""
    root = cache_root() / "bench" / f"photos-{count}"
    if not (root / "done").exists():
        print(f"making {count:,} JPEGs in {root}, once", flush=True)
        blocks = [(data, root, range(start, min(count, start + BLOCK))) for start in range(0, count, BLOCK)]
        with ProcessPoolExecutor(cpu_count()) as pool:
            list(pool.map(_make, blocks))
        (root / "done").touch()
    return root


def _make(block: tuple[Path, Path, range]) -> None:
    data, root, numbers = block
    (images, labels), (test, test_labels), classes = official.read("cifar10", data)
    for number in numbers:
        _save(root / "train" / classes[labels[number]] / f"{number:05}.jpg", images[number], number)
    if numbers.start == 0:
        for label, name in enumerate(classes):
            place = int(np.flatnonzero(test_labels == label)[0])
            _save(root / "test" / name / f"{place:05}.jpg", test[place], 10**6 + place)


def _save(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    large = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(seed).integers(-GRAIN, GRAIN + 1, (SIDE, SIDE, 1), dtype=np.int16)
    Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
