"""A wish to stop, from outside: SIGTERM and SIGINT.

Before training there is nothing to lose and the signal ends the run where it is. While training, `deferred()`, it
sets a flag that the run polls where its state is whole. A second signal ends the process at once; what was saved
before stays as it is.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from job.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """`reason` is None until a stop is wished for."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.waits = False

    def install(self) -> None:
        """Takes over the signals of this process. Only the main thread may do so."""
        for number in SIGNALS:
            signal.signal(number, self._received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While this lasts a signal only sets the flag."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(Interrupted.exit_code)  # asked twice: nothing that was written is touched any more
        self.reason = f"received {signal.Signals(number).name}"
        if not self.waits:
            raise Interrupted("run", f"{self.reason} before training began", "nothing is lost; start it again")
