"""The job as one page: plan → train → evaluate → report, into the run's folder.

    for event in job(load("spec.yaml"), run_id=None, stop=StopFlag()): show(event)

Whatever ends it, the folder then says so: status.json complete, interrupted or failed, and the last checkpoint whole.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from job import epitaph, loop, planning, reporting, resuming
from job.delivery import Delivery, delivered, finished, target, working_folder
from job.errors import Interrupted, JobError, UsageError
from job.events import Begun, Ended, Event, Note, Result, describe
from job.heartbeat import Heartbeat
from job.interrupt import StopFlag
from job.limits import IdleGpu, Limits, deadline
from job.planning import Plan
from job.runfolder import RunFolder, disk_errors, seized, write_status
from job.spec.load import Loaded, parse
from job.spec.schema import Spec
from job.training.distributed import ALONE, Brief, Ranks
from job.training.session import Session

LOCKS: set[int] = set()  # file descriptors
STALLED = 300.0  # seconds without a file stored after which `upload` gives up


def job(
    loaded: Loaded,
    run_id: str | None,
    stop: StopFlag,
    began: float | None = None,
    stop_after: int | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Event]:
    """The whole job. Ends with Ended; raises JobError for what the user can act on.

    `began` is when the process did, seconds since 1970, so that starting counts as part of the run; `stop_after`
    interrupts it after that many steps. Of several `ranks` this is the first.
    """
    began = time.time() if began is None else began
    folder = open_folder(loaded.spec, run_id)
    uri = target(loaded.spec, folder.id)

    def log(event: Event) -> None:
        if not is_complete(folder):  # the manifest names every byte
            _log(folder, event)

    with locked(folder):
        work = _work(loaded, folder, stop, began, stop_after, ranks or ALONE)
        if uri is None:
            yield from work
            return
        with Delivery(folder, uri, loaded.spec) as upload:
            yield from delivered(upload, work, loaded, run_id is None, stop, log)


def upload(folder: RunFolder) -> Iterator[Event]:
    """Brings what a run has left behind into its store, whatever ended it. UploadError when that fails again."""
    if not folder.spec.is_file():
        raise UsageError(str(folder.root), "there is no run in this folder", "give the folder of a run")
    spec = parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec)).spec
    uri = target(spec, folder.id)
    if uri is None:
        raise UsageError(str(folder.root), "this run's store is the folder itself", "there is nothing to upload")
    with locked(folder), Delivery(folder, uri, spec) as delivery:
        epitaph.write(folder)
        yield from delivery.flush(STALLED, StopFlag(), patient=True)
        yield from finished(delivery)


def _work(
    loaded: Loaded, folder: RunFolder, stop: StopFlag, began: float, stop_after: int | None, ranks: Ranks
) -> Iterator[Event]:
    """All of it but the upload."""
    if is_complete(folder):
        yield Note(f"Run {folder.id} is complete: {folder.report('html')}")
        return
    changes = resuming.begin(folder, loaded)
    yield Begun(folder.id, str(folder.root), resuming.has_checkpoint(folder))
    for change in changes:
        yield Note(change)
    made, training, beat = None, None, Heartbeat(folder)
    end = deadline(planning.limit(loaded.spec), began, os.environ)
    if end is not None:
        stop.ends_at(*end)
    try:
        with stop.at_once(), beat.alive("data"):
            made = planning.plan(loaded, fetch=True, began=began, phase=beat.phase)
        training = new_session(made, folder, ranks)
        limits = _limits(made, folder, stop, end, stop_after, ranks)
        if limits.idle is not None and limits.idle.problem:
            yield Note(f"resources.min_gpu_utilization is not watched: {limits.idle.problem}", "warning")
        for event in run(made, training, folder, limits, beat, began):
            _log(folder, event)
            if isinstance(event, Ended):  # nothing is written after the manifest: it names every byte
                write_status(folder, status="complete", accuracy=event.accuracy)
                reporting.seal(made, folder)
            yield event
    except Exception as error:
        known = isinstance(error, JobError)
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        why = str(error) if known else f"{type(error).__name__}: {error}"
        with contextlib.suppress(JobError, OSError):  # a full disk may refuse even this; the exit code still tells
            _log(folder, Note(why, "warning"))
            write_status(folder, status=status, reason=why)
            reporting.partial(made, folder, training, began, status, why)
        raise
    finally:
        if training is not None:
            training.saver.settle()  # before the folder is unlocked


def new_session(made: Plan, folder: RunFolder, ranks: Ranks = ALONE) -> Session:
    ready = made.ready
    assert ready is not None
    ranks.tell(Brief(ready.loader.settings, ready.network.device, ready.splits.sha256))
    ranks.settle(None)
    return Session(made.loaded.spec, ready.splits, ready.network, ready.loader.settings, folder, ranks)


def run(
    made: Plan, training: Session, folder: RunFolder, limits: Limits, beat: Heartbeat, began: float
) -> Iterator[Event]:
    """Trains what was planned, then evaluates and reports."""
    yield from planning.describe(made)
    if made.loaded.spec.checkpoint.resume == "auto":
        yield from resuming.restore(training, folder)
    training.tell_others()
    with _timed(made, "train"), training.gpu_watch or contextlib.nullcontext():
        yield from loop.train(training, limits, beat)
    beat.phase("evaluate")

    def poll() -> None:  # what was trained is saved: nothing is lost by leaving
        beat.beat()
        limits.poll()

    with _timed(made, "evaluate"):
        outcome = training.finish(poll)
    test = outcome.test
    classes = tuple((name, result.accuracy) for name, result in test.per_class.items())
    yield Result(test.accuracy, test.interval, test.count, test.loss, classes, outcome.weights)
    if outcome.warning is not None:
        yield Note(outcome.warning, "warning")
    beat.phase("report")
    reporting.complete(made, folder, training, outcome, began)
    yield Ended(folder.id, test.accuracy, time.time() - began, str(folder.report("html")))


def open_folder(spec: Spec, run_id: str | None) -> RunFolder:
    """The run's folder: in the store, or where it is worked on; the id is NAME-DATE-RANDOM unless given."""
    run_id = new_id(spec) if run_id is None else run_id
    if run_id in (".", "..") or "/" in run_id or run_id != run_id.strip() or not run_id:
        raise UsageError("--run-id", f"{run_id!r} cannot name a folder", "use letters, digits, dots and dashes")
    folder = RunFolder(working_folder(spec) / run_id)
    folder.make()
    return folder


def _limits(
    made: Plan,
    folder: RunFolder,
    stop: StopFlag,
    end: tuple[float, str] | None,
    stop_after: int | None,
    ranks: Ranks,
) -> Limits:
    assert made.ready is not None
    device, wanted = made.ready.network.device, made.loaded.spec.resources
    idle = None
    if wanted.min_gpu_utilization is not None and device.kind == "cuda":
        idle = IdleGpu.through_nvml(wanted.min_gpu_utilization, wanted.utilization_window, device.uuid())
    return Limits(folder.id, stop, end, stop_after, idle, ranks.decide)


def new_id(spec: Spec) -> str:
    return f"{spec.name}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"


def is_complete(folder: RunFolder) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(folder.manifest.read_text(encoding="utf-8"))["status"] == "complete")
    return False


def _close_locks() -> None:
    while LOCKS:
        os.close(LOCKS.pop())


os.register_at_fork(after_in_child=_close_locks)


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Two runs never write into one folder. The lock goes with the process, however it ends.

    Worker processes are forked and would hold it for seconds after a kill: they close their copy first.
    """
    with disk_errors(folder.root / ".lock"), seized(folder) as lock:
        if lock is None:
            cure = "wait for it, or use another --run-id"
            raise UsageError(str(folder.root), "another process is running this id", cure)
        LOCKS.add(lock)
        try:
            yield
        finally:
            LOCKS.remove(lock)


def _log(folder: RunFolder, event: Event) -> None:
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    with disk_errors(folder.log), folder.log.open("a", encoding="utf-8") as log:
        log.writelines(f"{stamp} {line}\n" for line in describe(event))


@contextlib.contextmanager
def _timed(made: Plan, phase: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        made.seconds[phase] = time.monotonic() - began
