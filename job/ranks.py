"""Several training processes on one machine: torchrun starts them, starts them again when one dies, and they take part.

    job run SPEC                        with several GPUs visible, or resources.processes, starts them by itself
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
from types import FrameType

from job import loop
from job.data import dataset
from job.device import cpu_count
from job.errors import Interrupted, JobError
from job.heartbeat import Heartbeat
from job.interrupt import SIGNALS, StopFlag, end_with_parent
from job.limits import Limits
from job.runfolder import RunFolder
from job.spec.load import Loaded
from job.spec.schema import Spec
from job.training import checkpoint
from job.training.distributed import Brief, Ranks, join
from job.training.session import Session
from job.training.setup import prepare

FOLDER = "JOB_RANKS_FOLDER"  # of the launcher: what rank 0 tells it
RESTARTS = 3
LOOK_EVERY = 0.05  # seconds between two looks at the processes
LEAVE = 15.0  # seconds that processes may take to leave once the run has ended
HERE = Path(__file__).resolve().parent.parent


def launch(arguments: Sequence[str], count: int, grace: float) -> int:
    """`python -m job ARGUMENTS` in as many processes; their exit code is that of rank 0."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cpu_count() // count))
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {FOLDER: folder, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [*torchrun, "--max-restarts", str(RESTARTS), "-m", "job", *arguments]
        # in a session of its own: a Ctrl-C is for rank 0 alone, which then ends the others in good order
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has no threads yet
        )
        code = _attend(process, Path(folder), grace)
    if code is not None:
        return code
    what = f"a process broke {RESTARTS + 1} times, or torchrun did (exit {process.returncode})"
    raise JobError("resources.processes", what, "see above; the last checkpoint is whole, run the same id again")


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
    splits = dataset.load(spec.dataset)
    network = prepare(spec, splits, brief.device)
    with tempfile.TemporaryDirectory(prefix=f"rank-{ranks.rank}-") as name:
        folder = RunFolder(Path(name) / "run")  # what a run writes beside checkpoints; rank 0's is the one that stays
        folder.make()
        training = Session(spec, splits, network, brief.settings, folder, ranks)
        if brief.checkpoint is not None:
            training.restore(checkpoint.read(brief.checkpoint), brief.checkpoint)
        limits = Limits("run", StopFlag(), decide=ranks.decide)
        for _ in loop.train(training, limits, Heartbeat(folder)):
            pass
        training.finish(limits.poll)


def _attend(process: "subprocess.Popen[bytes]", folder: Path, grace: float) -> int | None:
    """Passes a wish to stop on to rank 0 and waits; None where the processes ended without saying how."""
    wishes: list[float] = []

    def received(_number: int, _frame: FrameType | None) -> None:
        wishes.append(time.monotonic())

    before = {number: signal.signal(number, received) for number in SIGNALS}
    passed, ended = False, None
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
            lead, now = _read(folder / "lead"), time.monotonic()
            if wishes and not passed and lead is not None:
                os.kill(lead, signal.SIGTERM)
                passed = True
            late = wishes and (lead is None or len(wishes) > 1 or now > wishes[0] + grace + LEAVE)
            if ended is None and _read(folder / "code") is not None:
                ended = now
            if late or (ended is not None and now > ended + LEAVE):
                break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    code = _read(folder / "code")
    return Interrupted.exit_code if code is None and wishes else code


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
