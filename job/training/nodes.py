"""Several machines that train together: their launchers, who meet, begin, stop and end at the same time.

    $JOB_NODES            how many machines; $JOB_NODE_RANK which of them this is, from 0
    $JOB_RENDEZVOUS       HOST:PORT of the first one, where the launchers meet

The first launcher serves a small store. A round is one start of all ranks: each launcher says that it is here, the
first says go, and whatever ends it is said once, for all: the run's exit code, or that something broke. A launcher that
comes back in the middle of a round ends it, so that all begin again. Silence is a loss: a machine that loses its power
closes no connection.
"""

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from job.errors import Interrupted, JobError, UsageError

VARIABLES = ("JOB_NODES", "JOB_NODE_RANK", "JOB_RENDEZVOUS")
LOOK_EVERY = 0.25  # seconds between two looks at the store
SILENCE = 60.0  # seconds without a word of a node after which it is lost
ANSWER = timedelta(seconds=30)  # for one question to the store
SIOCGIFADDR = 0x8915  # of Linux's ioctl: the address of an interface
BROKE = "broke"


@dataclass(frozen=True)
class Nodes:
    """This machine among those of the run."""

    rank: int
    count: int
    host: str
    port: int


def from_environ(environ: Mapping[str, str], wanted: int) -> Nodes | None:
    """None on a single machine. UsageError where the environment is not what resources.nodes says."""
    words = {name: environ.get(name, "") for name in VARIABLES}
    if not any(words.values()):
        if wanted == 1:
            return None
        cure = "submit starts them all; by hand, set these on each of them"
        raise UsageError("resources.nodes", f"{wanted} machines need {', '.join(VARIABLES)}", cure)
    host, _, port = words["JOB_RENDEZVOUS"].rpartition(":")
    if not (host and all(word.isdigit() for word in (words["JOB_NODES"], words["JOB_NODE_RANK"], port))):
        told = ", ".join(f"{name}={word}" for name, word in words.items())
        raise UsageError("JOB_NODES", f"no sense in {told}", "JOB_NODES=2 JOB_NODE_RANK=0 JOB_RENDEZVOUS=HOST:PORT")
    found = Nodes(int(words["JOB_NODE_RANK"]), int(words["JOB_NODES"]), host.strip("[]"), int(port))
    if found.count != wanted:
        raise UsageError("JOB_NODES", f"{found.count}, and resources.nodes is {wanted}", "make them equal")
    if found.rank >= found.count:
        raise UsageError("JOB_NODE_RANK", f"{found.rank} of {found.count} machines", "count from 0")
    return found if found.count > 1 else None


class Meeting:
    """This launcher's line to the others. A thread of its own asks and tells, as an answer may never come."""

    def __init__(self, nodes: Nodes, patience: float) -> None:
        self.nodes, self.patience = nodes, patience
        self.store: Any = None
        self.round = -1
        self.over: str | None = None  # how the round ended, as the store has it
        self.stop = False  # somebody wishes to
        self.answered = 0.0
        self.failed = False
        self.silent: dict[int, tuple[int, float]] = {}  # by node: its last beat, and when that was new
        self.closing = threading.Event()
        self.thread: threading.Thread | None = None

    def begin(self, wished: Callable[[], bool]) -> int | None:
        """Meets everybody for the next round; the port where the ranks meet. None when a stop is wished for.

        JobError when somebody does not come in time; Interrupted where a checkpoint may be there to go on from.
        """
        again, until = self.round >= 0, time.monotonic() + self.patience
        self.hang_up()
        opened = False
        while not wished():
            if time.monotonic() > until:
                raise self._nobody(Interrupted if again else JobError)
            with self._forgiving():
                if self.store is None:
                    self._connect()
                if self.nodes.rank == 0 and not opened:
                    self._open_round()
                    opened = True
                if self.nodes.rank > 0:
                    self._join()
                if (port := self._ready()) is not None:
                    self._listen()
                    return port
            time.sleep(LOOK_EVERY)
        return None

    def end(self, how: str) -> str:
        """Says how the round ended, unless somebody has said so before; what holds for all."""
        with contextlib.suppress(RuntimeError):
            said: bytes = self.store.compare_set(self._key("over"), "", how)
            return said.decode()
        return how

    def wish(self) -> None:
        """A stop, which rank 0 is to carry out."""
        with contextlib.suppress(RuntimeError):
            self.store.set(self._key("stop"), "1")

    @property
    def lost(self) -> bool:
        return self.failed or time.monotonic() > self.answered + SILENCE

    def close(self, why: str) -> None:
        """No round comes any more."""
        with contextlib.suppress(RuntimeError):
            self.store.set("closed", why)

    def leave(self, seconds: float) -> None:
        """The first one stays until the others have heard how it ended."""
        self.hang_up()
        with contextlib.suppress(RuntimeError, AttributeError):  # nobody answers any more
            self.store.set(self._key(f"bye/{self.nodes.rank}"), "1")
            until = time.monotonic() + seconds
            while self.nodes.rank == 0 and self._missing("bye") and time.monotonic() < until:
                time.sleep(LOOK_EVERY)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """The first machine may not be there yet, or be gone again."""
        try:
            yield
        except (RuntimeError, OSError):
            if self.nodes.rank == 0:
                raise
            self.store = None

    def _connect(self) -> None:
        first = self.nodes.rank == 0
        if not first:
            socket.create_connection((self.nodes.host, self.nodes.port), 1).close()  # torch complains of each try
        kind: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # C++
        try:
            store = kind(self.nodes.host, self.nodes.port, None, first, ANSWER, wait_for_workers=False)
        except RuntimeError as error:
            if not first:
                raise
            what = f"the machines cannot meet here: {str(error).splitlines()[0]}"
            raise JobError("JOB_RENDEZVOUS", what, "give a free port of the first machine") from None
        if not first:
            self.round = -1  # it may be another first one
        self.store = store

    def _open_round(self) -> None:
        self.round += 1
        self.store.set(self._key("here/0"), "1")
        self.store.set("round", str(self.round))

    def _join(self) -> None:
        if self.store.check(["closed"]):
            raise JobError("resources.nodes", self.store.get("closed").decode(), "see the log of the first machine")
        if not self.store.check(["round"]):
            return
        now = int(self.store.get("round"))
        if now != self.round:
            self.round = now
            if self.store.add(self._key(f"here/{self.nodes.rank}"), 1) > 1 and self.store.check([self._key("go")]):
                self.end(BROKE)  # a launcher of ours was in it, whose ranks are gone

    def _ready(self) -> int | None:
        """The port, once everybody is here and as long as nothing has ended the round."""
        if self.round < 0:
            return None
        if self.nodes.rank == 0:
            if self._missing("here"):
                return None
            self.store.set(self._key("go"), str(_free_port()))
        ready = self.store.check([self._key("go")]) and not self.store.check([self._key("over")])
        return int(self.store.get(self._key("go"))) if ready else None

    def _missing(self, what: str) -> list[int]:
        return [node for node in range(self.nodes.count) if not self.store.check([self._key(f"{what}/{node}")])]

    def _nobody(self, kind: type[JobError]) -> JobError:
        cure = "see the log of that machine and whether this one lets it in; then run the same id again"
        if self.nodes.rank > 0:
            where, who = f"{self.nodes.host}:{self.nodes.port}", "somebody" if self.store else "the first one"
        else:
            where, who = "resources.nodes", " and ".join(f"number {node}" for node in self._missing("here"))
        return kind(where, f"of {self.nodes.count} machines {who} did not come within {self.patience:g} s", cure)

    def _listen(self) -> None:
        self.over, self.stop, self.failed, self.silent = None, False, False, {}
        self.answered = time.monotonic()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._talk, args=(self.closing,), name="nodes", daemon=True)
        self.thread.start()

    def _talk(self, closing: threading.Event) -> None:
        try:
            while not closing.wait(LOOK_EVERY):
                self.store.add(self._key(f"beat/{self.nodes.rank}"), 1)
                self.stop = self.store.check([self._key("stop")])
                over = self.store.check([self._key("over")])
                if self.nodes.rank == 0 and not over:
                    self._hear()
                self.over = self.store.get(self._key("over")).decode() if over else None
                self.answered = time.monotonic()
        except RuntimeError:
            self.failed = not closing.is_set()

    def _hear(self) -> None:
        """Ends the round when one of the others has not beaten for long."""
        now = time.monotonic()
        for node in range(1, self.nodes.count):
            beat = self.store.add(self._key(f"beat/{node}"), 0)
            if self.silent.get(node, (None, now))[0] != beat:
                self.silent[node] = (beat, now)
            elif now > self.silent[node][1] + SILENCE:
                self.end(BROKE)

    def hang_up(self) -> None:
        """Stops the thread; one that never gets its answer is left to itself, and its line to the store with it."""
        self.closing.set()
        if self.thread is not None:
            self.thread.join(2 * LOOK_EVERY)
            if self.nodes.rank > 0 and (self.failed or self.thread.is_alive()):
                self.store = None
            self.thread = None

    def _key(self, what: str) -> str:
        return f"{self.round}/{what}"


def interface_to(host: str, port: int) -> str | None:
    """The network interface that leads there: by its own name a machine may know itself as 127.0.1.1 only."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        mine = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if found[20:24] == mine:
                    return name
    return None


def is_first_machine() -> bool:
    """Of a rank: whether rank 0 is on this machine, by torchrun's environment."""
    return os.environ.get("GROUP_RANK", "0") == "0"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port
