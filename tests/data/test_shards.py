"""Shards in a folder: the pixels of the files they were made of, each once, in an order that needs few at a time."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from job.cli import main
from job.data import shards_write
from job.data.candidates import candidates
from job.data.dataset import Splits, load, locate
from job.data.images import foundation
from job.data.loader import Pixels, Settings, TrainingBatches, in_order
from job.data.shards import Shards, ahead
from job.data.shards_index import PARTS
from job.device import Device
from job.errors import DataError, SpecError, UsageError
from job.spec.load import parse
from job.spec.schema import Augment, Dataset, Loader
from tests.data.sharding import change, made, pictures, spec

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=True, threads=1)
AUGMENT = Augment(flip=True, crop_padding=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    made(root, str(tmp_path / "shards"), validation=0.1)
    return tmp_path / "shards"


def base(splits: Splits) -> Shards:
    found = foundation(splits.train.images)[0]
    assert isinstance(found, Shards)
    return found


def content(splits: Splits, part: str) -> set[tuple[bytes, int]]:
    split = getattr(splits, part)
    return {(image.tobytes(), int(label)) for image, label in zip(split.images[:], split.labels, strict=True)}


def batches(splits: Splits, size: int = 16, workers: int = 0, rank: int = 0, ranks: int = 1) -> TrainingBatches:
    settings = Settings(size, resident=False, num_workers=workers, prefetch_factor=2 if workers else None)
    pixels = Pixels.on(CPU, splits.mean, splits.std)
    return TrainingBatches(splits.train, settings, CPU, pixels, AUGMENT, 7, rank, ranks)


def refusal(uri: Path, **keys: object) -> str:
    """What is said, in one line, of a data set that is read to the end."""

    def read() -> None:
        splits = load(spec(uri, **keys))
        for split in (splits.train, splits.test):
            assert len(split.images[:])

    with pytest.raises(DataError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_splits_are_those_of_the_folder(root: Path, folder: Path) -> None:
    one = load(Dataset(name="image_folder", root=str(root), validation=0.1))
    other = load(spec(folder, validation=0.1))
    for part in PARTS:
        assert content(one, part) == content(other, part)
    assert (other.classes, other.mean, other.std) == (one.classes, one.mean, one.std)
    assert [len(getattr(other, part).labels) for part in PARTS] == [86, 10, 24]


def test_arrays_are_stored_without_loss(tmp_path: Path) -> None:
    digits = Dataset(name="digits", subset=200)
    list(shards_write.write(digits, str(tmp_path), 10_000))
    one, other = load(digits), load(spec(tmp_path))
    assert other.train.images.shape == (200, 8, 8, 1)
    for part in ("train", "test"):
        assert content(one, part) == content(other, part)


def test_equal_data_gives_equal_shards_no_larger_than_asked(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(root, str(tmp_path / name))
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    sizes = [len(bytes_) for name, bytes_ in files.items() if name.endswith(".tar")]
    assert len(sizes) > 5
    assert max(sizes) <= 20_480  # a tar grows by 10,240 bytes


WEBDATASET = """
import hashlib, json, sys, webdataset
read = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("rgb8").to_tuple("png;jpg", "cls", "__key__")
print(json.dumps([[key, label, hashlib.sha256(image.tobytes()).hexdigest()] for image, label, key in read]))
"""


def test_webdataset_reads_them(folder: Path) -> None:
    """In a process of its own: it leaves files open. JPEG decoders differ in the last bit, so PNGs are compared."""
    splits = load(spec(folder))
    paths = sorted(folder.glob("train-*.tar"))
    command = [sys.executable, "-c", WEBDATASET, *map(str, paths)]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [label for _, label, _ in read] == splits.train.labels.tolist()
    assert [int(key) for key, _, _ in read] == list(range(len(read)))
    names = set()
    for path in paths:
        with tarfile.open(path) as tar:
            names.update(tar.getnames())
    lossless = [place for place, (key, _, _) in enumerate(read) if f"{key}.png" in names]
    assert len(lossless) > 10
    for place in lossless:
        assert read[place][2] == hashlib.sha256(splits.train.images[place].tobytes()).hexdigest()


def test_an_order_follows_from_seed_and_epoch_and_each_image_comes_once(folder: Path) -> None:
    splits = load(spec(folder, shuffle_window=3))
    one, other = batches(splits), batches(load(spec(folder, shuffle_window=3)))
    orders = [one.order(epoch) for epoch in range(3)]
    assert all(np.array_equal(order, other.order(epoch)) for epoch, order in enumerate(orders))
    assert not np.array_equal(orders[0], orders[1])
    assert all(np.array_equal(np.sort(order), np.arange(len(splits.train.labels))) for order in orders)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_few_shards_are_in_use_at_a_time_and_they_are_mixed(folder: Path, window: int) -> None:
    splits = load(spec(folder, shuffle_window=window))
    shards = base(splits).shard[batches(splits).order(0)]
    used = np.unique(shards)
    assert len(used) > 2 * window
    begins = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in used}
    ends = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in used}
    in_use = [sum(begins[shard] <= at <= ends[shard] for shard in used) for at in range(len(shards))]
    assert max(in_use) <= window + 1
    assert np.mean(np.diff(shards) != 0) > (1 - 1 / window) * 0.8 if window > 1 else True


def test_a_batch_is_a_fair_sample(folder: Path) -> None:
    """Classes lie one after the other in the folder, and all of them in each shard."""
    splits = load(spec(folder, shuffle_window=2))
    for batch in np.array_split(splits.train.labels[batches(splits).order(0)], 4):
        assert len(np.unique(batch)) == 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_the_step_it_begins_at_change_nothing(folder: Path, workers: int) -> None:
    splits = load(spec(folder, shuffle_window=2))
    alone, several = batches(splits), batches(load(spec(folder, shuffle_window=2)), workers=workers)
    for epoch in range(2):
        one, other = list(alone.epoch(epoch)), list(several.epoch(epoch))
        later = list(several.epoch(epoch, 3))
        assert len(one) == len(other) == 6
        for a, b in [*zip(one, other, strict=True), *zip(one[3:], later, strict=True)]:
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
            assert np.array_equal(a.indices, b.indices)
    several.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_each_batch_without_drops_or_duplicates(folder: Path, ranks: int) -> None:
    splits = load(spec(folder, shuffle_window=2))
    alone = list(batches(splits).epoch(1))
    shares = [list(batches(splits, rank=rank, ranks=ranks).epoch(1)) for rank in range(ranks)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))


def test_evaluation_sees_each_image_once_and_in_order(folder: Path) -> None:
    splits = load(spec(folder))
    pixels = Pixels.on(CPU, splits.mean, splits.std)
    labels = torch.cat([batch.labels for batch in in_order(splits.test, CPU, pixels, 5)])
    assert labels.tolist() == splits.test.labels.tolist()


def test_a_part_takes_the_first_shards_and_validation_the_last(folder: Path) -> None:
    change(folder, lambda index: index.update(train=index["train"] + index.pop("validation"), validation=[]))
    splits = load(spec(folder, subset=30, validation=0.2))
    assert splits.validation is not None
    assert np.bincount(splits.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(splits.validation.labels).tolist() == [2, 2, 2]
    shards = [base(splits).shard[foundation(part.images)[1]] for part in (splits.train, splits.validation)]
    assert shards[1].max() <= 10  # of 16
    assert shards[0].mean() < shards[1].mean()
    assert load(spec(folder, subset=30)).sha256 != splits.sha256 != load(spec(folder, subset=31, validation=0.2)).sha256


def test_it_is_streamed_unless_memory_is_asked_for(folder: Path) -> None:
    splits = load(spec(folder))
    assert "it is streamed" in candidates(splits.train, Loader(), CPU)[0].note
    assert candidates(splits.train, Loader(resident=True), CPU)[0].note == ""
    resident = TrainingBatches(
        splits.train, Settings(16, True), CPU, Pixels.on(CPU, splits.mean, splits.std), AUGMENT, 7
    )
    for a, b in zip(resident.epoch(0), batches(splits).epoch(0), strict=True):
        assert torch.equal(a.images, b.images)


def test_a_copy_elsewhere_is_the_same_data(folder: Path, tmp_path: Path) -> None:
    before = load(spec(folder)).sha256
    folder.rename(tmp_path / "moved")
    assert load(spec(tmp_path / "moved")).sha256 == before


def test_a_closed_reader_ahead_leaves_no_thread(folder: Path) -> None:
    splits = load(spec(folder, shuffle_window=2))
    brought = batches(splits)
    next(brought.epoch(0))
    with ahead(splits.train.images, brought.order(0)) as coming:
        assert coming is not None
        threads = coming.threads
    assert not any(thread.is_alive() for thread in threads)


# --- what is wrong with it, in a line ---


def test_no_index(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for what in (lambda: load(spec(tmp_path / "empty")), lambda: locate(spec(tmp_path / "absent"))):
        with pytest.raises(DataError, match=r"index\.json.*python -m job shard SPEC DEST"):
            what()


def test_an_index_that_is_none(folder: Path) -> None:
    (folder / "index.json").write_text("{}")
    assert "index.json: it is no index of shards (format: Field required)" in refusal(folder)
    (folder / "index.json").write_text("no JSON")
    assert "it is no index of shards (Invalid JSON" in refusal(folder)


def test_a_name_that_leads_elsewhere(folder: Path) -> None:
    change(folder, lambda index: index["train"][0].update(name="../train-000000.tar"))
    assert "it is no index of shards (train.0.name: " in refusal(folder)


def test_a_shard_is_missing(folder: Path) -> None:
    (folder / "train-000002.tar").unlink()
    assert "train-000002.tar: the shard is missing; copy the shards again, or make them anew" in refusal(folder)


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "test-000001.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path}: it has " in refusal(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_bit(folder: Path, workers: int) -> None:
    path = folder / "train-000001.tar"
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 1
    path.write_bytes(damaged)
    several = batches(load(spec(folder)), workers=workers)
    with pytest.raises(DataError, match=r"train-000001.tar: its checksum is \w{64}, not \w{64}"):
        list(several.epoch(0))
    several.close()


def test_a_damaged_table(folder: Path) -> None:
    path = folder / "samples.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert "samples.npy: its checksum is " in refusal(folder)


def test_a_wrong_label(folder: Path) -> None:
    change(folder, lambda index: index.update(classes=["ant", "bee"]))
    line = refusal(folder)
    assert "has the label 2, and there are 2 classes; make the shards anew" in line
    assert "train-0000" in line


def test_a_class_without_training_images(folder: Path) -> None:
    change(folder, lambda index: index.update(classes=["ant", "bee", "cat", "dog"]))
    assert "the class 'dog' has no training images" in refusal(folder)


def test_more_images_than_the_table_has(folder: Path) -> None:
    change(folder, lambda index: index["train"][0].update(images=100))
    assert "its shards have " in refusal(folder)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    """Told without looking at a shard; resized they can be learned from."""
    root = pictures(tmp_path / "images", each=8)
    pictures(tmp_path / "larger", size=(20, 16), each=8)
    for path in sorted((tmp_path / "larger").rglob("*.*")):
        path.rename(root / path.parent.name / f"larger-{path.name}")
    with pytest.raises(DataError, match="images differ in size"):
        made(root, str(tmp_path / "shards"))
    assert not (tmp_path / "shards").exists()
    made(root, str(tmp_path / "shards"), resize=8)
    for path in (tmp_path / "shards").glob("*.tar"):
        path.rename(path.with_suffix(".away"))
    line = refusal(tmp_path / "shards", normalize={"mean": 0.5, "std": 0.5})
    assert "dataset.resize: images differ in size: " in line
    assert "10×8" in line
    assert "20×16" in line
    for path in (tmp_path / "shards").glob("*.away"):
        path.rename(path.with_suffix(".tar"))
    assert load(spec(tmp_path / "shards", resize=8)).train.images[:].shape[1:] == (8, 8, 3)


def test_another_form_than_was_measured(folder: Path) -> None:
    assert "dataset.normalize: mean and standard deviation were measured with resize: null, rgb, not 6, rgb" in refusal(
        folder, resize=6
    )
    given = {"mean": 0.5, "std": 0.5}
    assert load(spec(folder, resize=6, color="grey", normalize=given)).train.images[:3].shape == (3, 6, 6, 1)


def test_a_place_that_has_shards_already(root: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"there are shards in it: index\.json"):
        made(root, str(folder))
    with pytest.raises(UsageError, match="these are shards already"):
        list(shards_write.write(spec(folder), str(folder) + "2"))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("name: shards", "dataset.uri: nothing says where the shards are"),
        ("name: digits, uri: x", "dataset.uri: it says where shards are, and dataset.name is digits"),
        ("name: shards, uri: 'oci://b/p', cache: false", "dataset.cache: what is streamed from dataset.uri needs"),
        ("name: shards, uri: x, shuffle_windw: 3", "dataset.shuffle_windw: not a key; did you mean shuffle_window?"),
        ("name: shards, uri: x, shuffle_window: 0", "dataset.shuffle_window: 0 is too small"),
    ],
)
def test_keys(dataset: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(f"dataset: {{{dataset}}}\nmodel: {{name: small_cnn}}", "spec.yaml")
    assert said in str(caught.value)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("dataset: {name: digits, subset: 100}\nmodel: {name: small_cnn}\n")
    assert main(["shard", str(path), str(tmp_path / "shards"), "--size", "30KB"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("train-000000.tar: ")
    assert said[-1].endswith(
        f"100 train, 25 test; learn from them with dataset: {{name: shards, uri: {tmp_path}/shards}}"
    )
    assert main(["shard", str(path), str(tmp_path / "more"), "--size", "large"]) == 2
    assert "--size: large; give a size such as 128MiB or 2GiB" in capsys.readouterr().err
