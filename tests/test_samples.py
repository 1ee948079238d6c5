"""Every sample spec runs: on little data where it would take long, and on a CPU where it is meant for a GPU."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from job import pipeline
from job.data import shards_write
from job.events import Ended, Event
from job.interrupt import StopFlag
from job.spec.load import load

SAMPLES = Path(__file__).resolve().parent.parent / "job/spec/samples"
LITTLE = ("dataset.subset=0.02", "train.epochs=1", "schedule.warmup_epochs=0", "train.log_every=50")
ON_CPU = ("train.device=cpu", "train.precision=fp32", "train.compile=false", "loader.batch_size=50", "model.width=4")


def run(sample: str, store: Path, *overrides: str, **environ: str) -> list[Event]:
    loaded = load(SAMPLES / sample, [f"store.uri={store}", *overrides], environ)
    return list(pipeline.job(loaded, "run", StopFlag()))


def accuracy(events: list[Event]) -> float:
    assert isinstance(events[-1], Ended)
    return events[-1].accuracy


def test_the_demo_reaches_its_mark(tmp_path: Path) -> None:
    assert accuracy(run("digits.yaml", tmp_path)) >= 0.96


@pytest.mark.slow
def test_the_ci_sample(tmp_path: Path, cifar10_root: Path) -> None:
    assert accuracy(run("cifar10-ci.yaml", tmp_path, JOB_DATA_ROOT=str(cifar10_root))) >= 0.45


@pytest.mark.parametrize(
    ("sample", "overrides"),
    [
        ("cifar10-tutorial.yaml", ()),
        ("cifar10-fast.yaml", ()),
        ("cifar10.yaml", ("model.width=4", "loader.batch_size=64")),
        ("cifar10-long.yaml", ("model.width=4", "loader.batch_size=64")),
        ("cifar10-gpu.yaml", ON_CPU),
    ],
)
def test_the_others_on_little(tmp_path: Path, cifar10_root: Path, sample: str, overrides: tuple[str, ...]) -> None:
    events = run(sample, tmp_path, *LITTLE, *overrides, JOB_DATA_ROOT=str(cifar10_root))
    assert accuracy(events) > 0.08  # chance is 0.1: it ran, and what it learned in a blink does not matter


def test_own_images(tmp_path: Path) -> None:
    own_images(tmp_path / "images")
    (tmp_path / "images/dark/broken.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    keys = ("train.epochs=4", *SMALL)
    events = run("image-folder.yaml", tmp_path / "runs", *keys, IMAGES=str(tmp_path / "images"))
    assert accuracy(events) >= 0.9
    assert "broken.jpg" in (tmp_path / "runs/run/report.json").read_text(encoding="utf-8")


def test_the_same_in_shards(tmp_path: Path) -> None:
    own_images(tmp_path / "images")
    shards = str(tmp_path / "shards")
    made_from = load(SAMPLES / "image-folder.yaml", ["dataset.resize=16"], {"IMAGES": str(tmp_path / "images")})
    list(shards_write.write(made_from.spec.dataset, shards, 20_480))
    assert accuracy(run("shards.yaml", tmp_path / "runs", "train.epochs=4", *SMALL, SHARDS=shards)) >= 0.9


SMALL = ("schedule.warmup_epochs=1", "loader.batch_size=8", "model.width=4", "dataset.resize=16")


def own_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            height, width = generator.integers(40, 90, 2)
            pixels = generator.integers(shade - 50, shade + 50, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
