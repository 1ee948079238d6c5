"""What reaches the store, in which order, whatever happens on the way."""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import JobError
from job.runfolder import (
    RunFolder,
    append_line,
    atomic,
    files_of,
    read_pointer,
    sha256,
    write_json,
    write_manifest,
    write_status,
    write_text,
)
from job.storage import runs
from job.storage.outbox import LIVE_EVERY, Outbox
from job.storage.store import Entry, StoreError
from tests.storage.watched import FAULTS, Killed, WatchedStore, contents, dangling

KEEP = 2


class Run:
    """A run's folder, written as the pipeline writes it, and an outbox that can be killed and begun again."""

    def __init__(self, tmp_path: Path, fault: Callable[[str], str | None] = lambda _: None) -> None:
        self.folder = RunFolder(tmp_path / "work/run")
        self.folder.make()
        self.store = WatchedStore(tmp_path / "store", fault)
        self.store.root.mkdir()
        self.now = 0.0
        self.saved = 0
        self.bytes = random.Random(0)
        self.entries: list[dict[str, object]] = []
        write_text(self.folder.spec, "name: run\n")
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(self.folder, KEEP, clock=lambda: self.now)
        self.connected = False

    def connect(self) -> None:
        self.outbox.connect(self.store, lambda: None)
        self.connected = True

    def save(self, name: str | None = None) -> Path:
        """A checkpoint, the pointer, retention: in this order, as training does it."""
        self.saved += 1
        write_file(self.folder.model / "best.pt", self.bytes.randbytes(50))
        append_line(self.folder.metrics, {"kind": "epoch", "epoch": self.saved})
        path = self.folder.checkpoints / (name or f"step-{self.saved:08d}.pt")
        write_file(path, self.bytes.randbytes(100))
        entry = {"file": path.name, "sha256": sha256(path), "epoch": self.saved, "step": 0}
        self.entries = [entry, *(old for old in self.entries if old["file"] != path.name)][:KEEP]
        write_json(self.folder.checkpoints / "latest.json", {"files": self.entries})
        for old in self.folder.checkpoints.glob("*.pt"):
            if old.name not in [entry["file"] for entry in self.entries]:
                old.unlink()
        return path

    def beat(self) -> None:
        write_status(self.folder, status="running", number=self.bytes.random())
        with self.folder.log.open("a") as log:
            log.write(f"{self.bytes.random()}\n")

    def finish(self) -> None:
        (self.folder.plots / "mistakes").mkdir(exist_ok=True)
        for name in ("report.json", "report.html", "plots/curves.png", "plots/mistakes/01.png", "model/model.pt"):
            write_file(self.folder.root / name, self.bytes.randbytes(60))
        write_status(self.folder, status="complete")
        write_manifest(self.folder, {"status": "complete"})

    def step(self) -> None:
        """One attempt of each lane; a kill begins a new process."""
        try:
            if not self.connected:
                self.connect()
            self.outbox.live()
            self.outbox.bulk()
        except Killed:
            self.open()
        except JobError:
            pass

    def all_but_the_manifest(self) -> None:
        self.outbox.over = True
        self.connect()
        for _ in range(100):
            swept = not (self.outbox.sweep and self.outbox.journal.published)
            if swept and set(self.outbox.unsent()) == {"manifest.json"}:
                return
            if not self.outbox.live():
                assert self.outbox.bulk()
        raise AssertionError(f"not stored: {self.outbox.unsent()}")

    def drain(self, rounds: int = 400) -> None:
        for _ in range(rounds):
            self.now += LIVE_EVERY
            self.outbox.over = True
            self.step()
            if self.connected and not self.outbox.unsent():
                return
        raise AssertionError(f"not stored: {self.outbox.unsent()}")


@pytest.fixture(autouse=True, scope="module")
def no_power_cuts() -> Iterator[None]:
    """These kills are of processes: what was written stays written, and flushing to the disk only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def write_file(path: Path, content: bytes) -> None:
    with atomic(path) as file:
        file.write(content)


ACTION = st.one_of(
    st.sampled_from(["save", "save again", "beat", "step", "step", "step", "wait"]), st.lists(st.sampled_from(FAULTS))
)


@settings(max_examples=60)
@given(actions=st.lists(ACTION, max_size=60))
def test_nothing_is_lost_and_no_reader_is_led_astray(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str | list[str]]
) -> None:
    """Any order of saves, heartbeats, faults and kills: in the end the store holds the folder, byte for byte.

    The store itself looks after every write whether what its pointers name is there.
    """
    faults: list[str] = []
    run = Run(tmp_path_factory.mktemp("run"), lambda _: faults.pop(0) if faults else None)
    for action in actions:
        match action:
            case "save":
                run.save()
            case "save again":  # other bytes under the name of the last one: a step done twice is not done equally
                run.save(str(run.entries[0]["file"]) if run.entries else None)
            case "beat":
                run.beat()
            case "step":
                run.step()
            case "wait":
                run.now += LIVE_EVERY
            case list():
                faults += action
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)
    assert run.store.seen[-1] == "manifest.json"
    assert list((run.folder.root / ".outbox/files").iterdir()) == [], "snapshots are gone"


def test_a_kill_at_every_request_loses_nothing(tmp_path: Path) -> None:
    """The same run, killed before and after its first, second, … request, until it gets through without."""
    for when in ("kill before", "kill after"):
        for number in range(200):
            left = [number]

            def fault(_: str, left: list[int] = left, when: str = when) -> str | None:
                left[0] -= 1
                return when if left[0] == -1 else None

            run = Run(tmp_path / f"{when} {number}", fault)
            for _ in range(3):
                run.save()
                run.beat()
                for _ in range(3):
                    run.step()
            run.finish()
            run.drain()
            assert contents(run.store.root) == contents(run.folder.root)
            if left[0] >= 0:
                break
        else:
            pytest.fail("200 requests are not enough for this run")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_pointer_comes_after_what_a_resume_needs(run: Run) -> None:
    run.save()
    run.beat()
    for _ in range(8):
        run.step()
    order = run.store.seen
    first = order.index("checkpoints/latest.json")
    for name in ("checkpoints/step-00000001.pt", "model/best.pt", "metrics.jsonl", "spec.yaml"):
        assert order.index(name) < first


def test_the_old_checkpoint_goes_after_the_new_pointer(run: Run) -> None:
    for _ in range(3):
        run.save()
        for _ in range(8):
            run.now += LIVE_EVERY
            run.step()
    order = run.store.seen
    gone = order.index("-checkpoints/step-00000001.pt")
    pointers = [place for place, name in enumerate(order) if name == "checkpoints/latest.json"]
    assert order.index("checkpoints/step-00000003.pt") < max(place for place in pointers if place < gone)
    assert sorted(path.name for path in (run.store.root / "checkpoints").glob("*.pt")) == [
        "step-00000002.pt",
        "step-00000003.pt",
    ]


def test_what_a_short_disk_gives_up_stays_in_the_store(run: Run) -> None:
    """The folder has room for two checkpoints, `keep` is four; the manifest of a complete run names the folder's."""
    run.outbox.keep = 4

    def stored() -> list[int]:
        for _ in range(8):
            run.now += LIVE_EVERY
            run.step()
        named = [entry["file"] for entry in read_pointer(run.store.root / "checkpoints/latest.json")]
        assert sorted(named) == sorted(path.name for path in (run.store.root / "checkpoints").glob("*.pt"))
        return [int(name[5:13]) for name in named]

    for number in range(1, 7):
        run.save()
        assert stored() == list(range(number, max(0, number - 4), -1))
    assert run.outbox.unsent() == {}, "nothing is missed"
    run.open()  # a new process
    run.outbox.keep = 4
    assert stored() == [6, 5, 4, 3]
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_what_is_refused_for_good_does_not_hold_up_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or beside others: everything else goes up, and then it is told, not before and not once only."""
    put, refused = run.store.put, ["metrics.jsonl", "plots/curves.png"]

    def refusing(path: Path, name: str) -> Entry:
        if name in refused:
            raise StoreError(name, "404 NotAuthorizedOrNotFound", "ask for a policy", final=True)
        return put(path, name)

    monkeypatch.setattr(run.store, "put", refusing)
    run.save()
    run.connect()
    for _ in range(8):  # one at a time, while the run goes on
        with contextlib.suppress(StoreError):
            run.outbox.bulk()
    assert "checkpoints/step-00000001.pt" in run.store.seen
    run.finish()
    run.outbox.over = True
    told = []
    for _ in range(12):
        run.outbox.live()
        try:
            run.outbox.bulk()
        except StoreError as error:
            told.append(error.where)
    assert set(run.outbox.unsent()) == {*refused, "manifest.json", "status.json"}
    assert set(told) == set(refused)
    refused.clear()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_a_store_that_will_not_delete_still_gets_everything_but_the_manifest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwilling(name: str) -> None:
        raise StoreError(name, "it was not deleted, though the service said so", "again later", final=False)

    monkeypatch.setattr(run.store, "delete", unwilling)
    for _ in range(4):
        run.save()
        for _ in range(8):
            run.now += LIVE_EVERY
            run.step()
    run.finish()
    run.outbox.over = True
    for _ in range(30):
        run.step()
    assert set(run.outbox.unsent()) == {"manifest.json"}
    with pytest.raises(StoreError, match="it was not deleted"):
        run.outbox.bulk()
    monkeypatch.undo()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_newer_bytes_that_come_while_the_older_are_sent_go_up_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put, newer = run.store.put, [b"newer"]

    def slowly(path: Path, name: str) -> Entry:
        entry = put(path, name)
        if name == "model/best.pt" and newer:
            write_file(run.folder.root / name, newer.pop())
            run.outbox.scan()  # as the other thread may
        return entry

    monkeypatch.setattr(run.store, "put", slowly)
    run.save()
    run.connect()
    for _ in range(8):
        run.step()
    assert newer == []
    assert (run.store.root / "model/best.pt").read_bytes() == b"newer"


def test_a_store_slower_than_training_still_gets_the_newest(run: Run) -> None:
    """Expired checkpoints are left out, and what is stored is named although the folder has moved on."""
    newest: list[dict[str, object]] = []
    for _ in range(16):
        run.step()  # one file, and three checkpoints more are saved
        for _ in range(3):
            run.save()
        pointer = run.store.root / "checkpoints/latest.json"
        newest += json.loads(pointer.read_text())["files"][:1] if pointer.exists() else []
    sent = [name for name in run.store.seen if name.startswith("checkpoints/step-")]
    assert len(sent) < 8
    assert len({entry["file"] for entry in newest}) > 1, "the pointer moves on"
    assert dangling(run.store.root) == []
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_a_pointer_that_is_replaced_while_it_is_looked_at_waits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on between two lines of ours: the file that is sent is the one whose checkpoints were looked at."""
    run.save()
    run.connect()
    while not run.outbox.landed:
        run.outbox.bulk()
    saves = [run.save]

    def interrupted(path: Path) -> list[dict[str, object]]:
        entries = read_pointer(path)
        if path == run.folder.checkpoints / "latest.json" and saves:
            saves.pop()()
        return entries

    monkeypatch.setattr("job.storage.outbox.read_pointer", interrupted)
    for _ in range(12):
        run.outbox.bulk()
    assert saves == []
    assert run.store.seen.count("checkpoints/latest.json") >= 1
    assert dangling(run.store.root) == []


def test_what_is_being_sent_stays_until_it_is_sent(run: Run) -> None:
    path = run.save()
    run.outbox.scan()
    item = run.outbox.journal.waiting[f"checkpoints/{path.name}"]
    with run.outbox.snapshots.sending(item) as snapshot:
        path.unlink()
        run.outbox.scan()
        assert item.name not in run.outbox.journal.waiting
        assert sha256(snapshot) == item.sha256
    assert not snapshot.exists()


def test_what_comes_while_the_folder_is_listed_is_not_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane has listed the folder; another takes in a file that came since, before the first is through."""
    run.connect()
    late, look = "report.json", run.outbox.snapshots.look

    def look_beside(name: str) -> None:
        if not (run.folder.root / late).exists():
            write_file(run.folder.root / late, b"written last")
            look(late)
        look(name)

    monkeypatch.setattr(run.outbox.snapshots, "look", look_beside)
    run.outbox.scan()
    assert late in run.outbox.unsent()
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_a_file_that_was_away_goes_up_when_it_is_back(run: Run) -> None:
    """As it was, to the nanosecond."""
    run.connect()
    path, aside = run.folder.root / "report.json", run.folder.root.parent / "aside"
    write_file(path, b"content")
    run.outbox.scan()
    path.rename(aside)
    run.outbox.scan()
    assert "report.json" not in run.outbox.unsent()
    aside.rename(path)
    assert "report.json" in run.outbox.unsent()
    run.drain()
    assert (run.store.root / "report.json").read_bytes() == b"content"


def test_nothing_in_the_folder_counts_as_stored_until_it_was(run: Run) -> None:
    """Also what the journal does not speak of, for whatever reason."""
    run.connect()
    run.outbox.scan()
    run.outbox.snapshots.drop("spec.yaml")
    assert "spec.yaml" in run.outbox.unsent()


def test_a_checkpoint_in_the_outbox_outlives_its_retention(run: Run) -> None:
    """The file is held by a link, and takes no second place on the disk."""
    path = run.save()
    run.outbox.scan()
    item = run.outbox.journal.waiting[f"checkpoints/{path.name}"]
    snapshot = run.folder.root / ".outbox/files" / item.file
    assert snapshot.stat().st_ino == path.stat().st_ino
    path.unlink()
    assert sha256(snapshot) == item.sha256
    run.outbox.scan()
    assert not snapshot.exists(), "expired before it was sent: it is not sent any more"


def test_a_file_whose_bytes_rotted_is_not_uploaded_as_a_checkpoint(run: Run) -> None:
    path = run.save()
    path.write_bytes(b"rotten")
    for _ in range(8):
        run.step()
    assert not (run.store.root / "checkpoints/latest.json").exists()
    [problem] = run.outbox.problems.values()
    assert "its SHA-256 is not the one that was written" in problem


def test_a_manifest_that_is_not_true_is_not_published(run: Run) -> None:
    run.finish()
    (run.folder.root / "report.html").write_bytes(b"other bytes")
    run.all_but_the_manifest()
    with pytest.raises(JobError, match=r"report\.html: it is not what manifest\.json says"):
        run.outbox.bulk()
    assert not (run.store.root / "manifest.json").exists()


def test_what_was_changed_in_the_store_is_sent_again_before_the_manifest(run: Run) -> None:
    """A request that timed out may still be carried out, long after its repetition."""
    run.save()
    run.finish()
    run.all_but_the_manifest()
    (run.store.root / "report.html").write_bytes(b"late")
    (run.store.root / "model/model.pt").unlink()
    (run.store.root / "plots/old.png").write_bytes(b"of a former life")
    with pytest.raises(JobError, match="the store does not hold what was verified there"):
        run.outbox.bulk()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_another_machine_went_on_meanwhile(run: Run, tmp_path: Path) -> None:
    """The journal of the first one knows better than to believe itself."""
    run.save()
    for _ in range(8):
        run.step()
    other = Run(tmp_path / "other")
    other.store = run.store
    other.saved, other.bytes = 5, random.Random(1)
    other.save()
    for _ in range(8):
        other.step()
    run.open()
    run.save()
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_a_lost_journal_costs_time_only(run: Run) -> None:
    run.save()
    for _ in range(8):
        run.step()
    (run.folder.root / ".outbox/journal.jsonl").write_bytes(b'{"kind": "stor')
    run.open()
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_a_status_is_not_sent_at_every_heartbeat(run: Run) -> None:
    run.connect()
    for _ in range(10):
        run.beat()
        run.outbox.live()
        run.outbox.live()
        run.now += LIVE_EVERY / 5
    assert run.store.seen.count("status.json") == 2


def test_nothing_goes_out_while_the_run_is_another_s(run: Run) -> None:
    def guard() -> None:
        raise StoreError("run", "another process took this run over", "wait", final=True)

    run.save()
    run.outbox.connect(run.store, guard)
    while run.outbox.sent < 4:  # the checkpoint and what belongs to it may lie there, unnamed
        run.outbox.bulk()
    with pytest.raises(StoreError):
        run.outbox.bulk()
    assert not (run.store.root / "checkpoints/latest.json").exists()


def test_no_room_for_a_copy_is_no_obstacle(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run.save()
    run.finish()
    monkeypatch.setattr("job.storage.snapshots.shutil.copyfile", full)
    run.drain()
    monkeypatch.undo()
    assert contents(run.store.root) == contents(run.folder.root)


def test_without_hard_links_there_is_a_copy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    run.save()
    run.finish()
    run.drain()
    assert contents(run.store.root) == contents(run.folder.root)


def test_lag_counts_from_the_oldest_checkpoint_that_waits(run: Run) -> None:
    first, second = run.save(), run.save()
    os.utime(first, (100, 100))
    os.utime(second, (200, 200))
    assert run.outbox.durable() == ([], None, 100)
    for _ in range(5):
        run.step()
    stored, durable, since = run.outbox.durable()
    assert (stored, since) == ([second.name], None), "the newest goes first"
    assert durable is not None
    assert durable["file"] == second.name


def test_a_checkpoint_in_parts_is_named_when_all_of_it_is_there_and_goes_as_a_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.connect()
    folder = run.folder.checkpoints
    entries: list[dict[str, object]] = []
    for step in (1, 2, 3):
        names = [f"step-{step:08d}.part-0.pt", f"step-{step:08d}.part-1.pt", f"step-{step:08d}.pt"]
        for name in names:
            write_file(folder / name, run.bytes.randbytes(50))
        files: list[dict[str, object]] = [{"file": name, "sha256": sha256(folder / name)} for name in names]
        *parts, head = files
        entries = [{**head, "epoch": step, "step": 0, "parts": parts}, *entries][:KEEP]
        write_json(folder / "latest.json", {"files": entries})
        while run.outbox.bulk():
            there = contents(run.store.root)
            for entry in read_pointer(run.store.root / "checkpoints/latest.json"):
                assert all(f"checkpoints/{one['file']}" in there for one in files_of(entry))
    stored = sorted(name for name in contents(run.store.root) if name.endswith(".pt") and "step" in name)
    assert stored == sorted(f"checkpoints/{one['file']}" for entry in entries for one in files_of(entry))
    assert len(stored) == 3 * KEEP
    here = RunFolder(tmp_path / "here")
    here.make()
    assert runs.adopt(run.store, here, resume=True) == "fetched"
    assert [one["file"] for one in files_of(read_pointer(here.checkpoints / "latest.json")[0])] == names
    assert all((here.checkpoints / name).read_bytes() == (folder / name).read_bytes() for name in names)
    (run.store.root / "checkpoints" / names[1]).write_bytes(b"other")
    other = RunFolder(tmp_path / "other")
    other.make()
    assert runs.adopt(run.store, other, resume=True) == "fetched"
    assert read_pointer(other.checkpoints / "latest.json")[0]["epoch"] == 2, "the one before a damaged one"
