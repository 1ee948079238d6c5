"""Batches do not depend on how they are brought, and every image comes exactly once an epoch."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from job.data import image_folder
from job.data.dataset import Split, load
from job.data.decode import Encoded
from job.data.draws import stream
from job.data.images import choose, foundation
from job.data.loader import Pixels, Settings, TrainingBatches, in_order
from job.device import Device
from job.errors import DataError, JobError
from job.spec.schema import Augment, Dataset

COUNT = 53
CPU = Device("cpu", "test", "fp32", compile=False, channels_last=True, threads=1)
AUGMENT = Augment(flip=True, crop_padding=2, cutout=3)
RESIDENT = Settings(8, resident=True)


@pytest.fixture
def split() -> Split:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(COUNT)  # each image knows its number
    return Split(images, np.arange(COUNT) % 5)


def pixels(device: Device = CPU) -> Pixels:
    return Pixels.on(device, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def batches(split: Split, settings: Settings, augment: Augment = AUGMENT, seed: int = 0) -> TrainingBatches:
    return TrainingBatches(split, settings, CPU, pixels(), augment, seed)


def epoch(made: TrainingBatches, number: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(batch.images.clone(), batch.labels.clone()) for batch in made.epoch(number, start)]


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_change_nothing(split: Split, workers: int) -> None:
    """Two epochs, since worker processes stay from one to the next."""
    resident = batches(split, RESIDENT)
    prefetch = 2 if workers else None
    brought = batches(split, Settings(8, resident=False, num_workers=workers, prefetch_factor=prefetch))
    for number in (0, 1):
        assert same(epoch(resident, number), epoch(brought, number))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two classes of twelve JPEGs, two of which are no plain ones."""
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            image = Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.convert("L" if number == 3 else "RGB").save(tmp_path / "images" / label / f"{number}.jpg")
    return tmp_path / "images"


def own(files: Path, **keys: object) -> Split:
    return load(Dataset.model_validate({"name": "image_folder", "root": str(files), **keys})).train


@pytest.mark.parametrize("resize", [None, 12])
def test_files_give_the_same_batches_however_they_are_kept(
    files: Path, monkeypatch: pytest.MonkeyPatch, resize: int | None
) -> None:
    """Kept on disk and resident, in memory, mapped and brought by workers, decoded at each use by 0 to 4 workers."""
    kept, memory = own(files, resize=resize), own(files, resize=resize, cache=False)
    monkeypatch.setattr(image_folder, "available_memory", lambda: 100)
    encoded = own(files, resize=resize, cache=False)
    assert isinstance(foundation(encoded.images)[0], Encoded)
    expected = epoch(batches(kept, RESIDENT), 1)
    ways = [(memory, RESIDENT), (kept, Settings(8, False, 2, prefetch_factor=2))]
    ways += [(encoded, Settings(8, False, count, prefetch_factor=2 if count else None)) for count in (0, 1, 2, 4)]
    ways += [(encoded, Settings(8, False, 2, prefetch_factor=2, start_method="forkserver"))]
    for split, settings in ways:
        made = batches(split, settings)
        assert same(epoch(made, 1), expected)
        made.close()


def test_the_copy_on_the_device_is_made_once(split: Split) -> None:
    settings = Settings(8, resident=True)
    first = batches(split, settings)
    second = batches(split, settings, seed=1)
    assert first.resident is second.resident
    other = Split(split.images[::2], split.labels[::2])
    assert batches(other, settings).resident is not first.resident
    assert len(epoch(batches(other, settings), 0)[0][1]) == 8


def test_a_file_that_goes_bad_is_told_through_the_worker(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "available_memory", lambda: 100)
    split = own(files, cache=False)
    for path in files.rglob("*.jpg"):
        path.write_bytes(b"gone")
    made = batches(split, Settings(8, False, 1, prefetch_factor=2))
    with pytest.raises(DataError, match=r"\.jpg: it is not an image; it was whole when"):
        next(made.epoch(0))
    made.close()


def test_a_worker_that_is_killed_is_one_line(split: Split) -> None:
    class Killing(np.ndarray):
        def __getitem__(self, place: object) -> NoReturn:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    made = batches(Split(split.images[:].view(Killing), split.labels), Settings(8, False, 1, prefetch_factor=2))
    with pytest.raises(JobError, match=r"^loader\.num_workers: a worker process ended: .*(killed|exited)") as caught:
        next(made.epoch(0))
    assert "\n" not in str(caught.value)


TRAINS = """
import sys, time
from job.data.dataset import Split
from job.data.decode import Encoded, Form
from job.data.loader import Pixels, Settings, TrainingBatches
from job.device import Device
from job.spec.schema import Augment
import numpy as np

cpu = Device("cpu", "test", "fp32", compile=False, channels_last=True, threads=1)
split = Split(Encoded(sys.argv[2:] * 64, Form(8, 8, 3, resize=True)), np.zeros(64, np.int64))
settings = Settings(8, False, 1, prefetch_factor=2, start_method=sys.argv[1])
batches = TrainingBatches(split, settings, cpu, Pixels.on(cpu, (0.5,) * 3, (0.5,) * 3), Augment(), 0).epoch(0)
next(batches)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_the_process_that_trains(files: Path, method: str) -> None:
    """However it ends: here nobody can tell them. They hold its standard output for as long as they are there."""
    image = str(next(files.rglob("*.jpg")))
    command = [sys.executable, "-c", TRAINS, method, image]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        trainer.kill()
        assert trainer.communicate(timeout=60)[0] == ""


def test_every_image_once_in_another_order_each_epoch(split: Split) -> None:
    made = batches(split, RESIDENT, Augment())
    numbers = []
    for number in (0, 1):
        images = torch.cat([batch[0] for batch in epoch(made, number)])
        numbers.append(((images[:, 0, 0, 0] * 0.2 + 0.5) * 255).round().int().tolist())
    assert sorted(numbers[0]) == sorted(numbers[1]) == list(range(COUNT))
    assert numbers[0] != numbers[1]
    assert len(made) == 7


@pytest.mark.parametrize("settings", [RESIDENT, Settings(8, resident=False, num_workers=1, prefetch_factor=2)])
def test_an_epoch_can_begin_anywhere(split: Split, settings: Settings) -> None:
    made = batches(split, settings)
    assert same(epoch(made, 3)[4:], epoch(made, 3, start=4))
    assert epoch(made, 3, start=7) == []


def test_the_seed_changes_order_and_augmentation(split: Split) -> None:
    assert not same(epoch(batches(split, RESIDENT), 0), epoch(batches(split, RESIDENT, seed=1), 0))


def test_pixels_are_normalised_as_torchvision_would(split: Split) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))])
    expected = torch.stack([usual(image) for image in split.images[:]])
    torch.testing.assert_close(pixels()(torch.from_numpy(split.images)), expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_is_as_chosen(split: Split, channels_last: bool) -> None:
    device = Device("cpu", "test", "fp32", compile=False, channels_last=channels_last, threads=1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    made = TrainingBatches(split, RESIDENT, device, pixels(device), AUGMENT, 0)
    assert all(batch.images.is_contiguous(memory_format=layout) for batch in made.epoch(0))


def test_evaluation_sees_each_image_once_in_order(split: Split) -> None:
    found = list(in_order(split, CPU, pixels(), batch_size=10))
    assert [len(batch.labels) for batch in found] == [10, 10, 10, 10, 10, 3]
    assert torch.equal(torch.cat([batch.labels for batch in found]), torch.from_numpy(split.labels))


def test_streams_differ_by_position() -> None:
    seeds = {stream(seed, epoch, step) for seed in range(3) for epoch in range(10) for step in range(10)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_what_one_alone_sees(split: Split, ranks: int) -> None:
    alone = epoch(batches(split, RESIDENT), 1)
    parts = [
        epoch(TrainingBatches(split, RESIDENT, CPU, pixels(), AUGMENT, 0, rank, ranks), 1) for rank in range(ranks)
    ]
    together = [
        (torch.cat([part[step][0] for part in parts]), torch.cat([part[step][1] for part in parts]))
        for step in range(len(alone))
    ]
    assert same(alone, together)


def test_the_size_of_a_batch_changes_no_image(split: Split) -> None:
    small, large = (epoch(batches(split, Settings(size, resident=True)), 2) for size in (4, 32))
    assert torch.equal(torch.cat([batch[0] for batch in small]), torch.cat([batch[0] for batch in large]))


@pytest.mark.parametrize("settings", [RESIDENT, Settings(8, resident=False)])
def test_a_choice_of_images_is_as_good_as_a_copy_of_them(split: Split, settings: Settings) -> None:
    places = np.arange(COUNT)[::-2].copy()
    chosen = Split(choose(split.images, places), split.labels[places])
    copied = Split(split.images[places], split.labels[places])
    assert same(epoch(batches(chosen, settings), 0), epoch(batches(copied, settings), 0))
    twice = choose(choose(split.images, places), np.array([3, 1]))
    assert np.array_equal(twice[:], split.images[places[[3, 1]]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_do_not_depend_on_their_neighbours(channels: int, channels_last: bool) -> None:
    """Images large enough to be normalised in several goes."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 300, 301, channels), dtype=np.uint8))
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    normal = Pixels.on(Device("cpu", "test", "fp32", False, channels_last, 1), mean, std)
    plain = (images.permute(0, 3, 1, 2).float() * normal.scale) + normal.shift
    assert torch.equal(normal(images), plain)
    assert torch.equal(normal(images[2:3]), plain[2:3])
