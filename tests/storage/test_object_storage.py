"""Object Storage through the real SDK, against the test server: what is put comes back, of any size and name."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import Interrupted, UsageError
from job.interrupt import StopFlag
from job.storage import download, upload
from job.storage.object_storage import ObjectStore, open_uri
from job.storage.store import StoreError, open_store
from tests.object_storage.server import ObjectStorage
from tests.storage.files import LARGE, SMALL, back, written


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000, 12345])
def test_what_is_put_comes_back(store: ObjectStore, server: ObjectStorage, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    entry = store.put(written(tmp_path / "file", content), "a b/ü#?%.bin")
    assert server.content("runs/a b/ü#?%.bin") == content
    assert (entry.name, entry.size, entry.etag) == ("a b/ü#?%.bin", size, server.objects["runs/a b/ü#?%.bin"].etag)
    assert store.head(entry.name) == entry
    assert store.list() == [entry]
    assert back(store, entry.name, tmp_path) == content
    assert server.uploads == {}


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, 1),
        (10 * 2**20, 1),
        (11 * 2**20, 2),
        (45_000_000, 5),
        (90_000_000, 8),
        (2**27, 8),
        (2**30, 64),
        (2**42, 9000),
    ],
)
def test_parts_keep_all_connections_busy(size: int, parts: int) -> None:
    part = upload.part_size(size)
    assert part >= 10 * 2**20
    assert max(1, -(-size // part)) == parts


def test_absent_is_no_error_but_for_get(store: ObjectStore, tmp_path: Path) -> None:
    assert store.head("a") is None
    assert not store.exists("a")
    assert store.list() == []
    store.delete("a")
    with pytest.raises(StoreError, match="there is no such object") as caught:
        store.get("a", tmp_path / "back")
    assert caught.value.final


def test_the_list_goes_over_all_pages(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    for name in ("b/1", "b/2", "b/3", "b-/1", "b/a/1", "c", "a"):
        store.put(written(tmp_path / "file", b"1"), name)
    open_store("oci://bucket@space/other").put(tmp_path / "file", "a")
    server.told.clear()
    assert [entry.name for entry in store.list()] == ["a", "b-/1", "b/1", "b/2", "b/3", "b/a/1", "c"]
    assert server.count("list") == 3
    assert [entry.name for entry in store.list("b/")] == ["b/1", "b/2", "b/3", "b/a/1"]
    assert len(open_store("oci://bucket").list()) == 8


def test_a_condition_is_kept(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", b"1"), written(tmp_path / "2", b"2")
    first = store.put_if(one, "lease", None)
    assert first is not None
    assert store.put_if(two, "lease", None) is None
    second = store.put_if(two, "lease", first.etag)
    assert second is not None
    assert store.put_if(one, "lease", first.etag) is None
    assert store.put_if(one, "absent", first.etag) is None
    assert server.content("runs/lease") == b"2"
    assert store.head("absent") is None


def test_a_condition_holds_for_a_large_file_too(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    entry = store.put_if(written(tmp_path / "1", LARGE), "a", None)
    assert entry is not None
    assert store.put_if(written(tmp_path / "2", SMALL), "a", None) is None
    assert server.content("runs/a") == LARGE
    assert server.count("create_upload") == 0


def test_one_of_many_threads_creates(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    server.faults.add("reset_after", "put", times=None, probability=0.5)
    sources = [written(tmp_path / str(number), str(number).encode()) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda source: store.put_if(source, "once", None), sources))
    [winner] = [source for source, entry in zip(sources, results, strict=True) if entry is not None]
    assert server.content("runs/once") == winner.read_bytes()


def test_many_threads_share_a_store(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    contents = {f"n{number}": os.urandom(number * 400) for number in range(12)}

    def there_and_back(name: str) -> bool:
        (tmp_path / name).mkdir()
        store.put(written(tmp_path / name / "file", contents[name]), name)
        return back(store, name, tmp_path / name) == contents[name]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(there_and_back, contents))
    assert server.uploads == {}


def test_a_dead_network_is_one_line(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    store.put(written(tmp_path / "file", SMALL), "a")
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match=r"no answer: connection refused, opc-client-request-id \w{32}") as caught:
        open_uri("oci://bucket@space/runs", 1.0).put(tmp_path / "file", "a")
    assert not caught.value.final


def test_leftovers_of_a_killed_process_are_aborted(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    for name in ("runs/a", "runs/b"):
        server.buckets["space/bucket"].begin(name, {}, None, None)
    store.put(written(tmp_path / "file", LARGE), "a")
    assert [upload.name for upload in server.uploads.values()] == ["runs/b"]


def test_an_object_replaced_half_way_is_read_as_one(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(written(tmp_path / "1", LARGE), "a")
    other, begun, ask = os.urandom(7_100), threading.Event(), download._range

    def replacing(*args: object) -> None:
        if not begun.is_set():
            begun.set()
            store.put(written(tmp_path / "2", other), "a")
        ask(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(download, "_range", replacing)
    assert back(store, "a", tmp_path) == other


def test_a_broken_download_goes_on(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    store.put(written(tmp_path / "file", LARGE), "a")
    server.faults.add("503", "get", times=None, after=5)
    with pytest.raises(StoreError, match="503 ServiceUnavailable"):
        store.get("a", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    server.faults.clear()
    server.told.clear()
    assert back(store, "a", tmp_path) == LARGE
    assert server.count("get") == 3, "five of eight ranges were there"


def test_a_download_that_was_spoilt_on_disk_begins_again(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path
) -> None:
    store.put(written(tmp_path / "file", LARGE), "a")
    server.faults.add("503", "get", times=None, after=5)
    with pytest.raises(StoreError):
        store.get("a", tmp_path / "back")
    server.faults.clear()
    [part] = tmp_path.glob(".back.get.part")
    part.write_bytes(bytes(len(LARGE)))
    assert back(store, "a", tmp_path) == LARGE


GETS = """
import sys
from pathlib import Path
from job.storage import download
from job.storage.store import open_store
download.CHUNK = 50_000
open_store("oci://bucket@space/runs").get("a", Path(sys.argv[1]))
"""


def test_a_signal_leaves_a_download_that_the_next_one_goes_on_with(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path
) -> None:
    content = os.urandom(30_000)
    store.put(written(tmp_path / "file", content), "a")
    server.faults.latency = 0.05

    def signalled() -> None:
        while server.count("get") < 6:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signalled).start()
    with StopFlag().installed() as stop, pytest.raises(Interrupted), stop.at_once():
        store.get("a", tmp_path / "back")
    before = server.count("get")
    assert before < 15, "what is under way is waited for, and no more"
    server.faults.clear()
    assert back(store, "a", tmp_path) == content
    assert server.count("get") == 30


def test_a_killed_download_goes_on(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    store.put(written(tmp_path / "file", content), "a")
    server.faults.rate = 200_000
    with subprocess.Popen([sys.executable, "-c", GETS, str(tmp_path / "back")]) as process:
        while len(list(tmp_path.glob(".back.journal.part"))) == 0 or server.count("get") < 12:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    server.faults.clear()
    server.told.clear()
    subprocess.run([sys.executable, "-c", GETS, str(tmp_path / "back")], check=True)
    assert (tmp_path / "back").read_bytes() == content
    assert server.count("get") < 20


def test_a_forked_process_has_its_own_connection(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    store.put(written(tmp_path / "file", SMALL), "a")
    child = os.fork()
    if child == 0:
        store.put(tmp_path / "file", "child")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.put(tmp_path / "file", "parent")
    assert sorted(server.objects) == ["runs/a", "runs/child", "runs/parent"]


def test_a_clock_that_is_off_is_named(store: ObjectStore, server: ObjectStorage) -> None:
    server.identity.clock = -4000.0
    with pytest.raises(StoreError, match="401 NotAuthenticated, the Date header differs") as caught:
        store.list()
    assert caught.value.final


def test_what_cannot_be_read_or_written_on_this_side(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none cannot be read \(No such file"):
        store.put(tmp_path / "none", "a")
    store.put(written(tmp_path / "file", SMALL), "a")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.get("a", tmp_path / "file" / "back")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "n" * 1020])
def test_a_name_is_plain(store: ObjectStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"no plain relative name|longer than 1024 bytes") as caught:
        store.put(written(tmp_path / "file", b"1"), name)
    assert caught.value.final


@pytest.mark.parametrize(
    "uri", ["oci://", "oci:///a", "oci://b@/a", "oci://b@n/a/../c", "oci://b c/a", "oci://b@n/a//c"]
)
def test_a_uri_names_a_bucket(uri: str) -> None:
    with pytest.raises(UsageError):
        open_store(uri)


def test_a_missing_bucket_is_no_absent_object(environment: None, tmp_path: Path) -> None:
    other = open_uri("oci://other@space/runs", 1.0)
    with pytest.raises(StoreError, match="404 BucketNotFound") as caught:
        other.head("a")
    assert caught.value.final
