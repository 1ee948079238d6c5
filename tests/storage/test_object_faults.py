"""Everything that can go wrong between the job and Object Storage, one fault at a time: outlived, or told at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from job.storage import attempts, download, pace, upload
from job.storage.object_storage import ObjectStore, open_uri
from job.storage.store import StoreError
from tests.object_storage.faults import FINAL, OTHERS, REFUSALS
from tests.object_storage.server import ObjectStorage
from tests.storage.files import LARGE, SMALL, back, written

PASSING = tuple(kind for kind in (*REFUSALS, *OTHERS) if kind not in FINAL)


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("operation", ["put", "upload_part", "create_upload", "commit_upload", "head", "list_uploads"])
def test_what_passes_is_outlived_by_put(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, content: bytes, operation: str
) -> None:
    store.put(written(tmp_path / "old", b"old"), "a")
    server.faults.add(kind, operation, times=2)
    entry = store.put(written(tmp_path / "file", content), "a")
    server.faults.clear()
    if (
        kind == "flipped"
        and operation in ("put", "upload_part", "commit_upload")
        and server.content("runs/a") != content
    ):
        with pytest.raises(StoreError, match="what was read has another checksum"):
            back(store, "a", tmp_path)  # a bit that fell over on the service's disk is found when it is read
        return
    assert server.content("runs/a") == content
    assert store.head("a") == entry
    assert back(store, "a", tmp_path) == content
    store.put(written(tmp_path / "file", content), "a")
    assert server.uploads == {}, "what a broken answer left open is gone with the next upload at the latest"


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("operation", ["get", "head"])
def test_what_passes_is_outlived_by_get(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, content: bytes, operation: str
) -> None:
    store.put(written(tmp_path / "file", content), "a")
    server.faults.add(kind, operation, times=2)
    assert back(store, "a", tmp_path) == content


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("operation", ["list", "delete", "head", "put", "get"])
def test_what_passes_is_outlived_by_the_others(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, operation: str
) -> None:
    names = [f"n{number}" for number in range(7)]
    entries = [store.put(written(tmp_path / "file", b"1"), name) for name in names]
    server.faults.add(kind, operation, times=1)
    if operation == "list" and kind == "endless":
        with pytest.raises(StoreError, match="its list repeats a page") as caught:
            store.list()
        assert not caught.value.final
    assert store.list() == entries
    assert store.head("n3") == entries[3]
    store.delete("n3")
    server.faults.clear()
    assert store.head("n3") is None
    store.delete("n3")
    made = store.put_if(tmp_path / "file", "n3", None)
    assert made is not None
    server.faults.add(kind, operation, times=1)
    again = store.put_if(written(tmp_path / "file", b"2"), "n3", made.etag)
    assert again is not None
    if kind != "flipped":
        assert server.content("runs/n3") == b"2"
    server.faults.clear()
    assert store.head("n3") == again


def test_a_delete_that_is_only_said_is_noticed(store: ObjectStore, server: ObjectStorage, tmp_path: Path) -> None:
    store.put(written(tmp_path / "file", b"1"), "a")
    server.faults.add("lost", "delete", times=None)
    with pytest.raises(StoreError, match="it was not deleted, though the service said so") as caught:
        store.delete("a")
    assert not caught.value.final
    assert server.count("delete") == attempts.TRIES


def test_a_delete_whose_answer_got_lost_spares_what_was_put_there_since(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next holder of a lease does."""
    store.put(written(tmp_path / "file", b"mine"), "a")
    server.faults.add("reset_after", "delete")
    monkeypatch.setattr(attempts, "pause", lambda _: store.put(written(tmp_path / "file", b"another's"), "a"))
    with pytest.raises(StoreError, match="412 IfMatchFailed"):
        store.delete("a")
    assert server.content("runs/a") == b"another's"


@pytest.mark.parametrize("kind", FINAL)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_is_final_is_told_at_once(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, content: bytes
) -> None:
    source = written(tmp_path / "file", content)
    store.put(source, "there")
    calls: list[Callable[[], object]] = [
        lambda: store.put(source, "a"),
        lambda: store.get("there", tmp_path / "back"),
        lambda: store.head("there"),
        store.list,
        lambda: store.delete("there"),
    ]
    for call in calls:
        server.faults.add(kind, times=None)
        server.told.clear()
        with pytest.raises(StoreError, match=r"opc-(client-)?request-id \w+") as caught:
            call()
        assert caught.value.final
        assert "\n" not in str(caught.value)
        assert caught.value.where.startswith("oci://bucket@space/runs")
        assert len(server.told) <= 3, "no retries, but a look at what is open"
        server.faults.clear()
    assert sorted(server.objects) == ["runs/there"]
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "kind", [kind for kind in PASSING if kind in REFUSALS or kind in ("reset_before", "reset_request", "reset_after")]
)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_dead_store_costs_few_requests(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, content: bytes
) -> None:
    store.put(written(tmp_path / "file", b"old"), "a")
    server.faults.add(kind, "put", "upload_part", times=None)
    server.told.clear()
    with pytest.raises(StoreError) as caught:
        store.put(written(tmp_path / "file", content), "a")
    assert not caught.value.final
    assert server.count("put", "upload_part") <= 3 * attempts.TRIES
    server.faults.clear()
    assert server.uploads == {}
    if content == LARGE or kind != "reset_after":
        assert server.content("runs/a") == b"old"


@pytest.mark.parametrize("operation", ["list_uploads", "abort_upload"])
@pytest.mark.parametrize("kind", [kind for kind in PASSING if kind in REFUSALS or kind in ("endless", "cut")])
def test_clearing_away_what_is_left_spoils_no_upload(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, kind: str, operation: str
) -> None:
    for _ in range(4):  # more than a page
        server.buckets["space/bucket"].begin("runs/a", {}, None, None)
    server.faults.add(kind, operation, times=None)
    store.put(written(tmp_path / "file", LARGE), "a")
    assert server.content("runs/a") == LARGE
    server.faults.clear()
    store.put(tmp_path / "file", "a")
    assert server.uploads == {}


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "parts"])
def test_an_upload_that_trickles_is_given_up(
    environment: None, server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    content = bytes(20_000_000)  # more than the system's buffers take at once
    monkeypatch.setattr(upload, "SMALLEST_PART", len(content) if at_once else len(content) // 2)
    monkeypatch.setattr(attempts, "TRIES", 2)
    monkeypatch.setattr(pace, "SLOWEST", 100_000_000)
    server.faults.rate = 2_000_000  # a piece often enough, so that no single write waits too long
    store = open_uri("oci://bucket@space/runs", 0.5)
    with pytest.raises(StoreError, match="no answer: the line is slower than 100000 kb/s") as caught:
        store.put(written(tmp_path / "file", content), "a")
    assert not caught.value.final
    assert server.objects == {}


def test_a_download_that_trickles_is_given_up(
    store: ObjectStore, server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(1_000_000)
    monkeypatch.setattr(upload, "SMALLEST_PART", len(content))
    monkeypatch.setattr(download, "CHUNK", len(content))
    monkeypatch.setattr(attempts, "TRIES", 2)
    store.put(written(tmp_path / "file", content), "a")
    monkeypatch.setattr(pace, "SLOWEST", 100_000_000)
    server.faults.rate = 500_000
    with pytest.raises(StoreError, match="no answer: the line is slower than 100000 kb/s"):
        back(store, "a", tmp_path)
    assert not (tmp_path / "back").exists()
    server.faults.clear()
    assert back(store, "a", tmp_path) == content
