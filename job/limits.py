"""What may end a run before its last epoch, asked at every step: a wish from outside, time, money, an idle GPU.

if (leave := limits.leave()) is not None: save, then raise leave
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from job.errors import Interrupted, JobError, UsageError
from job.gpu_watch import GpuWatch
from job.interrupt import Leave, StopFlag

SAMPLE_EVERY = 1.0  # seconds between two looks at the GPU
MUCH = 0.2  # share of the time spent on waiting for images that makes loading the one to blame


def deadline(limit: tuple[float, str] | None, began: float, environ: Mapping[str, str]) -> tuple[float, str] | None:
    """When the run has to stop (Unix seconds), and what says so; None without an end.

    `limit` is seconds and the key that sets them. They count from `began`, but from the launch on an instance, which
    costs money while it boots: it tells of it in $JOB_LAUNCHED, and in $JOB_DEADLINE of its own end.
    """
    launched, end = (_moment(environ, name) for name in ("JOB_LAUNCHED", "JOB_DEADLINE"))
    found = [] if limit is None else [((began if launched is None else launched) + limit[0], limit[1])]
    found += [] if end is None else [(end, "the instance's time limit")]
    return min(found, default=None)


def _moment(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(name, f"{text!r} is no time", "give Unix seconds, as date +%s prints them") from None


class Limits:
    """`deadline` is a Unix time and the key that set it; `after` a number of steps of this process."""

    def __init__(
        self,
        run_id: str,
        stop: StopFlag,
        deadline: tuple[float, str] | None = None,
        after: int | None = None,
        idle: "IdleGpu | None" = None,
        decide: Callable[[bool], bool] = bool,
    ) -> None:
        """`decide` makes of this process's wish that of rank 0, where several train together."""
        self.run_id, self.stop, self.deadline, self.left, self.idle = run_id, stop, deadline, after, idle
        self.decide = decide

    def step(self, waited: float) -> None:
        """One step is done, of which `waited` seconds were spent waiting for its images."""
        if self.left is not None:
            self.left -= 1
        if self.idle is not None:
            self.idle.step(waited)

    def leave(self) -> JobError | None:
        """Why to leave after this step, as what is to be raised once everything is saved."""
        why = self._why()
        if not self.decide(why is not None):
            return None
        return self._interrupted("as rank 0 is") if why is None else why

    def _why(self) -> JobError | None:
        if (wish := self._wish()) is not None:
            return self._interrupted(wish)
        if self.left is not None and self.left <= 0:
            return self._interrupted("--stop-after is reached")
        return None if self.idle is None else self.idle.leave(self.run_id)

    def poll(self) -> None:
        """In the middle of an evaluation, where only what cannot wait counts: Interrupted."""
        wish = self._wish()
        if self.decide(wish is not None):
            raise self._interrupted("as rank 0 is" if wish is None else wish)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for images, which may come in minutes or never: a wish ends it as Interrupted, here alone."""
        try:
            with self.stop.raising():
                yield
        except Leave:
            assert self.stop.why is not None
            raise self._interrupted(self.stop.why) from None

    def _wish(self) -> str | None:
        if self.stop.reason is not None:
            return self.stop.reason
        if self.deadline is not None and time.time() >= self.deadline[0]:
            return f"{self.deadline[1]} is reached"
        return None

    def _interrupted(self, reason: str) -> Interrupted:
        return Interrupted(self.run_id, f"stopped, {reason}", f"go on with --run-id {self.run_id}")


class IdleGpu:
    """resources.min_gpu_utilization: the mean of the GPU's busy share over a window of training time.

    It fails the run rather than interrupting it: whoever resumes interrupted runs by themselves would pay for the
    same idle GPU again.
    """

    def __init__(
        self, least: float, window: float, busy: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.least, self.window, self.busy, self.clock = least, window, busy, clock
        self.problem = ""  # why nothing is watched
        self.samples: deque[tuple[float, float, float]] = deque()  # time, busy share, seconds waited since the last
        self.began = self.due = clock()
        self.waited = 0.0

    @classmethod
    def through_nvml(cls, least: float, window: float, uuid: str | None) -> "IdleGpu":
        """The board's own figure. Where it gives none, `problem` says so and nothing is ended."""
        board = GpuWatch(uuid)

        def busy() -> float:
            if board.problem:
                return 1.0
            board.look()
            return board.seen.pop().get("utilization", 1.0) if board.seen else 1.0

        watch = cls(least, window, busy)
        watch.problem = board.problem
        return watch

    def step(self, waited: float) -> None:
        self.waited += waited
        now = self.clock()
        if now < self.due:
            return
        self.due = now + SAMPLE_EVERY
        self.samples.append((now, self.busy(), self.waited))
        self.waited = 0.0
        while self.samples[0][0] < now - self.window:
            self.samples.popleft()

    def leave(self, run_id: str) -> JobError | None:
        """Judges once the window has passed; evaluations and pauses of the training are no samples."""
        if not self.samples or self.samples[-1][0] - self.began < self.window:
            return None
        mean = sum(busy for _, busy, _ in self.samples) / len(self.samples)
        if mean >= self.least:
            return None
        waited = sum(seconds for _, _, seconds in self.samples) / self.window
        what = (
            f"the GPU was busy {mean:.0%} of the last {self.window:g} s, less than resources.min_gpu_utilization "
            f"{self.least:.0%}; {min(waited, 1):.0%} of that time the training waited for images"
        )
        cure = "raise loader.num_workers" if waited > MUCH else "raise loader.batch_size"
        return JobError(run_id, what, f"{cure}, or take a smaller shape; go on with --run-id {run_id}")
