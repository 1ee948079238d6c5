"""A wish to stop, from outside: SIGTERM and SIGINT. A preempted instance sends SIGTERM, too.

    with StopFlag(grace=90).installed() as stop: …

The first signal sets a flag that the run polls where its state is whole, and starts a clock: when `grace` is over,
the process ends wherever it is. `at_once()` surrounds what has nothing to lose, such as reading data or compiling:
there the signal ends it on the spot. A second signal ends the process at once. Whatever was saved before stays.
`ends_at()` names a limit of time, which ends nothing but what may end on the spot: the rest asks the clock itself.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Self

from job.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 90.0  # seconds
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Leave(BaseException):
    """The signal where nothing can be lost. No `except Exception` on its way takes it for a failure."""


class StopFlag:
    """`reason` is None until a stop is wished for."""

    def __init__(self, grace: float = GRACE) -> None:
        self.reason: str | None = None
        self.grace = grace
        self.at: float | None = None  # when the wish came
        self.raises = False
        self.end = ""  # what limits the time
        self.late = False  # it is over
        self.process = os.getpid()
        self.wished, self.over = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def installed(self) -> Iterator[Self]:
        """Takes over the signals of this process meanwhile. Only the main thread may do so."""
        before = {number: signal.signal(number, self._received) for number in SIGNALS}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._time_is_up)
        watch = threading.Thread(target=self._watch, name="grace", daemon=True)
        watch.start()
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.over.set()
            self.wished.set()
            watch.join()

    def ends_at(self, moment: float, why: str) -> None:
        """Has a `raising` region left from this Unix time on, if the signals are taken over."""
        self.end = why
        if signal.getsignal(signal.SIGALRM) == self._time_is_up:
            signal.setitimer(signal.ITIMER_REAL, max(moment - time.time(), 1e-6))

    @property
    def why(self) -> str | None:
        """What ends a `raising` region."""
        return f"{self.end} is reached" if self.reason is None and self.late else self.reason

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """While this lasts a wish raises Leave; so does one that came before. Nothing may be yielded inside."""
        before, self.raises = self.raises, True
        try:
            if self.why is not None:
                raise Leave
            yield
        finally:
            self.raises = before

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """The same, where nothing can be lost: Interrupted."""
        try:
            with self.raising():
                yield
        except Leave:
            cure = "nothing is lost; run the same id again"
            raise Interrupted("run", f"{self.why} where there was nothing to save", cure) from None

    def left(self) -> float | None:
        """Seconds until the process has to have left; None while nobody wishes it to."""
        return None if self.at is None else max(self.grace - (time.monotonic() - self.at), 0.0)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # Ctrl-C reaches the worker processes, too: they go on until the run has no more use for them
        if self.at is not None:
            os._exit(Interrupted.exit_code)  # asked twice: nothing that was written is touched any more
        self.reason, self.at = f"received {signal.Signals(number).name}", time.monotonic()
        self.wished.set()
        if self.raises:
            raise Leave

    def _time_is_up(self, _number: int, _frame: FrameType | None) -> None:
        self.late = True
        if self.raises and self.reason is None:
            raise Leave

    def _watch(self) -> None:
        self.wished.wait()
        if not self.over.wait(self.grace):
            sys.stderr.write(f"checkpoint.grace, {self.grace:g} s, is over: leaving without a new checkpoint\n")
            sys.stderr.flush()
            os._exit(Interrupted.exit_code)


def end_with_parent() -> None:
    """From here on the kernel kills this process when the one that started it is gone. On Linux; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
