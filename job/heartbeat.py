"""status.json: what a run is doing, said again every few seconds, so that silence means that it hangs.

Where the work comes in steps, each step beats. Reading or downloading data has no steps: `alive` beats beside it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from job.events import Progress
from job.runfolder import RunFolder, write_status

EVERY = 5.0  # seconds between two writes of status.json
PROGRESS_EVERY = 0.25  # seconds between two Progress events


class Heartbeat:
    """The current phase and what is known of it: often enough to be seen, seldom enough to cost nothing."""

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.clock = folder, clock
        self.facts: dict[str, Any] = {}
        self.due = 0.0

    def phase(self, name: str) -> None:
        """Another phase begins; epoch, step and speed stay as they were last, the time left is not known."""
        self.facts = {**self.facts, "phase": name, "phase_began": time.time()}
        self.facts.pop("seconds_left", None)
        self.due = self.clock()
        self.beat()

    def beat(self, **facts: Any) -> None:
        """Still there; writes if it is time."""
        self.facts |= facts
        now = self.clock()
        if now >= self.due:
            self.due = now + EVERY
            write_status(self.folder, status="running", **self.facts)

    @contextlib.contextmanager
    def alive(self, name: str) -> Iterator[None]:
        """A phase without steps: beats by itself while it lasts."""
        self.phase(name)
        ended = threading.Event()

        def beats() -> None:
            while not ended.wait(EVERY):
                with contextlib.suppress(Exception):  # a full disk is told where something of worth is written
                    self.beat()

        thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Pace:
    """Images/s and time left of a training, from its steps."""

    def __init__(self, beat: Heartbeat, epochs: int, steps: int, images: int) -> None:
        self.heartbeat, self.epochs, self.steps, self.images = beat, epochs, steps, images
        self.began = beat.clock()
        self.seen, self.due = 0, 0.0

    def step(self, epoch: int, step: int, images: int) -> Progress | None:
        """`epoch` from 0, `step` from 1. The progress if it is time to show it again."""
        self.seen += images
        now = self.heartbeat.clock()
        if now < self.due:
            return None
        self.due = now + PROGRESS_EVERY
        speed = self.seen / max(now - self.began, 1e-9)
        left = self.images * (self.epochs - epoch - step / self.steps) / speed
        progress = Progress(epoch + 1, self.epochs, step, self.steps, speed, left)
        self.heartbeat.beat(epoch=epoch + 1, step=step, images_per_second=round(speed, 1), seconds_left=round(left, 1))
        return progress
