"""Named data sets: read as published or refused, wherever the bytes come from."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from job.data import fetch, official
from job.data.dataset import load, locate
from job.errors import DataError
from job.spec.schema import Dataset


def spec(name: str, root: Path | None = None, **keys: object) -> Dataset:
    return Dataset.model_validate({"name": name, "root": None if root is None else str(root), **keys})


def refusal(wanted: Dataset) -> str:
    with pytest.raises(DataError) as caught:
        load(wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def known(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Takes the files in `folder` for the published ones."""
    entry = official.OFFICIAL[name]

    def sums(files: dict[str, str]) -> dict[str, str]:
        return {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in files}

    monkeypatch.setitem(official.OFFICIAL, name, replace(entry, train=sums(entry.train), test=sums(entry.test)))


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in the published format: 5 × 20 and 20 images."""
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for file in official.OFFICIAL["cifar10"].files:
        data = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": data, "labels": [n % 10 for n in range(20)]}, protocol=2))
    known(monkeypatch, "cifar10", folder)
    return tmp_path / "data"


def test_cifar10_is_read_pixel_by_pixel(cifar: Path) -> None:
    splits = load(spec("cifar10", cifar))
    assert (splits.train.images.shape, splits.test.images.shape) == ((100, 32, 32, 3), (20, 32, 32, 3))
    batch = pickle.loads((cifar / "cifar-10-batches-py/data_batch_1").read_bytes())
    assert splits.train.images[7, 3, 5, 2] == batch["data"][7].reshape(3, 32, 32)[2, 3, 5]
    assert splits.classes[:3] == ("plane", "car", "bird")
    assert splits.source == f"from {cifar}"


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_file_is_never_read(cifar: Path, damage: str) -> None:
    path = cifar / "cifar-10-batches-py/data_batch_3"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:1000] if damage == "truncated" else content[:-1] + b"x")
    line = refusal(spec("cifar10", cifar))
    assert line.startswith(f"{path}: the file is {'missing' if damage == 'missing' else 'damaged: '}")
    assert line.endswith(f"delete {path.parent} to have it downloaded again, or put the whole file there")


def test_a_pickle_can_name_nothing_but_arrays(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    with pytest.raises(pickle.UnpicklingError, match="is not allowed here"):
        official._unpickle(pickle.dumps({"data": Evil()}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnists_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool) -> None:
    folder = tmp_path / official.OFFICIAL[name].folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    contents = {
        "images-idx3-ubyte": b"\0\0\x08\x03" + np.array([30, 28, 28], ">u4").tobytes() + pixels.tobytes(),
        "labels-idx1-ubyte": b"\0\0\x08\x01" + np.array([30], ">u4").tobytes() + bytes(n % 10 for n in range(30)),
    }
    for part in ("train", "t10k"):
        for kind, content in contents.items():
            (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(content))
    known(monkeypatch, name, folder)
    if not packed:
        for path in list(folder.iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    splits = load(spec(name, tmp_path))
    assert np.array_equal(splits.train.images[..., 0], pixels)
    assert splits.leaked == 30
    if not packed:
        path = folder / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-5])
        assert "are not what its header says" in refusal(spec(name, tmp_path))


def test_cifar100_brings_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for number, file in enumerate(("train", "test")):
        data = np.random.default_rng(number).integers(0, 256, (200, 3072), dtype=np.uint8)
        labels = [n % 100 for n in range(200)]
        (folder / file).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}, protocol=2))
    names = [f"thing{n}" for n in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    known(monkeypatch, "cifar100", folder)
    assert load(spec("cifar100", tmp_path)).classes == tuple(names)


def test_digits_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = load(spec("digits"))
    assert (splits.train.images.shape, splits.test.images.shape) == ((1438, 8, 8, 1), (359, 8, 8, 1))
    assert (splits.train.images[:].min(), splits.train.images[:].max()) == (0, 255)
    assert locate(spec("digits")).kind == "bundled"
    assert list(tmp_path.iterdir()) == []


def test_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    splits = load(spec("digits"))
    given = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    key = [images.tobytes() + bytes([label]) for images, label in zip(given, digits.target, strict=True)]
    ours = [
        image.tobytes() + bytes([label])
        for part in (splits.train, splits.test)
        for image, label in zip(part.images[:], part.labels, strict=True)
    ]
    assert sorted(ours) == sorted(key)


def test_normalisation_is_measured_or_given() -> None:
    splits = load(spec("digits"))
    pixels = splits.train.images[:] / 255
    assert splits.mean == pytest.approx((pixels.mean(),))
    assert splits.std == pytest.approx((pixels.std(),))
    given = load(spec("digits", normalize={"mean": 0.5, "std": [0.25]}))
    assert (given.mean, given.std) == ((0.5,), (0.25,))
    line = refusal(spec("digits", normalize={"mean": [0.1, 0.2], "std": 1.0}))
    assert line == "dataset.normalize.mean: 2 numbers for images of 1 channel; give one number, or 1"


def test_a_subset_is_stratified_and_steady() -> None:
    one, other = load(spec("digits", subset=0.25)), load(spec("digits", subset=0.25))
    assert one.sha256 == other.sha256
    assert (len(one.train.labels), len(one.test.labels)) == (360, 90)
    counts = np.bincount(one.train.labels)
    assert counts.max() - counts.min() <= 2
    assert len(load(spec("digits", subset=500)).train.labels) == 500


def test_the_order_of_sources(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(spec("cifar10", cifar, mirror="m")).kind == "root"
    assert locate(spec("cifar10", tmp_path / "none", mirror="m")).kind == "mirror"
    assert locate(spec("cifar10", tmp_path / "none")).kind == "download"
    monkeypatch.setenv("JOB_DATA_ROOT", str(cifar))
    assert locate(spec("cifar10")).where == f"from {cifar}"


def packed(root: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name)
    return archive


def test_a_mirror_in_a_folder(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    archive = packed(cifar, mirror / "cifar-10-python.tar.gz")
    entry = official.OFFICIAL["cifar10"]
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(official.OFFICIAL, "cifar10", replace(entry, archive_md5=md5))
    fresh = spec("cifar10", tmp_path / "fresh", mirror=str(mirror))
    assert load(fresh).sha256 == load(spec("cifar10", cifar)).sha256
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["cifar-10-batches-py"]
    assert locate(fresh).kind == "root", "fetched once"


def test_a_mirror_with_other_bytes(cifar: Path, tmp_path: Path) -> None:
    packed(cifar, tmp_path / "cifar-10-python.tar.gz")
    line = refusal(spec("cifar10", tmp_path / "fresh", mirror=str(tmp_path)))
    assert line.startswith(f"{tmp_path}/cifar-10-python.tar.gz: its checksum is ")
    assert list((tmp_path / "fresh").iterdir()) == []


def test_own_images_from_an_archive(tmp_path: Path) -> None:
    from PIL import Image

    archive = tmp_path / "flowers.zip"
    with zipfile.ZipFile(archive, "w") as packed_images:
        for label, name in enumerate(("rose", "tulip")):
            for number in range(5):
                file = io.BytesIO()
                Image.new("RGB", (4, 4), (40 * number, 100 * label, 7)).save(file, "PNG")
                packed_images.writestr(f"flowers/{name}/{number}.png", file.getvalue())
    wanted = spec("image_folder", tmp_path / "images", mirror=str(archive))
    assert refusal(wanted) == (
        f"{archive}: nothing says what its checksum should be; "
        "set dataset.sha256, or write it beside: sha256sum flowers.zip > flowers.zip.sha256"
    )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / "flowers.zip.sha256").write_text(f"{digest}  flowers.zip\n")
    assert load(wanted).classes == ("rose", "tulip")


@pytest.mark.parametrize("kind", ["climbs", "absolute", "link", "device"])
def test_an_archive_cannot_leave_its_folder(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo({"climbs": "../../out", "absolute": "/tmp/out"}.get(kind, "inside"))
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        if kind == "device":
            member.type = tarfile.CHRTYPE
        tar.addfile(member, io.BytesIO())
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"would leave the folder|is a link or a device"):
        fetch.unpack(archive, tmp_path / "target", "evil.tar")
    assert list((tmp_path / "target").iterdir()) == []


def test_a_half_archive_leaves_nothing(cifar: Path, tmp_path: Path) -> None:
    archive = packed(cifar, tmp_path / "cifar-10-python.tar.gz")
    archive.write_bytes(archive.read_bytes()[:5000])
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    line = refusal(spec("cifar10", tmp_path / "fresh", mirror=str(tmp_path), sha256=digest))
    assert "it is no whole archive" in line
    assert list((tmp_path / "fresh").iterdir()) == []


def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MOST_FILES", 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as many:
        for number in range(3):
            many.writestr(f"{number}", "x")
    with pytest.raises(DataError, match="it unpacks to more than"):
        fetch.unpack(tmp_path / "many.zip", tmp_path, "many.zip")


def test_a_download_is_put_in_place_whole(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own code, from a server on the loopback."""
    from torchvision import datasets

    (tmp_path / "served").mkdir()
    (cifar / "cifar-10-batches-py/batches.meta").write_bytes(
        pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    )
    archive = packed(cifar, tmp_path / "served/cifar-10-python.tar.gz")
    entry = official.OFFICIAL["cifar10"]
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [list(item) for item in entry.train.items()])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [list(item) for item in entry.test.items()])
    meta = hashlib.md5((cifar / "cifar-10-batches-py/batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        found = load(spec("cifar10", tmp_path / "fresh"))
        server.shutdown()
    assert found.sha256 == load(spec("cifar10", cifar)).sha256
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["cifar-10-batches-py"]


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "nowhere").as_uri())
    line = refusal(spec("cifar10", tmp_path / "fresh"))
    assert line.startswith("cifar10: the download failed (")
    assert line.endswith("put the files in dataset.root, name a dataset.mirror, or give this machine a network")
    assert list((tmp_path / "fresh").iterdir()) == []


def test_the_real_cifar10(cifar10_root: Path) -> None:
    splits = load(spec("cifar10", cifar10_root, validation=0.1))
    assert splits.validation is not None
    counts = [np.bincount(split.labels).tolist() for split in (splits.train, splits.validation, splits.test)]
    assert counts == [[4500] * 10, [500] * 10, [1000] * 10]
    assert splits.leaked == 0
    assert splits.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
