"""Several training processes, on one machine or several: torchrun starts them, they take part, and when one dies all
begin again.

    job run SPEC                        with several GPUs visible, or resources.processes, starts them by itself
    JOB_NODES=2 JOB_NODE_RANK=0 …       the same on each of several machines, see `job.training.nodes`
    torchrun … -m job run SPEC --run-id ID

Rank 0 is the run: it reads, plans, decides, writes and reports. The others follow: the same data, the same network,
their share of each batch. A run that ends in good order leaves its exit code in a file, so that torchrun, which would
start again whatever ends with an error, sees one only where something broke.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from job import loop
from job.data import dataset
from job.data.dataset import Splits
from job.device import cpu_count
from job.errors import Interrupted, JobError, UsageError
from job.heartbeat import Heartbeat
from job.interrupt import SIGNALS, StopFlag, end_with_parent
from job.limits import Limits
from job.runfolder import RunFolder
from job.spec.load import Loaded
from job.spec.schema import Spec
from job.training.distributed import Brief, Ranks, join
from job.training.nodes import BROKE, Meeting, Nodes, interface_to, is_first_machine
from job.training.session import Session
from job.training.setup import prepare

FOLDER = "JOB_RANKS_FOLDER"  # of the launcher: what rank 0 tells it
RESTARTS = 3
LOOK_EVERY = 0.05  # seconds between two looks at the processes
BROKEN = f"a process broke {RESTARTS + 1} times"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
LEAVE = 15.0  # seconds that processes may take to leave once the run has ended
HERE = Path(__file__).resolve().parent.parent


def launch(arguments: Sequence[str], count: int, grace: float) -> int:
    """`python -m job ARGUMENTS` in as many processes; their exit code is that of rank 0."""
    with Wishes() as wishes:
        code = _start(arguments, count, ["--standalone", "--max-restarts", str(RESTARTS)], grace, wishes)
    if code is not None:
        return code
    raise JobError("resources.processes", BROKEN, "see above; the last checkpoint is whole, run the same id again")


def launch_together(arguments: Sequence[str], count: int, grace: float, nodes: Nodes, patience: float) -> int:
    """The same on each of several machines; all of them end with the exit code of rank 0, which is on the first.

    `patience` is how long the others may take to come. When a process or a machine is lost, all begin again.
    """
    meeting = Meeting(nodes, patience)
    if (interface := interface_to(nodes.host, nodes.port)) is not None:
        for variable in INTERFACES:
            os.environ.setdefault(variable, interface)
    with Wishes() as wishes:
        for _ in range(RESTARTS + 1):
            port = meeting.begin(lambda: bool(wishes.times))
            if port is None:
                raise Interrupted("run", "stopped before all machines were there", "run the same id again")
            where = ["--nnodes", str(nodes.count), "--node-rank", str(nodes.rank)]
            where += ["--master-addr", nodes.host, "--master-port", str(port), "--max-restarts", "0"]
            code = _start(arguments, count, where, grace, wishes, meeting)
            if code is not None:
                meeting.leave(LEAVE)
                return code
            sys.stderr.write("A process or a machine was lost: all begin again from the last checkpoint\n")
        meeting.close(BROKEN)
        meeting.leave(LEAVE)
    raise JobError("resources.nodes", BROKEN, "see above; the last checkpoint is whole, run the same id again")


class Wishes:
    """Takes over the signals that ask this process to stop: when they came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._received) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def urgent(self, grace: float) -> bool:
        """Asked twice, or nothing came of it."""
        times = self.times
        return len(times) > 1 or (bool(times) and time.monotonic() > times[0] + grace + LEAVE)

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        self.times.append(time.monotonic())


def _start(
    arguments: Sequence[str],
    count: int,
    where: Sequence[str],
    grace: float,
    wishes: Wishes,
    meeting: Meeting | None = None,
) -> int | None:
    """torchrun from beginning to end; None where something broke."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cpu_count() // count))
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {FOLDER: folder, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        torchrun = [sys.executable, "-m", "job.training.torchrun", "--nproc-per-node", str(count), *where]
        # in a session of its own: a Ctrl-C is for rank 0 alone, which then ends the others in good order
        process = subprocess.Popen(
            [*torchrun, "-m", "job", *arguments],
            env={**os.environ, **settings},
            start_new_session=True,
        )
        try:
            code = _attend(process, Path(folder), grace, wishes, meeting)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code is not None or meeting is None:
            return code
        return _agreed(meeting, process.returncode, wishes, grace)


def leave(code: int) -> int:
    """What rank 0 ends with: under the launcher 0, and the run's own code in the file."""
    folder = os.environ.get(FOLDER)
    if folder is None or os.environ.get("RANK") != "0":
        return code
    _write(Path(folder) / "code", str(code))
    return 0


def take_part(loaded: Loaded, lead: Callable[[Ranks], int]) -> int:
    """One of the processes that torchrun started: rank 0 does what `lead` does."""
    end_with_parent()  # torchrun gives each a session of its own: a kill of its group would not reach them
    with join() as ranks:
        if not ranks.leads:
            return _follow_to_the_end(loaded, ranks)
        if FOLDER in os.environ:
            _write(Path(os.environ[FOLDER]) / "lead", str(os.getpid()))  # signals are for this one
        return lead(ranks)


def _follow_to_the_end(loaded: Loaded, ranks: Ranks) -> int:
    try:
        _follow(loaded.spec, ranks)
    except Interrupted:  # rank 0 said so
        return 0
    except Exception:
        if _ended():  # rank 0 has left, with an error that it told
            return 0
        raise
    return 0


def _follow(spec: Spec, ranks: Ranks) -> None:
    brief: Brief = ranks.listen()
    splits, problem = _data(spec, brief)
    ranks.settle(problem)
    assert splits is not None
    network = prepare(spec, splits, brief.device)
    with tempfile.TemporaryDirectory(prefix=f"rank-{ranks.rank}-") as name:
        folder = RunFolder(Path(name) / "run")  # what a run writes beside checkpoints; rank 0's is the one that stays
        folder.make()
        training = Session(spec, splits, network, brief.settings, folder, ranks)
        training.follow(Path(os.environ.get(FOLDER, name)))
        limits = Limits("run", StopFlag(), decide=ranks.decide)
        for _ in loop.train(training, limits, Heartbeat(folder)):
            pass
        training.finish(limits.poll)


def _data(spec: Spec, brief: Brief) -> tuple[Splits | None, JobError | None]:
    """The data, which is there on the first machine; on another one its first process may have to fetch it."""
    mark = Path(os.environ[FOLDER]) / "data" if FOLDER in os.environ and not is_first_machine() else None
    loads = os.environ.get("LOCAL_RANK") == "0"
    while mark is not None and not loads and not mark.exists():
        time.sleep(LOOK_EVERY)
    try:
        splits = dataset.load(spec.dataset)
    except JobError as error:
        return None, error
    finally:
        if mark is not None and loads:
            mark.touch()
    if splits.sha256 == brief.data:
        return splits, None
    what = f"on machine {os.environ.get('GROUP_RANK', '0')} it is not what the first one has"
    return None, UsageError(f"dataset {spec.dataset.name}", what, "put the same files on all of them")


def _attend(
    process: "subprocess.Popen[bytes]", folder: Path, grace: float, wishes: Wishes, meeting: Meeting | None
) -> int | None:
    """Passes a wish to stop on to rank 0 and waits; None where the processes ended without saying how."""
    first = meeting is None or meeting.nodes.rank == 0
    asked, passed, ended = False, False, None
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_EVERY)
        lead, now = _read(folder / "lead"), time.monotonic()
        asked = bool(wishes.times) or (meeting is not None and meeting.stop)
        if asked and not passed and lead is not None:
            os.kill(lead, signal.SIGTERM)
            passed = True
        if meeting is not None:
            _exchange(meeting, folder, wishes)
            if meeting.over == BROKE or meeting.lost:
                return None
        if ended is None and _read(folder / "code") is not None:
            ended = now
        if (asked and first and lead is None) or wishes.urgent(grace) or (ended is not None and now > ended + LEAVE):
            break
    code = _read(folder / "code")
    code = Interrupted.exit_code if code is None and first and asked else code
    if code is not None and meeting is not None and first:
        meeting.end(str(code))
    return code


def _exchange(meeting: Meeting, folder: Path, wishes: Wishes) -> None:
    """Between the machines: the run's code, as soon as there is one, and a wish to stop."""
    code = _read(folder / "code")
    if meeting.nodes.rank == 0:
        if code is not None and meeting.over is None:
            meeting.end(str(code))
        return
    if meeting.over not in (None, BROKE) and code is None:
        _write(folder / "code", str(meeting.over))
    if wishes.times and not meeting.stop:
        meeting.wish()


def _agreed(meeting: Meeting, ended_with: int, wishes: Wishes, grace: float) -> int | None:
    """How a round ended whose processes here are gone. Those of the first machine may still write and store."""
    while ended_with == 0 and meeting.nodes.rank > 0 and meeting.over is None and not meeting.lost:
        if wishes.times:
            meeting.wish()
        if wishes.urgent(grace):
            return Interrupted.exit_code
        time.sleep(LOOK_EVERY)
    if meeting.lost:
        return Interrupted.exit_code if wishes.times else None
    over = meeting.end(BROKE)
    return None if over == BROKE else int(over)


def _ended() -> bool:
    """Whether rank 0 left in good order; it may be about to."""
    folder = os.environ.get(FOLDER)
    until = time.monotonic() + LEAVE / 2
    while folder is not None and time.monotonic() < until:
        if _read(Path(folder) / "code") is not None:
            return True
        time.sleep(LOOK_EVERY)
    return False


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _read(path: Path) -> int | None:
    return int(path.read_text(encoding="utf-8")) if path.exists() else None
