"""One writer a run: who may have it, who has to wait, and what a lost answer does not do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from job.storage import lease
from job.storage.lease import NAME, SKEW, TTL, Lease, LeaseError
from job.storage.store import Entry, FolderStore, StoreError


class Clock:
    """Seconds pass when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def written(store: FolderStore, **changes: Any) -> None:
    """The lease as another machine would have written it."""
    path = store.root / NAME
    content = json.loads(path.read_text()) | {"id": "other", "host": "elsewhere", "machine": "another"} | changes
    beside = store.root / "beside"
    beside.write_text(json.dumps(content))
    store.put(beside, NAME)


def test_the_first_one_has_it_until_it_lets_go(store: FolderStore, clock: Clock) -> None:
    first, second = Lease(store, clock), Lease(store, clock)
    first.acquire(clock.wait)
    assert first.held
    first.release()
    second.acquire(clock.wait)
    assert second.held
    assert clock.now == 0


def test_one_that_is_renewed_is_not_taken_over(store: FolderStore, clock: Clock) -> None:
    second = Lease(store, clock)
    Lease(store, clock).acquire(clock.wait)
    written(store)

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if clock.now > TTL / 3:
            written(store)

    with pytest.raises(LeaseError, match=r"another process writes this run .host elsewhere"):
        second.acquire(wait)
    assert TTL / 3 < clock.now < TTL
    assert not second.held


def test_a_process_of_this_machine_that_lives_is_told_at_once(store: FolderStore, clock: Clock) -> None:
    Lease(store, clock).acquire(clock.wait)
    with pytest.raises(LeaseError, match=f"process {os.getpid()}"):
        Lease(store, clock).acquire(clock.wait)
    assert clock.now == 0


def test_one_that_nobody_renews_is_over_after_its_time(store: FolderStore, clock: Clock) -> None:
    Lease(store, clock).acquire()
    written(store)
    second = Lease(store, clock)
    second.acquire(clock.wait)
    assert second.held
    assert TTL <= clock.now <= TTL + 5


def test_clocks_that_differ_do_not_shorten_it(store: FolderStore, clock: Clock) -> None:
    """The other machine's clock is nine minutes behind, so its lease looks old although it is new."""
    Lease(store, clock).acquire()
    written(store, time=time.time() - SKEW + 30)
    Lease(store, clock).acquire(clock.wait)
    assert clock.now >= TTL


def test_a_very_old_one_is_over_at_once(store: FolderStore, clock: Clock) -> None:
    Lease(store, clock).acquire()
    written(store, time=time.time() - SKEW - TTL - 1)
    Lease(store, clock).acquire(clock.wait)
    assert clock.now == 0


def test_a_process_of_this_machine_that_is_gone_holds_nothing(tmp_path: Path, store: FolderStore, clock: Clock) -> None:
    code = (
        "from job.storage.lease import Lease; from job.storage.store import open_store\n"
        f"Lease(open_store({str(tmp_path)!r})).acquire()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    Lease(store, clock).acquire(clock.wait)
    assert clock.now == 0


def test_a_number_used_again_is_not_the_same_process(store: FolderStore, clock: Clock) -> None:
    Lease(store, clock).acquire()
    content = json.loads((store.root / NAME).read_text())
    written(store, machine=content["machine"], pid=os.getpid(), started="1")
    Lease(store, clock).acquire(clock.wait)
    assert clock.now == 0


def test_a_renewal_keeps_it(store: FolderStore, clock: Clock) -> None:
    mine = Lease(store, clock)
    mine.acquire()
    before = store.head(NAME)
    mine.renew()
    assert store.head(NAME) == before, "too early"
    clock.now += TTL / 2
    mine.renew()
    assert store.head(NAME) != before
    assert mine.held


def test_one_taken_over_is_lost_and_stays_lost(store: FolderStore, clock: Clock) -> None:
    mine = Lease(store, clock)
    mine.acquire()
    written(store)
    clock.now += TTL
    with pytest.raises(LeaseError, match=r"another process took this run over .host elsewhere"):
        mine.renew()
    with pytest.raises(LeaseError, match="does not hold the run any more"):
        mine.renew()
    mine.release()
    assert json.loads((store.root / NAME).read_text())["id"] == "other", "only the own one is removed"


class Forgetful(FolderStore):
    """Does what it is asked and loses the answer."""

    lose = True

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        entry = super().put_if(path, name, etag)
        if self.lose:
            raise StoreError(name, "connection reset", "try again", final=False)
        return entry


def test_a_lost_answer_is_no_other_process(tmp_path: Path, clock: Clock) -> None:
    store = Forgetful(tmp_path)
    mine = Lease(store, clock)
    with pytest.raises(StoreError, match="connection reset"):
        mine.acquire()
    store.lose = False
    mine.acquire(clock.wait)
    assert (mine.held, clock.now) == (True, 0)
    clock.now += TTL
    store.lose = True
    with pytest.raises(StoreError, match="connection reset"):
        mine.renew()
    store.lose = False
    mine.renew()
    assert mine.held


def test_an_unreadable_one_expires_like_any_other(store: FolderStore, clock: Clock) -> None:
    (store.root / NAME).write_text("not JSON")
    Lease(store, clock).acquire(clock.wait)
    assert clock.now >= TTL


def test_one_that_was_damaged_is_waited_for_and_taken_again(store: FolderStore, clock: Clock) -> None:
    """By our own renewal, whose bytes a lying store cut: nobody else renews it, so it is ours again."""
    mine = Lease(store, clock)
    mine.acquire(clock.wait)
    beside = store.root / "beside"
    beside.write_text('{"id": "')
    store.put(beside, NAME)
    clock.now += TTL
    mine.renew()
    assert mine.held
    assert json.loads((store.root / NAME).read_text())["id"] == mine.id
    assert clock.now >= 2 * TTL


def test_what_is_in_memory_takes_no_disk() -> None:
    with lease.in_memory(b"content") as path:
        assert path.read_bytes() == b"content"
        assert path.stat().st_size == 7
