"""What the rest of the job does with oci://: the doctor's lines, and a data set from a mirror in a bucket."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job import doctor
from job.data.fetch import unpack_mirror
from job.errors import DataError
from job.spec.schema import Dataset
from job.storage.object_storage import ObjectStore, open_uri
from tests.object_storage.server import ObjectStorage

URI = "oci://bucket@space/runs"


def lines(uri: str = URI) -> list[tuple[bool, str]]:
    return list(doctor._store(uri))


def test_the_doctor_says_what_it_found(environment: None, server: ObjectStorage) -> None:
    credentials, store = lines()
    assert credentials[0]
    assert credentials[1].startswith("credentials: API key of profile DEFAULT in ")
    assert store == (True, f"store: {URI} can be written, read and deleted")
    assert {"put", "get", "delete"} <= {told.operation for told in server.told}
    assert server.objects == {}


@pytest.mark.parametrize(
    ("fault", "operation", "what"),
    [
        ("404", "put", "404 NotAuthorizedOrNotFound, .*; check bucket, namespace and region, and the policy"),
        ("quota", "put", "400 QuotaExceeded, .*; delete what is not needed"),
        ("401", "put", "401 NotAuthenticated, .*; check the API key"),
        ("404", "get", "404 NotAuthorizedOrNotFound, .*policy"),
        ("404", "delete", "404 NotAuthorizedOrNotFound, .*policy"),
        ("503", "put", "503 ServiceUnavailable, "),
        ("lost", "put", "it was not stored, though the service said so"),
        ("reset_before", "put", "no answer: .*; check the network, the region and the endpoint"),
    ],
)
def test_the_doctor_says_what_is_wrong(
    environment: None, server: ObjectStorage, fault: str, operation: str, what: str
) -> None:
    server.faults.add(fault, operation, times=None)
    _, (good, text) = lines()
    assert not good
    assert "\n" not in text
    with pytest.raises(AssertionError, match=rf"^store: {URI}/doctor-check-\w+: {what}"):
        raise AssertionError(text)


def test_the_doctor_without_credentials(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCI_CONFIG_FILE", str(tmp_path / "none"))
    [(good, text)] = lines()
    assert not good
    assert text.startswith("store: credentials: none were found")


def packed(members: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def mirrored(store: ObjectStore, archive: Path, digest: str | None = None) -> Dataset:
    """Uploads the archive and its checksum; the section that names them."""
    store.put(archive, f"mirror/{archive.name}")
    digest = digest or hashlib.sha256(archive.read_bytes()).hexdigest()
    beside = archive.with_name("sum")
    beside.write_text(f"{digest}  {archive.name}\n")
    store.put(beside, f"mirror/{archive.name}.sha256")
    root = str(archive.parent / "images")
    return Dataset(name="image_folder", root=root, mirror=f"{URI}/mirror/{archive.name}")


def test_a_mirror_in_a_bucket(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    members = {"flowers/rose/1.png": os.urandom(3000), "flowers/tulip/2.png": os.urandom(4000)}
    spec = mirrored(store, packed(members, tmp_path / "flowers.tar.gz"))
    server.faults.add("503", "get", times=2)
    server.faults.add("reset_response", "get", times=2, after=2)
    unpack_mirror(spec, tmp_path / "images")
    found = {p.relative_to(tmp_path / "images").as_posix(): p.read_bytes() for p in tmp_path.glob("images/*/*")}
    assert found == {name.removeprefix("flowers/"): content for name, content in members.items()}


FETCH = """
import sys
from pathlib import Path
from job.data.fetch import unpack_mirror
from job.spec.schema import Dataset
from job.storage import download
download.CHUNK, download.PARALLEL = 1000, 1
unpack_mirror(Dataset.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("again", ["the same", "replaced"])
def test_a_mirror_goes_on_after_kill_9(store: ObjectStore, server: ObjectStorage, tmp_path: Path, again: str) -> None:
    """Another process; what was replaced in the bucket meanwhile is fetched from its beginning."""
    root = tmp_path / "images"
    spec = mirrored(
        store,
        packed({"flowers/rose/1.png": os.urandom(9000), "flowers/tulip/2.png": b"2"}, tmp_path / "flowers.tar.gz"),
    )
    server.faults.add("hang", "get", name="tar.gz", times=None, after=6)  # the first is the checksum's
    server.told.clear()
    command = [sys.executable, "-c", FETCH, spec.model_dump_json(), str(root)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        while server.count("get") < 7:  # the checksum's, five that are answered, and one that is not
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    [left] = tmp_path.glob(".fetch-*")
    assert (left / ".flowers.tar.gz.journal.part").read_text().count("\n") == 1 + 5
    server.faults.clear()
    if again == "replaced":
        mirrored(
            store,
            packed({"flowers/rose/1.png": os.urandom(8000), "flowers/tulip/2.png": b"2"}, tmp_path / "flowers.tar.gz"),
        )
    size, whole = (tmp_path / "flowers.tar.gz").stat().st_size, (tmp_path / "flowers.tar.gz").read_bytes()
    server.told.clear()
    unpack_mirror(spec, root)
    asked = [told for told in server.told if told.operation == "get" and told.name.endswith("tar.gz")]
    assert len(asked) == -(-size // 1000) - (5 if again == "the same" else 0)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        content = tar.extractfile("flowers/rose/1.png")
        assert content is not None
        assert (root / "rose/1.png").read_bytes() == content.read()
    assert list(tmp_path.glob(".fetch-*")) == []


def test_a_mirror_goes_on_when_the_store_answers_again(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    spec = mirrored(
        store,
        packed({"flowers/rose/1.png": os.urandom(9000), "flowers/tulip/2.png": b"2"}, tmp_path / "flowers.tar.gz"),
    )
    server.faults.add("503", "get", name="tar.gz", times=None, after=6)  # the first is the checksum's
    with pytest.raises(DataError, match="503 ServiceUnavailable"):
        unpack_mirror(spec, root)
    server.faults.clear()
    server.told.clear()
    unpack_mirror(spec, root)
    assert sum(told.operation == "get" and told.name.endswith("tar.gz") for told in server.told) <= 5
    assert (root / "rose/1.png").exists()
    assert list(tmp_path.glob(".fetch-*")) == []


def test_two_that_want_one_mirror_fetch_it_once(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    spec = mirrored(
        store,
        packed({"flowers/rose/1.png": os.urandom(9000), "flowers/tulip/2.png": b"2"}, tmp_path / "flowers.tar.gz"),
    )
    server.told.clear()
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(unpack_mirror, spec, tmp_path / "images") for _ in range(2)]:
            each.result()
    assert sum(told.operation == "get" and told.name.endswith("tar.gz") for told in server.told) <= 10
    assert list(tmp_path.glob(".fetch-*")) == []


def test_a_mirror_is_not_trusted(store: ObjectStore, tmp_path: Path) -> None:
    archive = packed({"flowers/a/1.png": b"1"}, tmp_path / "flowers.tar.gz")
    with pytest.raises(DataError, match=f"{URI}/mirror/flowers.tar.gz: its checksum is "):
        unpack_mirror(mirrored(store, archive, "0" * 64), tmp_path / "images")
    evil = packed({"../../out": b"1"}, tmp_path / "evil.tar.gz")
    with pytest.raises(DataError, match="would leave the folder"):
        unpack_mirror(mirrored(store, evil), tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_mirror_that_is_not_there(environment: None, tmp_path: Path) -> None:
    spec = Dataset(name="image_folder", root=str(tmp_path / "images"), mirror=f"{URI}/none.tar")
    with pytest.raises(
        DataError, match=f"{URI}/none.tar: there is no such object, opc-request-id [^;]+; check the name"
    ):
        unpack_mirror(spec, tmp_path / "images")
    assert open_uri(URI).uri == URI
