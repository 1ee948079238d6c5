"""What ends a run early, and in which words."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from job.errors import Interrupted, JobError, UsageError
from job.interrupt import StopFlag
from job.limits import IdleGpu, Limits, deadline


def test_nothing_ends_it() -> None:
    limits = Limits("run", StopFlag())
    limits.step(0.0)
    assert limits.leave() is None
    limits.poll()


def test_a_signal_a_deadline_and_a_count_are_interruptions() -> None:
    stop = StopFlag()
    stop.reason = "received SIGTERM"
    for limits, why in (
        (Limits("run", stop), "received SIGTERM"),
        (Limits("run", StopFlag(), (time.time() - 1, "resources.max_cost")), "resources.max_cost is reached"),
        (Limits("run", StopFlag(), after=0), "--stop-after is reached"),
    ):
        leave = limits.leave()
        assert isinstance(leave, Interrupted)
        assert str(leave) == f"run: stopped, {why}; go on with --run-id run"
    with pytest.raises(Interrupted, match="received SIGTERM"):
        Limits("run", stop).poll()


def test_a_count_does_not_cut_an_evaluation() -> None:
    limits = Limits("run", StopFlag(), after=1)
    assert limits.leave() is None
    limits.step(0.0)
    limits.poll()
    assert limits.leave() is not None


def test_limits_count_from_the_launch_of_the_instance() -> None:
    limit = (3600.0, "resources.max_duration")
    assert deadline(None, 1000.0, {}) is None
    assert deadline(limit, 1000.0, {}) == (4600.0, "resources.max_duration")
    assert deadline(limit, 1000.0, {"JOB_LAUNCHED": "700"}) == (4300.0, "resources.max_duration")


def test_the_end_of_the_instance_is_a_limit_too() -> None:
    ends = {"JOB_LAUNCHED": "700", "JOB_DEADLINE": "2000"}
    assert deadline(None, 1000.0, ends) == (2000.0, "the instance's time limit")
    assert deadline((600.0, "resources.max_cost"), 1000.0, ends) == (1300.0, "resources.max_cost")
    with pytest.raises(UsageError, match="JOB_DEADLINE: 'soon' is no time; give Unix seconds"):
        deadline(None, 1000.0, {"JOB_DEADLINE": "soon"})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def idle(clock: Clock, busy: float, waited: float, seconds: int) -> JobError | None:
    """What is said after so many seconds of one step a second."""
    watch = IdleGpu(0.5, 60.0, lambda: busy, clock)
    limits, leave = Limits("run", StopFlag(), idle=watch), None
    for _ in range(seconds):
        clock.now += 1
        limits.step(waited)
        leave = leave or limits.leave()
    return leave


def test_an_idle_gpu_fails_the_run_once_the_window_has_passed() -> None:
    assert idle(Clock(), busy=0.1, waited=0.8, seconds=59) is None
    leave = idle(Clock(), busy=0.1, waited=0.8, seconds=61)
    assert leave is not None
    assert not isinstance(leave, Interrupted), "75 would have it resumed, at the same cost"
    assert str(leave) == (
        "run: the GPU was busy 10% of the last 60 s, less than resources.min_gpu_utilization 50%; 80% of that time "
        "the training waited for images; raise loader.num_workers, or take a smaller shape; go on with --run-id run"
    )


def test_where_images_are_there_the_batch_is_too_small() -> None:
    leave = idle(Clock(), busy=0.1, waited=0.01, seconds=61)
    assert leave is not None
    assert "raise loader.batch_size, or" in str(leave)


def test_a_busy_gpu_is_left_alone() -> None:
    assert idle(Clock(), busy=0.5, waited=0.5, seconds=300) is None


class Nvml(ModuleType):
    """NVML with one board that is idle."""

    def nvmlInit(self) -> None:  # noqa: N802 - their names
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        assert handle == "GPU-1"
        return SimpleNamespace(gpu=7)


def test_the_figure_is_the_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("pynvml"))
    watch = IdleGpu.through_nvml(0.5, 60.0, "GPU-1")
    assert watch.problem == ""
    assert watch.busy() == 0.07


def test_without_a_figure_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    watch = IdleGpu.through_nvml(0.5, 60.0, None)
    assert "nvmlInit" in watch.problem
    assert watch.busy() == 1.0


def test_old_samples_do_not_count() -> None:
    clock, shares = Clock(), iter([0.0] * 20 + [0.9] * 300)
    watch = IdleGpu(0.5, 60.0, lambda: next(shares), clock)
    for _ in range(200):
        clock.now += 1
        watch.step(0.0)
        assert watch.leave("run") is None
