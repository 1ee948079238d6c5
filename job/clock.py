"""Where an epoch's time goes, measured without making the device wait.

    for batch in clock.each("wait", batches): with clock("compute"): …
    clock.take() → {"wait": 0.4, "copy": 0.0, "prepare": 1.1, "compute": 8.2, "evaluate": 0.9, "save": 0.1, …}

On CPU each phase is timed, and what runs inside another phase is taken out of that one. On CUDA work is queued and
done later, so the device keeps the time itself: an event before and after, in one of every few steps, read when all is
done. There "wait" is what is left: the device had nothing to do.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from job.device import Device

PHASES = ("wait", "copy", "prepare", "compute", "evaluate", "save", "other")
QUEUED = ("copy", "prepare", "compute")  # on CUDA these are timed by the device
SAMPLED = 4  # one in so many; an event costs some µs of the host's time
Item = TypeVar("Item")


class Clock:
    """Seconds by phase since the last `take`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.running: list[str] = []
        self.begun: list[object] = []  # events of the phases under way on CUDA; None where none is taken
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = dict.fromkeys(QUEUED, 0)
        self.events: dict[str, list[tuple[object, object]]] = {phase: [] for phase in QUEUED}
        self.phase = ""
        self.began = self.turned = time.perf_counter()

    def __call__(self, phase: str) -> "Clock":
        """`with clock("compute"):` counts what is inside as that phase."""
        self.phase = phase
        return self

    def __enter__(self) -> None:
        self._turn()
        self.running.append(self.phase)
        if self.device.kind == "cuda":
            self.begun.append(self._sample(self.phase))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn()
        phase = self.running.pop()
        if self.device.kind == "cuda" and (begin := self.begun.pop()) is not None:
            self.events[phase].append((begin, self.device.mark()))

    def each(self, phase: str, items: Iterator[Item]) -> Iterator[Item]:
        """`items`, with the time until the next one is there counted as `phase`."""
        while True:
            with self(phase):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def take(self) -> dict[str, float]:
        """The split of the time since the last call; it adds up to that time. Waits for the device."""
        self.device.wait()
        self._turn()
        whole = self.turned - self.began
        found = {phase: self.seconds[phase] for phase in PHASES}
        if self.device.kind == "cuda":
            found |= {phase: self._queued(phase) for phase in QUEUED}
            # copies run beside the rest; what the host did meanwhile does not count either
            busy = found["prepare"] + found["compute"] + found["evaluate"] + found["save"]
            found["wait"], found["other"] = max(0.0, whole - busy), 0.0
        else:
            found["other"] = whole - sum(value for phase, value in found.items() if phase != "other")
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = dict.fromkeys(QUEUED, 0)
        self.events = {phase: [] for phase in QUEUED}
        self.began = self.turned
        return found

    def _turn(self) -> None:
        """Books the time since the last turn on the phase that runs."""
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.turned
        self.turned = now

    def _sample(self, phase: str) -> object:
        if phase not in QUEUED:
            return None
        self.counts[phase] += 1
        return self.device.mark() if self.counts[phase] % SAMPLED == 1 else None

    def _queued(self, phase: str) -> float:
        """Seconds of all its stretches, from those sampled."""
        events = self.events[phase]
        sampled = sum(self.device.between(begin, end) for begin, end in events)
        return sampled * self.counts[phase] / len(events) if events else 0.0
