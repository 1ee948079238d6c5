"""The job as one page: plan → train → evaluate → report, into the run's folder.

    for event in job(load("spec.yaml"), run_id=None, stop=StopFlag()): show(event)

Whatever ends it, the folder then says so: status.json complete, interrupted or failed, and the last checkpoint whole.
"""

import contextlib
import fcntl
import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from job import planning, reporting
from job.delivery import Delivery, delivered, finished, target, working_folder
from job.errors import Interrupted, JobError, UsageError
from job.events import Begun, Ended, EpochEnded, Event, Note, Progress, Result, Saved, describe
from job.interrupt import StopFlag
from job.planning import Plan
from job.runfolder import RunFolder, append_line, disk_errors, read_lines, write_status, write_text
from job.spec.load import Loaded, difference, dump, parse, spec_hash
from job.spec.schema import Spec
from job.training import checkpoint
from job.training.session import Session
from job.training.trainer import StepDone

HEARTBEAT = 5.0  # seconds between two writes of status.json
PROGRESS_EVERY = 0.25  # seconds between two Progress events
MAY_CHANGE = ("name", "loader.", "checkpoint.", "store.", "resources.", "train.log_every", "train.epochs")


def job(loaded: Loaded, run_id: str | None, stop: StopFlag, began: float | None = None) -> Iterator[Event]:
    """The whole job. Ends with Ended; raises JobError for what the user can act on.

    `began` is when the process did, seconds since 1970, so that starting counts as part of the run.
    """
    began = time.time() if began is None else began
    folder = open_folder(loaded.spec, run_id)
    uri = target(loaded.spec, folder.id)
    with locked(folder):
        work = _work(loaded, folder, stop, began)
        if uri is None:
            yield from work
            return
        with Delivery(folder, uri, loaded.spec) as upload:
            yield from delivered(upload, work, loaded, run_id is None, stop, lambda event: _log(folder, event))


def upload(folder: RunFolder) -> Iterator[Event]:
    """Brings what a run has left behind into its store, whatever ended it. UploadError when that fails again."""
    spec = parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec)).spec
    uri = target(spec, folder.id)
    if uri is None:
        raise UsageError(str(folder.root), "this run's store is the folder itself", "there is nothing to upload")
    with locked(folder), Delivery(folder, uri, spec) as delivery:
        yield from delivery.flush(spec.store.flush_timeout, StopFlag(), patient=True)
        yield from finished(delivery)


def _work(loaded: Loaded, folder: RunFolder, stop: StopFlag, began: float) -> Iterator[Event]:
    """All of it but the upload."""
    if is_complete(folder):
        yield Note(f"Run {folder.id} is complete: {folder.report('html')}")
        return
    resumed = begin(folder, loaded)
    yield Begun(folder.id, str(folder.root), resumed)
    made, training = None, None
    try:
        write_status(folder, status="running", phase="data")
        made = planning.plan(loaded, fetch=True, began=began)
        training = new_session(made, folder)
        with stop.deferred():
            for event in run(made, training, folder, stop, began):
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


def new_session(made: Plan, folder: RunFolder) -> Session:
    ready = made.ready
    assert ready is not None
    return Session(made.loaded.spec, ready.splits, ready.network, ready.loader.settings, folder)


def run(made: Plan, training: Session, folder: RunFolder, stop: StopFlag, began: float) -> Iterator[Event]:
    """Trains what was planned, then evaluates and reports."""
    yield from planning.describe(made)
    if made.loaded.spec.checkpoint.resume == "auto":
        yield from _resume(training, folder)
    limit = None if made.limit is None else (began + made.limit[0], made.limit[1])
    with _timed(made, "train"):
        yield from _train(training, made, folder, stop, limit)
    write_status(folder, status="running", phase="evaluate")
    with _timed(made, "evaluate"):
        outcome = training.finish(lambda: _leave_if_asked(stop, limit, folder))
    test = outcome.test
    classes = tuple((name, result.accuracy) for name, result in test.per_class.items())
    yield Result(test.accuracy, test.interval, test.count, test.loss, classes, outcome.weights)
    if outcome.warning is not None:
        yield Note(outcome.warning, "warning")
    write_status(folder, status="running", phase="report")
    reporting.complete(made, folder, training, outcome, began)
    yield Ended(folder.id, test.accuracy, time.time() - began, str(folder.report("html")))


def _train(
    training: Session, made: Plan, folder: RunFolder, stop: StopFlag, limit: tuple[float, str] | None
) -> Iterator[Event]:
    spec = made.loaded.spec
    pace = _Pace(folder, spec.train.epochs, len(training.batches), training.batches.count)
    for done in training.steps():
        if isinstance(done, StepDone):
            if loss := training.watch(done):
                append_line(folder.metrics, {"kind": "loss", "epoch": loss.epoch, "step": loss.step, "loss": loss.loss})
                yield loss
            if progress := pace.step(done):
                yield progress
            if done.whole and (reason := _reason_to_stop(stop, limit)):
                path = training.save()
                yield Saved(str(path), done.epoch + 1, done.step)
                raise _interrupted(folder, reason)
            continue
        ended = training.epoch_ended(done)
        append_line(folder.metrics, _metrics(ended))
        yield ended
        last = done.epoch + 1 == spec.train.epochs or training.why_stop is not None
        if last or (done.epoch + 1) % spec.checkpoint.every == 0:
            path = training.save()
            yield Saved(str(path), done.epoch + 1, 0)
        if training.why_stop is not None:
            yield Note(f"Stopping after epoch {done.epoch + 1}: {training.why_stop}")
            return
        if reason := _reason_to_stop(stop, limit):
            if not last:
                training.save()
            raise _interrupted(folder, reason)


def _resume(training: Session, folder: RunFolder) -> Iterator[Event]:
    restored = checkpoint.newest(folder)
    if restored is None:
        return
    for line in restored.refused:
        yield Note(f"Checkpoint passed over: {line}", "warning")
    training.restore(restored.state, restored.path)
    kept = training.recorded(read_lines(folder.metrics))
    write_text(folder.metrics, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    yield Note(f"Resumed from {restored.path.name}: epoch {training.state.epoch + 1}, step {training.state.step}")


def open_folder(spec: Spec, run_id: str | None) -> RunFolder:
    """The run's folder: in the store, or where it is worked on; the id is NAME-DATE-RANDOM unless given."""
    if run_id is None:
        run_id = f"{spec.name}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    if run_id in (".", "..") or "/" in run_id or run_id != run_id.strip() or not run_id:
        raise UsageError("--run-id", f"{run_id!r} cannot name a folder", "use letters, digits, dots and dashes")
    folder = RunFolder(working_folder(spec) / run_id)
    folder.make()
    return folder


def is_complete(folder: RunFolder) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(folder.manifest.read_text(encoding="utf-8"))["status"] == "complete")
    return False


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Two runs never write into one folder. The lock goes with the process, however it ends."""
    path = folder.root / ".lock"
    with disk_errors(path), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                str(folder.root), "another process is running this id", "wait for it, or use another --run-id"
            ) from None
        yield


def begin(folder: RunFolder, loaded: Loaded) -> bool:
    """Writes spec.yaml, or holds the one that is there against the spec; True where the run goes on."""
    if not folder.spec.exists():
        write_text(folder.spec, f"# Every key as it ran; spec hash {spec_hash(loaded.spec)}\n{dump(loaded.spec)}")
        return False
    before = parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec)).spec
    changes = [row for row in difference(before, loaded.spec) if not row[0].startswith(MAY_CHANGE)]
    if changes:
        shown = ", ".join(f"{key} {old} → {new}" for key, old, new in changes)
        cure = "put these keys back, or use another --run-id"
        raise UsageError(str(folder.root), f"this run was begun with another spec: {shown}", cure)
    return (folder.checkpoints / checkpoint.POINTER).exists()


class _Pace:
    """Images/s, time left, and the heartbeat: often enough to be seen, seldom enough to cost nothing."""

    def __init__(self, folder: RunFolder, epochs: int, steps: int, images: int) -> None:
        self.folder, self.epochs, self.steps, self.images = folder, epochs, steps, images
        self.began = time.monotonic()
        self.seen = 0
        self.progress_due = self.heartbeat_due = 0.0

    def step(self, done: StepDone) -> Progress | None:
        self.seen += done.images
        now = time.monotonic()
        if now < self.progress_due:
            return None
        self.progress_due = now + PROGRESS_EVERY
        speed = self.seen / max(now - self.began, 1e-9)
        left = self.images * (self.epochs - done.epoch - done.step / self.steps) / speed
        progress = Progress(done.epoch + 1, self.epochs, done.step, self.steps, speed, left)
        if now >= self.heartbeat_due:
            self.heartbeat_due = now + HEARTBEAT
            write_status(
                self.folder,
                status="running",
                phase="train",
                epoch=done.epoch + 1,
                step=done.step,
                images_per_second=round(speed, 1),
                seconds_left=round(left, 1),
            )
        return progress


def _reason_to_stop(stop: StopFlag, limit: tuple[float, str] | None) -> str | None:
    if stop.reason is not None:
        return stop.reason
    return f"{limit[1]} is reached" if limit is not None and time.time() >= limit[0] else None


def _interrupted(folder: RunFolder, reason: str) -> Interrupted:
    return Interrupted(folder.id, f"stopped, {reason}", f"go on with --run-id {folder.id}")


def _leave_if_asked(stop: StopFlag, limit: tuple[float, str] | None, folder: RunFolder) -> None:
    """During the final evaluation: its checkpoint is written, so nothing is lost by leaving."""
    if reason := _reason_to_stop(stop, limit):
        raise _interrupted(folder, reason)


def _metrics(ended: EpochEnded) -> dict[str, object]:
    return {
        "kind": "epoch",
        "epoch": ended.epoch,
        "train_loss": ended.train_loss,
        "lr": ended.lr,
        "seconds": ended.seconds,
        "images_per_second": ended.images_per_second,
        "evaluated_on": ended.evaluated_on,
        "loss": ended.loss,
        "accuracy": ended.accuracy,
    }


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
