"""Of two writers one wins and the other is told; what was written is read back the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from job.cloud import record
from job.cloud.record import Record, Try, Version
from job.errors import UsageError
from job.storage.store import Entry, FolderStore

ONE = Try(1, "VM.GPU.A10.1", "AD-1", None, False, 1, 100.0, 7200, 2.0)
NEW = Record("digits-1", "abc", "oci://bucket@space/runs", "ada", "image@sha256:a", 99.0)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "launches").mkdir()
    return FolderStore(tmp_path / "launches")


def test_a_record_is_read_as_it_was_written(store: FolderStore) -> None:
    done = replace(ONE, outcome="launched", instances=("a", "b"))
    saved = record.save(store, Version(NEW), NEW.with_try(done))
    again = record.read(store, "digits-1")
    assert again == saved
    assert again is not None
    assert again.record.tries == (done,)
    assert again.record.last == done


def test_there_is_none_before_the_first(store: FolderStore) -> None:
    assert record.read(store, "digits-1") is None
    assert record.run_ids(store) == []


def test_of_two_that_begin_a_run_one_wins(store: FolderStore) -> None:
    record.save(store, Version(NEW), NEW)
    with pytest.raises(UsageError, match="another submit, cancel or resubmit changed this run"):
        record.save(store, Version(NEW), replace(NEW, owner="eve"))
    assert record.run_ids(store) == ["digits-1"]


def test_an_old_version_cannot_be_replaced(store: FolderStore) -> None:
    first = record.save(store, Version(NEW), NEW)
    record.save(store, first, replace(NEW, phase="cancelled"))
    with pytest.raises(UsageError):
        record.save(store, first, replace(NEW, phase="launched"))
    now = record.read(store, "digits-1")
    assert now is not None
    assert now.record.phase == "cancelled"


class Forgetful(FolderStore):
    """Writes, and loses the answer."""

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        super().put_if(path, name, etag)
        return super().put_if(path, name, etag)


def test_a_lost_answer_to_our_own_write_is_no_conflict(store: FolderStore) -> None:
    saved = record.save(Forgetful(store.root), Version(NEW), NEW)
    assert record.read(store, "digits-1") == saved


def test_a_try_replaces_itself_and_no_other() -> None:
    two = NEW.with_try(ONE).with_try(replace(ONE, number=2))
    done = two.with_try(replace(ONE, number=2, outcome="capacity"))
    assert [(one.number, one.outcome) for one in done.tries] == [(1, None), (2, "capacity")]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "tries": [{}]}'])
def test_what_is_no_record_is_told_with_its_place(store: FolderStore, content: str) -> None:
    (store.root / "digits-1").mkdir()
    (store.root / "digits-1/record.json").write_text(content)
    with pytest.raises(UsageError, match=r"digits-1/record.json: not a record"):
        record.read(store, "digits-1")


def test_a_record_of_a_later_version_is_not_guessed_at(store: FolderStore) -> None:
    record.save(store, Version(NEW), NEW)
    path = store.root / "digits-1/record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2, "new": 1}))
    with pytest.raises(UsageError, match="a record of version 2, not 1"):
        record.read(store, "digits-1")
