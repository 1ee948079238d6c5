"""A folder of JPEGs: the job against torchvision's ImageFolder with Pillow at its best number of workers.

    python -m tests.bench.folder [--data FOLDER] [--images 20000] [--repeat 3] [--json FILE]

Each measurement is a process of its own, after its imports and one after the other: seconds from listing the folder to
the last batch of 64 normalised float32 images of an epoch. `first`: nothing is kept yet. `second start`: the decoded
copy of an earlier start is found, compared with its checksums, and an epoch follows. `epoch`: one more epoch.
Bars: first ≥ 2, an epoch from the cache ≥ 5, at 256×256 and resized to 64.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from job.device import cpu_count
from tests.bench import common
from tests.bench.common import Ratio, finish
from tests.bench.photos import folder

BATCH = 64
BARS = {"first": 2.0, "epoch": 5.0}
SIZES = {"256": None, "64": 64}
TRIAL = 2000  # images on which ImageFolder's best number of workers is found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    if options.child is not None:
        print(json.dumps(CHILDREN[options.child](options)))
        return 0
    data = common.cifar10(options.data)
    if data is None:
        return 0
    root = folder(data, options.images)
    found: dict[str, dict[str, list[float]]] = {}
    workers = {}
    for size in SIZES:
        trials = {count: child("theirs", root, size, count, TRIAL)["epoch"] for count in worker_counts()}
        workers[size] = min(trials, key=lambda count: trials[count])
        print(f"{size}: ImageFolder is fastest with {workers[size]} of {', '.join(map(str, trials))} workers")
    for repetition in range(options.repeat):
        for size in SIZES:
            with tempfile.TemporaryDirectory(dir=root.parent) as cache:
                measured = {
                    "ImageFolder": child("theirs", root, size, workers[size])["epoch"],
                    "first": (first := child("ours", root, size, cache=cache))["first"],
                    **{word: child("ours", root, size, cache=cache)[at] for word, at in AGAIN.items()},
                    "load": first["load"],
                }
            print(f"{repetition + 1}/{options.repeat} {size}:", shown(measured), flush=True)
            for word, seconds in measured.items():
                found.setdefault(size, {}).setdefault(word, []).append(seconds)
    return summary(options, found, workers)


AGAIN = {"second start": "first", "epoch": "epoch"}


def summary(options: argparse.Namespace, found: dict[str, dict[str, list[float]]], workers: dict[str, int]) -> int:
    """Medians and ratios."""
    medians = {size: {word: common.median(times) for word, times in rows.items()} for size, rows in found.items()}
    print(f"\n{options.images:,} images, medians of {options.repeat}")
    ratios = []
    for size, rows in medians.items():
        for word in ("ImageFolder", "first", "second start", "epoch"):
            who = f"ImageFolder, {workers[size]} workers" if word == "ImageFolder" else word
            print(f"{size:>4}  {who:24} {rows[word]:6.2f} s, {options.images / rows[word]:8,.0f} images/s")
        for word, what in (
            ("first", "first epoch"),
            ("second start", "second start"),
            ("epoch", "epoch from the cache"),
        ):
            ratio = rows["ImageFolder"] / rows[word]
            ratios.append(Ratio(f"ImageFolder ÷ ours, JPEGs at {size}, {what}", ratio, BARS.get(word)))
    return finish("folder", ratios, {"images": options.images, "seconds": found, "workers": workers}, options.json)


def shown(measured: dict[str, float]) -> str:
    return ", ".join(f"{word} {seconds:.2f} s" for word, seconds in measured.items())


def worker_counts() -> list[int]:
    return sorted({0, 1, cpu_count(), 2 * cpu_count()})


def child(kind: str, root: Path, size: str, workers: int = 0, images: int = 0, cache: str = "") -> dict[str, float]:
    """Runs one measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.folder", "--child", kind, "--root", str(root), "--size", size]
    command += ["--workers", str(workers), "--images", str(images)]
    done = subprocess.run(
        command, env={**os.environ, "JOB_CACHE_DIR": cache}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """What most people write: ImageFolder, ToTensor, Normalize, and a DataLoader."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    size = SIZES[options.size]
    resizing = [] if size is None else [Resize(size), CenterCrop(size)]
    changes = Compose([*resizing, ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    began = time.perf_counter()
    images = ImageFolder(options.root / "train", changes)
    part = Subset(images, range(0, len(images), max(1, len(images) // options.images))) if options.images else images
    count = sum(len(labels) for _, labels in DataLoader(part, BATCH, shuffle=True, num_workers=options.workers))
    assert count == len(part)
    return {"epoch": time.perf_counter() - began}


def ours(options: argparse.Namespace) -> dict[str, float]:
    from job.data.dataset import load
    from job.data.loader import Pixels, Settings, TrainingBatches
    from job.device import choose
    from job.spec.schema import Augment, Dataset, Normalize, Train

    device = choose(Train(), batch_norm=False)
    began = time.perf_counter()
    spec = Dataset(name="image_folder", root=str(options.root), resize=SIZES[options.size], normalize=Normalize())
    splits = load(spec)
    loaded = time.perf_counter()
    pixels = Pixels.on(device, splits.mean, splits.std)
    batches = TrainingBatches(splits.train, Settings(BATCH, resident=True), device, pixels, Augment(), 0)
    times = {"load": loaded - began}
    for epoch, word in enumerate(("first", "epoch")):
        count = sum(len(batch.labels) for batch in batches.epoch(epoch))
        assert count == len(splits.train.labels)
        times[word] = time.perf_counter() - began
        began = time.perf_counter()
    return times


CHILDREN = {"theirs": theirs, "ours": ours}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="JPEGs to make and read")
    for name, kind in (("--child", str), ("--root", Path), ("--size", str), ("--workers", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
