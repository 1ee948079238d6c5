"""The process beside the training that empties the outbox: python -m job.storage.uploader FOLDER URI --keep 3

A process of its own, so that training shares neither interpreter, memory nor fate with it, which takes only the time
that training leaves, is not there in the forks of the data workers, and goes on for a while when the run is killed.
It hears "over" on standard input when the run has ended, and the end of the input when the run is gone. What it has
to say stands in RUN/.outbox/state.json. Exit codes: 0 everything is stored, 4 not, 2 the store refuses.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from job.errors import JobError
from job.runfolder import OUTBOX, STATE, UNSEEN, RunFolder, is_hidden, seized
from job.storage import runs
from job.storage.lease import Lease, LeaseError, in_memory, scratch
from job.storage.outbox import Outbox
from job.storage.store import Store, StoreError, open_store

TIMEOUT = 30.0  # seconds without a byte after which a request is given up
BACKOFF = (1.0, 60.0)  # seconds before the first and the later tries
FINAL_EVERY = 300.0  # seconds between two tries of what was refused: rights can be given while training runs
ROUND, LAST_ROUND = 1.0, 0.1  # seconds between two looks at the folder, while the run goes on and after
ROUNDS = 10  # looks without anything to send after which what is left cannot be sent
ORPHANED = 120.0  # seconds that an uploader goes on when its run was killed
MOURNING = 20.0  # seconds in which torchrun has started it again; after that it counts as over
LAST_WORDS = 60.0  # seconds that a report may take to be written


class Uploader:
    """Two lanes: one for status, log and lease, one for everything else. `state` is what they have come to."""

    def __init__(self, folder: RunFolder, uri: str, keep: int, adopt: str, *, strict: bool) -> None:
        """`adopt` is never, spec or resume: what may be taken from the store. `strict`: a refusal is the end."""
        self.folder, self.uri, self.keep, self.adopt, self.strict = folder, uri, keep, adopt, strict
        self.phase = "starting"
        self.errors: dict[str, JobError] = {}
        self.final: set[str] = set()  # lanes whose error no retry mends
        self.begun = self.lost = False
        self.stopping, self.opened, self.over = threading.Event(), threading.Event(), threading.Event()
        self.turn = threading.Condition()  # of events: whoever waits looks again
        self.outbox = Outbox(folder, keep)
        self.store: Store | None = None
        self.lease: Lease | None = None
        self.rounds = {"live": 0, "bulk": 0}
        self.threads = [
            threading.Thread(target=self._lane, args=(name,), name=name, daemon=True) for name in self.rounds
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """From now on the folder does not change any more: everything goes up, the manifest last."""
        self.errors, self.final = {}, set()  # once more, at once
        self.outbox.over = True
        with self.turn:
            self.over.set()
            self.turn.notify_all()

    def outcome(self) -> int | None:
        """None while there is something to do; else the exit code."""
        if self.phase == "complete":
            return 0
        if self.final and self.strict and not self.begun:
            return 2
        shut = "live" in self.final and not self.opened.is_set()  # refused at the door: the other lane never begins
        idle = all(lane in self.final or self.rounds[lane] for lane in self.rounds)
        if self.over.is_set() and (shut or (self.final and idle)):
            return 4
        if not all(thread.is_alive() for thread in self.threads):
            return 4
        if not self.over.is_set() or not self.opened.is_set() or self.errors:
            return None
        if not self.outbox.unsent():
            return 0
        return 4 if min(self.rounds.values()) > ROUNDS else None

    def close(self) -> None:
        """Stops the threads and lets go of the lease; what cannot be let go of expires."""
        self._stop()
        for thread in self.threads:
            thread.join(2 * ROUND)
        if self.lease is not None:
            with contextlib.suppress(Exception):
                self.lease.release()

    def state(self) -> dict[str, Any]:
        stored, durable, since = self.outbox.durable()
        with self.outbox.lock:
            waiting = list(self.outbox.journal.waiting.values())
        errors = [*map(str, self.errors.values()), *self.outbox.problems.values()]
        refused = self.errors.get(min(self.final, default=""))
        state = {
            "uri": self.uri,
            "phase": self.phase,
            "pid": os.getpid(),
            "stored": stored,
            "durable": durable,
            "lag_seconds": 0 if since is None else round(max(0.0, time.time() - since)),
            "waiting": len(waiting),
            "bytes": sum(item.size for item in waiting),
            "sent": self.outbox.sent,
            "error": errors[0] if errors else None,
            "refused": None if refused is None else [refused.where, refused.what, refused.cure],
        }
        return {**state, "left": self.outbox.unsent()} if self.over.is_set() else state

    def _lane(self, name: str) -> None:
        """Aside while training runs. Nobody may raise a priority again, so a thread of its own takes the low one."""
        if name == "live":  # training waits for the first look at the store
            self._work(name, lambda: self.opened.is_set() or self.over.is_set() or bool(self.errors))
        aside = threading.Thread(target=self._aside, args=(name,), name=f"{name} aside", daemon=True)
        aside.start()
        aside.join()
        self._work(name, lambda: False)

    def _aside(self, name: str) -> None:
        step_aside()
        self._work(name, self.over.is_set)

    def _work(self, name: str, done: Callable[[], bool]) -> None:
        """Steps until done or told to stop. Nothing that a store, a disk or a mistake of ours does ends it."""
        failures = 0
        while not self.stopping.is_set() and not done():
            over = self.over.is_set()
            pause = LAST_ROUND if over else ROUND
            try:
                if self._step(name):
                    pause, self.rounds[name] = 0.0, 0
                elif self.opened.is_set():
                    self.rounds[name] += 1
                self.errors.pop(name, None)
                self.final.discard(name)
                failures = 0
            except Exception as error:
                self.rounds[name] = 0
                failures += 1
                pause = self._failed(name, error, failures)
            self._wait(pause, over)

    def _failed(self, name: str, error: Exception, failures: int) -> float:
        """Notes what went wrong; seconds until the next try."""
        if not isinstance(error, JobError):
            traceback.print_exc()
            error = JobError(self.uri, f"{type(error).__name__}: {error}", "this is tried again")
        self.errors[name] = error
        final = error.final if isinstance(error, StoreError) else name == "live" and not self.opened.is_set()
        if final:
            self.final.add(name)
        if isinstance(error, LeaseError):
            self.opened.clear()  # nothing more goes into a run that is another's
            self.lost = self.begun
        first, longest = BACKOFF
        wait = FINAL_EVERY if final else min(longest, first * 2 ** (failures - 1))
        return wait * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret

    def _wait(self, seconds: float, over: bool) -> None:
        """Less when the run ends meanwhile: then there is no time to lose."""
        with self.turn:
            self.turn.wait_for(lambda: self.stopping.is_set() or self.over.is_set() != over, seconds)

    def _stop(self) -> None:
        with self.turn:
            self.stopping.set()
            self.turn.notify_all()

    def _wait_or_stop(self, seconds: float) -> None:
        self._wait(seconds, self.over.is_set())
        if self.stopping.is_set():
            raise JobError(self.uri, "the uploader was told to stop", "run upload to finish")

    def _step(self, lane: str) -> bool:
        if lane == "live" and not self.opened.is_set():
            return self._open()
        if not self.opened.is_set():
            self.outbox.scan()  # into the journal, and safe from retention, while the store is away
            return False
        assert self.lease is not None
        self.lease.renew()
        return self.outbox.live() if lane == "live" else self.outbox.bulk()

    def _open(self) -> bool:
        """May we write, are we alone, is the store ahead of us: in this order, before anything is sent."""
        if self.lost:
            raise LeaseError(self.uri, "another process took this run over")
        if self.store is None:
            self.store = open_store(self.uri, TIMEOUT)
        if self.lease is None:
            probe(self.store)
            self.lease = Lease(self.store)
        if not self.lease.held:
            self.phase = "waiting for the lease"
            self.lease.acquire(self._wait_or_stop)
        self._refuse_another(self.store, self.lease)
        if self.adopt != "never":
            self.phase = "fetching"
            if runs.adopt(self.store, self.folder, resume=self.adopt == "resume") == "complete":
                self.phase = "complete"
                self._stop()
                return True
            self.adopt = "never"
        self.outbox.connect(self.store, self.lease.renew)
        self.phase, self.begun = "mirroring", True
        self.opened.set()
        return True

    def _refuse_another(self, store: Store, lease: Lease) -> None:
        """A run that began while the store was away may bear the id of one that the store holds: both are kept."""
        mark = self.folder.root / UNSEEN
        if not mark.exists():
            return
        if any(not is_hidden(entry.name) for entry in store.list()):
            lease.release()
            what = "it holds another run of this id, which could not be seen when this one began; nothing was replaced"
            cure = f"rename {self.folder.root} and upload it under that id, or delete the one in the store"
            raise StoreError(self.uri, what, cure, final=True)
        mark.unlink()


def probe(store: Store) -> None:
    """Writes, reads and deletes a small object: training for a store that refuses is money lost."""
    name, content = f".check-{secrets.token_hex(4)}", os.urandom(32)
    with in_memory(content) as path, scratch() as folder:
        store.put(path, name)
        store.get(name, folder / "back")
        same = (folder / "back").read_bytes() == content
    store.delete(name)
    if not same:
        where = f"{store.uri}/{name}"
        raise StoreError(where, "the store gave back other bytes than were put", "this is tried again", final=False)


@contextlib.contextmanager
def alone(folder: RunFolder, patience: float = 30.0) -> Iterator[None]:
    """One uploader a folder. An older one leaves when it sees that the run began again."""
    path = folder.root / OUTBOX / "lock"
    until = time.monotonic() + patience
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise JobError(str(folder.root), "another uploader is at work here", "wait for it to end") from None
                time.sleep(0.05)
        yield


def step_aside() -> None:
    """This thread takes only what training leaves: a step waits for its slowest thread, so nice 19 would be felt."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # where the next line is not allowed
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def write_state(folder: RunFolder, state: dict[str, Any]) -> None:
    """Whole or not at all, without a flush to the disk: it is of this moment."""
    path = folder.root / STATE
    beside = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps({**state, "time": time.time()}), encoding="utf-8")
        beside.replace(path)


def serve(uploader: Uploader, commands: TextIO, last_words: str | None = None) -> int:
    """Until everything is stored after "over", or the store refuses, or nobody is there any more.

    `last_words` is the module that sums up a run which was killed.
    """
    gone = threading.Event()
    threading.Thread(target=_listen, args=(uploader, commands, gone), daemon=True).start()
    uploader.start()
    orphaned: float | None = None
    written: dict[str, Any] = {}
    while (code := uploader.outcome()) is None:
        if gone.is_set():
            orphaned = time.monotonic() if orphaned is None else orphaned
            if time.monotonic() - orphaned > ORPHANED or _is_taken(uploader.folder):
                code = 4
                break
            if time.monotonic() - orphaned > MOURNING and not uploader.over.is_set():
                if last_words is not None:
                    _sum_up(uploader.folder, last_words)
                uploader.end()
        state = uploader.state()
        if state != written:
            write_state(uploader.folder, state)
            written = state
        time.sleep(LAST_ROUND if uploader.over.is_set() or not uploader.opened.is_set() else ROUND / 2)
    uploader.close()
    write_state(uploader.folder, uploader.state())
    return code


def _listen(uploader: Uploader, commands: TextIO, gone: threading.Event) -> None:
    for line in commands:
        if line.strip() == "over":
            uploader.end()
    if not uploader.over.is_set():
        gone.set()


def _sum_up(folder: RunFolder, module: str) -> None:
    """Without it the rest goes up all the same."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([sys.executable, "-m", module, str(folder.root)], check=False, timeout=LAST_WORDS)


def _is_taken(folder: RunFolder) -> bool:
    """Another process has begun to run this id again."""
    with seized(folder) as lock:
        return lock is None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("uri")
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--adopt", choices=("never", "spec", "resume"), default="never")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--last-words", metavar="MODULE")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # the run hears them, and tells when it is over
        signal.signal(number, signal.SIG_IGN)
    folder = RunFolder(options.folder)
    with alone(folder):
        uploader = Uploader(folder, options.uri, options.keep, options.adopt, strict=options.strict)
        code = serve(uploader, sys.stdin, options.last_words)
    os._exit(code)  # threads that wait for a dead network are not waited for


if __name__ == "__main__":
    main()
