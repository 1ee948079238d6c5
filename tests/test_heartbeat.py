"""The heartbeat: seldom, true, and also where the work has no steps."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from job import heartbeat, runfolder
from job.heartbeat import Heartbeat, Pace
from job.runfolder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make()
    return made


def status(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.status.read_text())
    return found


def test_a_phase_is_written_at_once_a_beat_when_it_is_time(folder: RunFolder) -> None:
    now = [0.0]
    beat = Heartbeat(folder, lambda: now[0])
    beat.phase("train")
    assert (status(folder)["status"], status(folder)["phase"]) == ("running", "train")
    beat.beat(step=3)
    assert "step" not in status(folder)
    now[0] = 6.0
    beat.beat(step=4)
    assert status(folder)["step"] == 4


def test_pace_tells_speed_and_time_left_until_the_phase_ends(folder: RunFolder) -> None:
    now = [0.0]
    beat = Heartbeat(folder, lambda: now[0])
    beat.phase("train")
    pace = Pace(beat, epochs=2, steps=10, images=100)
    shown = []
    for step in range(1, 11):
        now[0] += 1.0
        shown.append(pace.step(0, step, 10))
    last = shown[-1]
    assert last is not None
    assert (last.epoch, last.step, last.images_per_second, last.seconds_left) == (1, 10, 10.0, 10.0)
    assert (status(folder)["images_per_second"], status(folder)["epoch"]) == (10.0, 1)
    assert status(folder)["seconds_left"] > 0
    beat.phase("evaluate")
    assert "seconds_left" not in status(folder)
    assert status(folder)["epoch"] == 1


def test_where_there_are_no_steps_it_beats_by_itself(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Semaphore(0)
    write = runfolder.write_status

    def spy(*arguments: Any, **fields: Any) -> None:
        write(*arguments, **fields)
        written.release()

    monkeypatch.setattr(heartbeat, "write_status", spy)
    monkeypatch.setattr(heartbeat, "EVERY", 0.001)
    with Heartbeat(folder).alive("data"):
        assert all(written.acquire(timeout=60) for _ in range(4))
    assert status(folder)["phase"] == "data"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
