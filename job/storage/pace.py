"""Gives a request up whose body moves too slowly: a line that trickles is never silent, so no timeout ends it."""

import errno
import time
from collections.abc import Iterator
from typing import Any

SLOWEST = 10_000  # bytes a second
PIECE = 2**16  # bytes


class Pace:
    """Told of every piece that moved. Raises TimeoutError where less than SLOWEST came through for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._moved, self._since = seconds, 0, time.monotonic()

    def moved(self, count: int) -> None:
        self._moved += count
        elapsed = time.monotonic() - self._since
        if elapsed > self._seconds:
            if self._moved < SLOWEST * elapsed:
                raise TimeoutError(errno.ETIMEDOUT, f"the line is slower than {SLOWEST / 1000:.0f} kB/s")
            self._moved, self._since = 0, time.monotonic()


class PacedBody:
    """A body that is sent, at this pace at least; everything but `read` is the body's own."""

    def __init__(self, body: Any, seconds: float) -> None:
        self._body, self._pace = body, Pace(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, count: int = -1) -> Any:
        """Asked for a piece when the one before has gone out."""
        piece = self._body.read(count)
        if len(piece):
            self._pace.moved(len(piece))
        return piece

    def __iter__(self) -> Iterator[Any]:
        """The SDK sends a body again after a 401 and forgets its length; it is then asked for piece by piece."""
        while len(piece := self.read(PIECE)):
            yield piece
