"""Shards in a bucket, through the real SDK and the protocol server: faults, a small cache, two processes."""

import errno
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job import pipeline
from job.data import kept, shards_cache
from job.data import shards as shards_module
from job.data.dataset import Splits, load, locate
from job.data.images import foundation
from job.data.loader import Pixels, Settings, TrainingBatches, in_order
from job.data.shards import Shards
from job.data.shards_index import Shard
from job.device import Device
from job.errors import DataError
from job.interrupt import StopFlag
from job.runfolder import sha256
from job.spec.load import load as load_spec
from job.spec.schema import Augment, Dataset
from job.storage import download
from job.storage.store import open_store
from job.training import checkpoint
from tests.data.sharding import made, pictures, spec
from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=True, threads=1)
URI = "oci://bucket@space/shards"
RUN = """
name: streamed
dataset: {name: shards, uri: "oci://bucket@space/digits", validation: 0.1, shuffle_window: 2, cache_limit: 250KB}
loader: {batch_size: 16, num_workers: 1}
model: {name: resnet9, width: 2}
optimizer: {lr: 0.05}
train: {epochs: 2, device: cpu, log_every: 1}
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    for name in ("OCI_CLI_CONFIG_FILE", "OCI_CLI_PROFILE", "OCI_CLI_REGION", "OCI_REGION", "JOB_OCI_AUTH"):
        monkeypatch.delenv(name, raising=False)
    with ObjectStorage(tmp_path / "server", page_size=7) as running:
        monkeypatch.setenv("JOB_OCI_ENDPOINT", running.endpoint)
        monkeypatch.setenv("OCI_CLI_AUTH", "api_key")
        monkeypatch.setenv("OCI_CONFIG_FILE", str(write_config(tmp_path / "oci", running.identity)))
        monkeypatch.setenv("JOB_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr("job.storage.attempts.FIRST_WAIT", 0.001)
        monkeypatch.setattr(shards_cache, "WAITS", (0.001,))
        monkeypatch.setattr(download, "CHUNK", 8_000)  # several ranges a shard
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return pictures(tmp_path / "images")


@pytest.fixture
def bucket(server: ObjectStorage, root: Path) -> ObjectStorage:
    made(root, URI, validation=0.1)
    return server


def small(**keys: object) -> Dataset:
    """As little cache as a window of one shard can do with."""
    needed = 20_480 * (1 + 1 + shards_module.AHEAD + shards_module.FETCHERS)
    return spec(URI, shuffle_window=1, cache_limit=needed, **keys)


def batches(splits: Splits, workers: int = 0) -> TrainingBatches:
    settings = Settings(16, resident=False, num_workers=workers, prefetch_factor=2 if workers else None)
    return TrainingBatches(splits.train, settings, CPU, Pixels.on(CPU, splits.mean, splits.std), Augment(), 7)


def images(splits: Splits, workers: int = 0, epoch: int = 0) -> torch.Tensor:
    made = batches(splits, workers)
    found = torch.cat([batch.images for batch in made.epoch(epoch)])
    made.close()
    return found


def files_of(splits: Splits) -> shards_cache.ShardFiles:
    found = foundation(splits.train.images)[0]
    assert isinstance(found, Shards)
    return found.files


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/shards").glob("*/*.tar"))


def got(server: ObjectStorage) -> list[str]:
    """Shards that were asked for, with each range."""
    return [told.name.rpartition("/")[2] for told in server.told if told.operation == "get" and ".tar" in told.name]


def refusal(dataset: Dataset) -> str:
    with pytest.raises(DataError) as caught:
        images(load(dataset))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streamed_is_as_from_a_folder(bucket: ObjectStorage, root: Path, tmp_path: Path, workers: int) -> None:
    made(root, str(tmp_path / "folder"), validation=0.1)
    local, streamed = load(spec(tmp_path / "folder", shuffle_window=1)), load(small())
    assert local.sha256 == streamed.sha256
    for epoch in range(2):
        assert torch.equal(images(local, 0, epoch), images(streamed, workers, epoch))


def test_all_of_it_is_streamed_once_where_the_cache_holds_it(bucket: ObjectStorage, tmp_path: Path) -> None:
    streamed = load(spec(URI))
    for epoch in range(2):
        images(streamed, 2, epoch)
    assert {path.name.partition("-")[0] for path in cached(tmp_path)} == {"train"}  # nothing else was asked for
    bucket.told.clear()
    images(load(spec(URI)))  # another run
    assert got(bucket) == []


def test_the_oldest_go_first_and_the_limit_holds(
    bucket: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small()
    streamed, peak = load(dataset), [0]
    files = files_of(streamed)
    keep = files._download

    def watched(shard: Shard, path: Path, stop: object) -> None:
        keep(shard, path, shards_cache.NEVER)
        folder = tmp_path / "cache/shards"
        held = [one.stat().st_size for one in folder.glob("*/*") if one.suffix in (".tar", ".new")]
        peak[0] = max(peak[0], sum(held))

    monkeypatch.setattr(files, "_download", watched)
    for number in range(len(files.shards)):
        files.open(number)
    assert isinstance(dataset.cache_limit, int)
    assert dataset.cache_limit - 20_480 < peak[0] <= dataset.cache_limit
    kept = [path.name for path in cached(tmp_path)]
    assert sorted(kept) == sorted(shard.name for shard in files.shards[-len(kept) :])


def test_a_small_cache_brings_no_shard_twice_in_an_epoch(bucket: ObjectStorage) -> None:
    streamed = load(small())
    bucket.told.clear()
    images(streamed)
    asked = [told.name for told in bucket.told if told.operation == "head" and ".tar" in told.name]
    assert len(asked) == len(set(asked)) == len(streamed_shards(streamed))


def streamed_shards(splits: Splits) -> set[int]:
    base, places = foundation(splits.train.images)
    assert isinstance(base, Shards)
    return set(base.shard[places].tolist())


def test_evaluation_is_streamed_too(bucket: ObjectStorage) -> None:
    splits = load(small())
    pixels = Pixels.on(CPU, splits.mean, splits.std)
    labels = torch.cat([batch.labels for batch in in_order(splits.test, CPU, pixels, 5)])
    assert labels.tolist() == splits.test.labels.tolist()


FAULTS = ["429", "500", "503", "reset_before", "reset_response", "reset_after", "cut", "flipped", "wrong_checksum"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_now_and_then_changes_nothing(bucket: ObjectStorage, fault: str) -> None:
    expected = images(load(spec(URI, shuffle_window=1)))
    for path in list(files_of(load(small())).folder.glob("*.tar")):
        path.unlink()
    bucket.faults.add(fault, "get", name=".tar", times=None, probability=0.2)
    # a worker process is forked with the server's own sockets, and what the server closes is then not closed
    for workers in (0,) if fault.startswith("reset") else (0, 2):
        assert torch.equal(images(load(small()), workers), expected)


def test_a_damaged_copy_is_fetched_again(bucket: ObjectStorage, tmp_path: Path) -> None:
    expected = images(load(small()))
    path = cached(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-700])
    assert torch.equal(images(load(small())), expected)


def test_what_a_killed_process_left_does_not_stay(bucket: ObjectStorage, tmp_path: Path) -> None:
    streamed = load(small())
    folder = files_of(streamed).folder
    folder.mkdir(parents=True)
    left = folder / ".train-000000.tar.new"
    for path in (left, folder / "..train-000001.tar.new.get.part"):
        path.write_bytes(bytes(100_000))
        os.utime(path, (0, 0))
    images(streamed)
    assert not left.exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 170_000


PROCESSES = 3


def test_a_cache_of_one_shard_that_many_share_is_only_slow(bucket: ObjectStorage, tmp_path: Path) -> None:
    """Each takes away what the others bring, and yet each opening succeeds and brings its shard once at most."""
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()

    def look(seed: int) -> None:
        files = files_of(load(spec(URI)))  # of its own, as a rank's: what others verified is not known here
        assert files.place is not None
        files.place = kept.Place(files.place.folder, 20_480)
        order = np.random.default_rng(seed).permutation(np.tile(np.arange(len(files.shards)), 3))
        found = [files.open(number) for number in order.tolist()]
        path = tmp_path / f"{seed}"
        good = 0
        for file, number in zip(found, order.tolist(), strict=True):  # gone from the cache, most of them
            path.write_bytes(file.read(0, 30_000))
            good += sha256(path) == files.shards[number].sha256
        told.put((good, len(order)))

    processes = [fork.Process(target=look, args=(seed,)) for seed in range(PROCESSES)]
    for process in processes:
        process.start()
    for _ in processes:
        good, asked = told.get(timeout=50)
        assert good == asked > 50
    for process in processes:
        process.join()
    shards = sum(shard.size for shard in files_of(load(spec(URI))).shards)
    left = sum(path.stat().st_size for path in (tmp_path / "cache/shards").glob("*/*"))
    assert left <= min(shards / 2, PROCESSES * 20_480)


# --- what is wrong, in a line ---


def test_no_index_in_the_bucket(server: ObjectStorage) -> None:
    assert f"{URI}/index.json: there is no such file; make the shards with" in refusal(spec(URI))


@pytest.mark.parametrize(
    ("fault", "said"),
    [("404", "404 NotAuthorizedOrNotFound"), ("bucket", "404 BucketNotFound"), ("401", "401 NotAuthenticated")],
)
@pytest.mark.parametrize("name", ["index.json", "samples.npy", ".tar"])
def test_a_bucket_that_may_not_be_read(bucket: ObjectStorage, fault: str, said: str, name: str) -> None:
    bucket.faults.add(fault, name=name, times=None)
    line = refusal(spec(URI))
    assert said in line
    assert "opc-request-id" in line


def test_an_outage_that_lasts(bucket: ObjectStorage) -> None:
    bucket.faults.add("503", "get", "head", name="train-000003", times=None)
    assert f"{URI}/train-000003.tar: 503" in refusal(spec(URI))


def test_a_shard_is_missing_in_the_bucket(bucket: ObjectStorage) -> None:
    open_store(URI).delete("train-000003.tar")
    assert f"{URI}/train-000003.tar: there is no such object" in refusal(spec(URI))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_was_replaced(bucket: ObjectStorage, tmp_path: Path, workers: int) -> None:
    (tmp_path / "other").write_bytes(bytes(5_000))
    open_store(URI).put(tmp_path / "other", "train-000003.tar")
    made = batches(load(spec(URI)), workers)
    with pytest.raises(DataError, match=r"train-000003.tar: it has 5,000 bytes, not \d\d,\d{3}; copy the shards"):
        list(made.epoch(0))
    made.close()
    assert not [path for path in cached(tmp_path) if path.name == "train-000003.tar"]


def test_a_limit_below_what_is_in_use(bucket: ObjectStorage) -> None:
    line = refusal(spec(URI, cache_limit="50KB"))
    assert "dataset.cache_limit: 0.0 MiB in " in line
    assert "MiB are in use at a time" in line


def test_a_full_disk(bucket: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = load(spec(URI))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(DataError, match=r"no space left on device; free some space there, lower dataset\.cache_limit"):
        images(streamed)
    assert not list((tmp_path / "cache/shards").glob("*/*.new"))


def test_a_cache_that_cannot_be_made(bucket: ObjectStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "another folder with dataset.cache" in refusal(spec(URI, cache=str(tmp_path / "file")))


def test_a_place_is_told_without_network(server: ObjectStorage) -> None:
    assert locate(spec(URI)).where == f"streamed from {URI}"
    assert server.told == []


def test_an_interrupted_making_leaves_no_index(server: ObjectStorage, root: Path) -> None:
    server.faults.add("404", name="train-000004", times=None)
    with pytest.raises(Exception, match="NotAuthorizedOrNotFound"):
        made(root, URI)
    assert "shards/train-000003.tar" in server.objects
    assert "shards/index.json" not in server.objects
    server.faults.clear()
    made(root, URI)
    assert len(load(spec(URI)).train.labels) == 96


# --- whole runs ---


@pytest.fixture
def digits(server: ObjectStorage, tmp_path: Path) -> Path:
    """A spec of 431 training images in 18 shards, of which the cache holds 11."""
    from job.data import shards_write

    list(shards_write.write(Dataset(name="digits", subset=480, validation=0.1), "oci://bucket@space/digits", 20_480))
    (tmp_path / "spec.yaml").write_text(RUN)
    return tmp_path / "spec.yaml"


def run(path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "job", words[0], str(path), *words[1:], "--log-format", "plain"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_resumes_mid_epoch_bit_for_bit(digits: Path, workers: str) -> None:
    done = run(digits, "verify-resume", "--whole", "--seed", "1", "--set", f"loader.num_workers={workers}")
    assert done.returncode == 0, done.stderr
    assert "Equal, bit for bit" in done.stdout


SILENCE = 3  # seconds without a step: it waits
PLAIN = (
    "model={name: tutorial_net}",
    "dataset.resize=16",
    "dataset.normalize={mean: [0.3], std: [0.4]}",
    "train.precision=fp32",
)


@pytest.mark.slow
def test_two_processes_are_one(digits: Path, tmp_path: Path) -> None:
    """Sharing a small cache: the same images in the same order, the same losses and weights."""
    keys = [f"store.uri={tmp_path}", "loader.num_workers=0", "train.epochs=1", *PLAIN]
    list(pipeline.job(load_spec(digits, keys, {}), "one", StopFlag()))
    words = [word for key in (*keys, "resources.processes=2") for word in ("--set", key)]
    done = run(digits, "run", "--run-id", "two", *words)
    assert done.returncode == 0, done.stderr
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 27
    assert np.abs(np.subtract(one, two)).max() < 1e-5
    alone, together = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert alone["seen"] == together["seen"], "the chain of hashes over all sample indices"
    for name, weight in alone["module"].items():
        torch.testing.assert_close(together["module"][name], weight, rtol=1e-4, atol=1e-5)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "loss"]


def state_of(folder: Path) -> dict[str, Any]:
    newest = json.loads((folder / "checkpoints/latest.json").read_text())["files"][0]["file"]
    return checkpoint.read(folder / "checkpoints" / newest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_while_the_store_is_away_saves_and_leaves(
    digits: Path, server: ObjectStorage, tmp_path: Path, workers: str
) -> None:
    """Waits for a store grow to minutes; nobody waits for them, the worker processes neither."""
    keys = (f"store.uri={tmp_path}", f"loader.num_workers={workers}", "train.epochs=50")
    words = [word for key in keys for word in ("--set", key)]
    command = [sys.executable, "-m", "job", "run", str(digits), "--run-id", "cut", *words, "--log-format", "plain"]
    with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = b""
        while b"[1,     1]" not in said:
            said += (more := process.stdout.read(10_000))
            assert more, said
        server.faults.add("503", "get", "head", name=".tar", times=None)
        while select.select([process.stdout], [], [], SILENCE)[0]:  # it learns from what it has
            said += (more := process.stdout.read(10_000))
            assert more, said
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=40)[0]  # to the end: nobody has the pipe any more
    assert process.returncode == 75, said
    assert b"cut: stopped, received SIGTERM; go on with --run-id cut" in said
    assert len(losses(tmp_path / "cut")) == state_of(tmp_path / "cut")["step"], "every step that was done is saved"
