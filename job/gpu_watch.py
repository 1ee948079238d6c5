"""The GPU's own figures while a run trains: utilisation, memory, power and temperature, once a second through NVML.

A thread reads them beside the run. Without an NVIDIA GPU, its driver or the library there is nothing to watch, and
`problem` says why in one line. A figure the board does not give is left out.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

EVERY = 1.0  # seconds between two looks; NVML itself averages utilisation over about as long


@dataclass(frozen=True)
class GpuFigures:
    """Over the time watched; None where the board does not tell."""

    samples: int
    utilization: float | None  # mean share of the time in which a kernel ran, 0–1
    memory: int | None  # most bytes in use on the board, by all processes
    power: float | None  # mean W
    temperature: float | None  # highest °C


class GpuWatch:
    """`with GpuWatch(uuid) as watch: …; watch.figures()`"""

    def __init__(self, uuid: str | None = None, every: float = EVERY) -> None:
        self.every, self.problem = every, ""
        self.seen: list[dict[str, float]] = []
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.library: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self.library = pynvml
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception as error:  # no library, no driver, no rights, no such board: nothing to watch
            self.problem = f"no figures of a GPU: {error}"

    def __enter__(self) -> "GpuWatch":
        if not self.problem:
            self.thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        if self.thread is not None:
            self.thread.join()
        if self.library is not None:
            with contextlib.suppress(Exception):
                self.library.nvmlShutdown()

    def figures(self) -> GpuFigures | None:
        """What was seen so far; None when nothing was."""
        seen = list(self.seen)
        if not seen:
            return None

        def over(name: str, sum_up: Callable[[list[float]], float]) -> float | None:
            values = [sample[name] for sample in seen if name in sample]
            return sum_up(values) if values else None

        memory = over("memory", max)
        return GpuFigures(
            samples=len(seen),
            utilization=over("utilization", _mean),
            memory=None if memory is None else int(memory),
            power=over("power", _mean),
            temperature=over("temperature", max),
        )

    def look(self) -> None:
        """Takes one sample."""
        library, handle = self.library, self.handle
        readings: dict[str, Callable[[], float]] = {
            "utilization": lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "memory": lambda: float(library.nvmlDeviceGetMemoryInfo(handle).used),
            "power": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000,  # mW
            "temperature": lambda: float(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        }
        sample = {}
        for name, reading in readings.items():
            with contextlib.suppress(Exception):  # not every board has every sensor
                sample[name] = reading()
        if sample:
            self.seen.append(sample)

    def _run(self) -> None:
        self.look()
        while not self.stopping.wait(self.every):
            self.look()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
