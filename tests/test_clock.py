"""The split of an epoch's time, against a clock and a device that do as they are told."""

import time
from dataclasses import dataclass, field

import pytest

from job.clock import SAMPLED, Clock
from job.device import Device


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(time, "perf_counter", found)
    return found


@dataclass(frozen=True)
class Queue(Device):
    """A GPU: work takes its time there, while the host runs ahead."""

    state: dict[str, float] = field(default_factory=lambda: {"done": 0.0, "waits": 0, "marks": 0})

    def mark(self) -> object:
        self.state["marks"] += 1
        return self.state["done"]

    def between(self, begin: object, end: object) -> float:
        assert isinstance(begin, float)
        assert isinstance(end, float)
        return end - begin

    def wait(self) -> None:
        self.state["waits"] += 1


def cpu() -> Clock:
    return Clock(Device("cpu", "x", "fp32", False, False, 1))


def test_what_runs_inside_is_taken_out(hands: Hands) -> None:
    clock = cpu()
    with clock("wait"):
        hands.now += 1
        with clock("prepare"):
            hands.now += 2
        hands.now += 4
    hands.now += 8
    with clock("compute"):
        hands.now += 16
    found = clock.take()
    assert found == {"wait": 5, "copy": 0, "prepare": 2, "compute": 16, "evaluate": 0, "save": 0, "other": 8}
    assert sum(clock.take().values()) == 0


def test_each_times_the_next_and_not_the_use(hands: Hands) -> None:
    clock = cpu()

    def items() -> object:
        for number in range(3):
            hands.now += 1
            yield number

    for _ in clock.each("wait", items()):  # type: ignore[arg-type]
        hands.now += 10
    assert clock.take() == pytest.approx({**dict.fromkeys(clock.seconds, 0.0), "wait": 3, "other": 30})


def test_an_error_inside_leaves_the_phase(hands: Hands) -> None:
    clock = cpu()

    def broken() -> None:
        with clock("compute"):
            hands.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert clock.running == []
    assert clock.take()["compute"] == 1


def test_a_gpu_keeps_the_time_itself_and_is_waited_for_once(hands: Hands) -> None:
    device = Queue("cuda", "x", "fp32", False, False, 1)
    clock = Clock(device)
    for _ in range(2 * SAMPLED):
        with clock("compute"):
            device.state["done"] += 3.0
        hands.now += 5.0
    with clock("evaluate"):
        hands.now += 6.0
    found = clock.take()
    whole = 2 * SAMPLED * 5.0 + 6.0
    assert found["compute"] == 2 * SAMPLED * 3.0
    assert found["wait"] == whole - found["compute"] - 6.0
    assert sum(found.values()) == whole
    assert device.state["waits"] == 1
    assert device.state["marks"] == 4, "two stretches of eight were sampled"
