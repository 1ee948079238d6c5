"""The folder as a store: whole files, true etags, and conditions that hold among threads and processes."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import UsageError
from job.storage.store import FolderStore, StoreError, open_store


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_put_comes_back(store: FolderStore, tmp_path: Path) -> None:
    for name, content in {"a": b"", "b c/ü/d": b"deep", "b c/ü": b""}.items():
        if name == "b c/ü":
            with pytest.raises(StoreError, match="a folder stands where a file is needed") as caught:
                store.put(written(tmp_path / "file", content), name)
            assert caught.value.final
            continue
        entry = store.put(written(tmp_path / "file", content), name)
        assert (entry.name, entry.size) == (name, len(content))
        assert store.head(name) == entry
        assert store.exists(name)
        store.get(name, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content


def test_absent_is_no_error_but_for_get(store: FolderStore, tmp_path: Path) -> None:
    assert store.head("a") is None
    assert not store.exists("a/b")
    assert store.list() == []
    store.delete("a")
    with pytest.raises(StoreError, match="there is no such file; check the name and the folder") as caught:
        store.get("a", tmp_path / "back")
    assert caught.value.final
    assert not (tmp_path / "back").exists()


def test_the_list_is_sorted_and_holds_files_alone(store: FolderStore, tmp_path: Path) -> None:
    source = written(tmp_path / "file", b"1")
    for name in ("run/b", "run/a/c", "run-2/a", "other"):
        store.put_if(source, name, None)
    (store.root / "run/.b.x.part").write_bytes(b"half")
    (store.root / "empty").mkdir()
    assert [entry.name for entry in store.list()] == ["other", "run-2/a", "run/a/c", "run/b"]
    assert [entry.name for entry in store.list("run")] == ["run-2/a", "run/a/c", "run/b"]
    assert [entry.name for entry in store.list("run/")] == ["run/a/c", "run/b"]
    assert [entry.name for entry in store.list("run/a/")] == ["run/a/c"]
    assert store.list("none/") == []
    assert all(entry == store.head(entry.name) for entry in store.list())


def test_a_condition_is_kept(store: FolderStore, tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", b"1"), written(tmp_path / "2", b"2")
    first = store.put_if(one, "lease", None)
    assert first is not None
    assert store.put_if(two, "lease", None) is None
    second = store.put_if(two, "lease", first.etag)
    assert second is not None
    assert store.put_if(one, "lease", first.etag) is None
    assert store.put_if(one, "absent", first.etag) is None
    assert store.head("absent") is None
    assert (store.root / "lease").read_bytes() == b"2"
    assert [path.name for path in store.root.iterdir() if path.name.endswith(".part")] == []


def test_an_etag_differs_though_the_bytes_are_the_same(store: FolderStore, tmp_path: Path) -> None:
    source = written(tmp_path / "file", b"same")
    assert len({store.put(source, "name").etag for _ in range(200)}) == 200


def add_one(root: Path, times: int) -> None:
    """Reads a number, writes the next over that version only, until it has done so `times` times."""
    store = FolderStore(root)
    own = root.parent / f"own-{os.getpid()}"
    while times:
        entry = store.head("count")
        assert entry is not None
        number = int((root / "count").read_text())
        if store.put_if(written(own, str(number + 1).encode()), "count", entry.etag):
            times -= 1


def test_no_update_is_lost_among_processes(store: FolderStore, tmp_path: Path) -> None:
    store.put(written(tmp_path / "zero", b"0"), "count")
    processes = [multiprocessing.get_context("spawn").Process(target=add_one, args=(store.root, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (store.root / "count").read_text() == "60"


def test_one_of_many_threads_creates(store: FolderStore, tmp_path: Path) -> None:
    sources = [written(tmp_path / str(number), str(number).encode()) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda source: store.put_if(source, "once", None), sources))
    [winner] = [source for source, entry in zip(sources, results, strict=True) if entry is not None]
    assert (store.root / "once").read_bytes() == winner.read_bytes()


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "."])
def test_a_name_cannot_leave_the_store(store: FolderStore, tmp_path: Path, name: str) -> None:
    source = written(tmp_path / "file", b"1")
    calls: list[Callable[[], object]] = [lambda: store.put(source, name), lambda: store.head(name)]
    for call in calls:
        with pytest.raises(StoreError, match="leaves the store's folder"):
            call()


def test_the_systems_refusals_are_store_errors(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        FolderStore(tmp_path / "file").put(tmp_path / "file", "name")
    with pytest.raises(StoreError, match="file name too long") as caught:
        store.put(tmp_path / "file", "n" * 300)
    assert caught.value.final


def test_a_scheme_names_its_module(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).uri == str(tmp_path)
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)
    with pytest.raises(UsageError, match="no store for s3://; use a folder"):
        open_store("s3://bucket")
