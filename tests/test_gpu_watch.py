"""The GPU's figures, from a library that says what it is told. No test waits on the clock."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from job.gpu_watch import GpuFigures, GpuWatch


class Library(ModuleType):
    """NVML with one board."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.asked: list[str] = []
        self.readings = iter([(50, 10, 100_000, 40), (100, 30, 300_000, 60), (0, 20, 200_000, 50)])
        self.enough = threading.Event()

    def nvmlInit(self) -> None:  # noqa: N802 - their names
        self.asked.append("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.asked.append("shutdown")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return str(index)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self.asked.append(handle)
        self.now = next(self.readings, None)
        if self.now is None:
            self.enough.set()
            raise RuntimeError("the tape is at its end")
        return SimpleNamespace(gpu=self.now[0])

    def nvmlDeviceGetMemoryInfo(self, _: str) -> SimpleNamespace:  # noqa: N802
        assert self.now is not None
        return SimpleNamespace(used=self.now[1])

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:  # noqa: N802
        assert self.now is not None
        return self.now[2]

    def nvmlDeviceGetTemperature(self, _: str, __: int) -> int:  # noqa: N802
        assert self.now is not None
        return self.now[3]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


def test_means_and_maxima_over_the_run(library: Library) -> None:
    with GpuWatch("GPU-1", every=0.0001) as watch:
        assert library.enough.wait(30)
    assert watch.problem == ""
    assert watch.figures() == GpuFigures(3, utilization=0.5, memory=30, power=200.0, temperature=60.0)
    assert library.asked[:2] == ["init", "GPU-1"]
    assert library.asked[-1] == "shutdown"


def test_a_sensor_that_is_not_there_is_left_out(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Library, "nvmlDeviceGetPowerUsage")
    watch = GpuWatch()
    watch.look()
    assert watch.figures() == GpuFigures(1, utilization=0.5, memory=10, power=None, temperature=40.0)


def test_without_a_driver_it_is_one_line(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Library) -> None:
        raise RuntimeError("Driver Not Loaded")

    monkeypatch.setattr(Library, "nvmlInit", broken)
    with GpuWatch() as watch:
        pass
    assert watch.problem == "no figures of a GPU: Driver Not Loaded"
    assert watch.figures() is None


def test_without_the_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuWatch() as watch:
        pass
    assert watch.problem.startswith("no figures of a GPU: ")
