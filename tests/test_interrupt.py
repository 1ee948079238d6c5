"""Signals: a flag where there is something to save, at once where there is not, and without mercy the second time."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from job.errors import Interrupted
from job.interrupt import SIGNALS, StopFlag


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    with StopFlag().installed() as made:
        yield made


def compiles(work: Callable[[], None]) -> None:
    """As a compiler treats failures inside it: it goes on without."""
    with contextlib.suppress(Exception):
        work()


def test_it_is_a_wish(flag: StopFlag) -> None:
    assert flag.left() is None
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.reason == "received SIGINT"
    left = flag.left()
    assert left is not None
    assert 0 < left <= 90


def test_with_nothing_to_lose_it_ends_the_run_on_the_spot(flag: StopFlag) -> None:
    with pytest.raises(Interrupted, match="received SIGTERM where there was nothing to save"), flag.at_once():
        compiles(lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_wish_from_before_is_not_forgotten(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    reached = []
    with pytest.raises(Interrupted), flag.at_once():
        reached.append(1)
    assert reached == []


def test_afterwards_the_signals_are_whose_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopFlag().installed():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert "grace" not in [thread.name for thread in threading.enumerate()]


def test_the_time_left_never_falls_below_zero() -> None:
    stop = StopFlag(grace=5.0)
    stop.at = time.monotonic() - 60
    assert stop.left() == 0.0


def test_a_limit_of_time_ends_what_may_end_on_the_spot_and_nothing_else(flag: StopFlag) -> None:
    flag.ends_at(time.time() - 1, "resources.max_duration")
    while not flag.late:
        time.sleep(0.001)
    assert (flag.reason, flag.left()) == (None, None)
    with pytest.raises(Interrupted, match=r"max_duration is reached where there was nothing"), flag.at_once():
        raise AssertionError


def test_a_limit_of_time_ends_a_wait(flag: StopFlag) -> None:
    flag.ends_at(time.time() + 0.01, "resources.max_duration")
    with pytest.raises(Interrupted, match=r"resources\.max_duration is reached"), flag.at_once():
        threading.Event().wait(60)


def program(body: str) -> subprocess.CompletedProcess[str]:
    begun = "import os, signal, time\nfrom job.interrupt import StopFlag\nme = os.getpid()\n"
    command = [sys.executable, "-c", begun + body]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_second_one_leaves_at_once_with_75() -> None:
    ended = program(
        "with StopFlag().installed():\n"
        "    os.kill(me, signal.SIGTERM)\n"
        "    os.kill(me, signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    assert (ended.returncode, ended.stdout) == (75, "")


def test_when_the_grace_is_over_it_leaves_wherever_it_is() -> None:
    ended = program("with StopFlag(grace=0.05).installed():\n    os.kill(me, signal.SIGTERM)\n    time.sleep(50)\n")
    assert (ended.returncode, ended.stdout) == (75, "")
    assert ended.stderr == "checkpoint.grace, 0.05 s, is over: leaving without a new checkpoint\n"


def test_a_worker_process_does_not_mind() -> None:
    """Ctrl-C reaches the whole group; workers have to bring the batches that the run still waits for."""
    ended = program(
        "with StopFlag().installed() as stop, stop.at_once():\n"
        "    if os.fork() == 0:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert (ended.returncode, ended.stdout) == (0, "7\n"), ended.stderr
