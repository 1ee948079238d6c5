"""The training as the run sees it: from the trainer's steps to events, records, checkpoints and a reason to leave."""

import itertools
import time
from collections.abc import Callable, Generator, Iterator

from job.errors import Interrupted, JobError
from job.events import EpochEnded, Event, Note, Saved
from job.heartbeat import Heartbeat, Pace
from job.limits import Limits
from job.runfolder import append_line
from job.training.saving import Written
from job.training.session import Session
from job.training.trainer import EpochDone, StepDone


def train(training: Session, limits: Limits, beat: Heartbeat) -> Iterator[Event]:
    """To the last epoch, or until something ends it: then everything is saved before that is raised."""
    if training.selection.why_stop is not None:
        return  # it had stopped early before it was interrupted
    spec = training.spec
    due = Due(spec.checkpoint.every, training.total)
    pace = Pace(beat, spec.train.epochs, len(training.batches), training.batches.count)
    beat.phase("train")
    training.may_leave(limits.waiting)
    steps, whole = _steps(training), True
    with limits.stop.at_once():  # the first step compiles
        first = next(steps, None)
    for done in itertools.chain([] if first is None else [first], steps):
        if isinstance(done, Interrupted):
            if whole:
                yield from save_and_leave(training, done)
            raise done
        if isinstance(done, StepDone):
            whole = done.whole
            yield from _step(done, training, pace, limits, due)
            continue
        ended = yield from _end_epoch(done, training, limits, beat)
        last = ended.epoch == spec.train.epochs or training.why_stop is not None
        if last or due.after_epoch(ended.epoch):
            yield from saved(training.save())
        if training.why_stop is not None:
            yield Note(f"Stopping after epoch {ended.epoch}: {training.why_stop}")
            break
        if (leave := limits.leave()) is not None:
            yield from save_and_leave(training, leave)
    yield from saved(training.flush())


def _steps(training: Session) -> Iterator[StepDone | EpochDone | Interrupted]:
    """The steps; last the wish that ended waiting for the images of one, after which the state stands where it did."""
    try:
        yield from training.steps()
    except Interrupted as leave:
        yield leave


def _step(done: StepDone, training: Session, pace: Pace, limits: Limits, due: "Due") -> Iterator[Event]:
    if loss := training.watch(done):
        line = {"kind": "loss", "epoch": loss.epoch, "step": loss.step, "loss": loss.loss}
        append_line(training.folder.metrics, line)
        yield loss
    yield from saved(training.saved_meanwhile())
    if progress := pace.step(done.epoch, done.step, done.images):
        yield progress
    limits.step(done.waited)
    if not done.whole:
        return
    if (leave := limits.leave()) is not None:
        yield from save_and_leave(training, leave)
    if training.agree(due.after_step(training.total)):
        yield from saved(training.save())


def _end_epoch(
    done: EpochDone, training: Session, limits: Limits, beat: Heartbeat
) -> Generator[Event, None, EpochEnded]:
    def poll() -> None:
        beat.beat()
        limits.poll()

    beat.beat(phase="evaluate")
    try:
        ended = training.epoch_ended(done, poll)
    except Interrupted as leave:
        yield from save_and_leave(training, leave, unevaluated=done)
        raise
    beat.beat(phase="train")
    append_line(training.folder.metrics, metrics(ended))
    yield ended
    return ended


def save_and_leave(training: Session, leave: JobError, unevaluated: EpochDone | None = None) -> Iterator[Event]:
    yield from saved(training.save(unevaluated))
    yield from saved(training.flush())
    raise leave


def saved(written: list[Written]) -> Iterator[Event]:
    for one in written:
        epochs = one.place.epoch + (one.place.step > 0)  # the one it stands in, or the last one done
        yield Saved(str(one.path), epochs, one.place.step)


class Due:
    """checkpoint.every: epochs (a number), '500 steps', or seconds. Counted from the last time that it was due."""

    def __init__(self, every: int | str | float, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.epochs = every if isinstance(every, int) else None
        self.steps = int(every.split()[0]) if isinstance(every, str) else None
        self.seconds = every if isinstance(every, float) else None
        self.clock, self.total, self.began = clock, total, clock()

    def after_epoch(self, epochs: int) -> bool:
        """`epochs` are done."""
        return self.epochs is not None and epochs % self.epochs == 0

    def after_step(self, total: int) -> bool:
        """`total` steps are done since the beginning of the run."""
        before, self.total = self.total, total
        if self.steps is not None:
            return total // self.steps > before // self.steps
        if self.seconds is None or self.clock() - self.began < self.seconds:
            return False
        self.began = self.clock()
        return True


def metrics(ended: EpochEnded) -> dict[str, object]:
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
        "split_seconds": ended.split_seconds,
    }
