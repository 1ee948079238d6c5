"""Signals: at once before training, by a flag while it goes on, and without mercy the second time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from job.errors import Interrupted
from job.interrupt import SIGNALS, StopFlag


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    made = StopFlag()
    made.install()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def test_before_training_the_signal_ends_the_run(flag: StopFlag) -> None:
    with pytest.raises(Interrupted, match="received SIGTERM before training began"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_while_training_it_is_a_wish(flag: StopFlag) -> None:
    with flag.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.reason == "received SIGINT"


def test_the_second_one_leaves_at_once_with_75() -> None:
    program = """
import os, signal
from job.interrupt import StopFlag
flag = StopFlag()
flag.install()
with flag.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
print("still here")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (75, "")
