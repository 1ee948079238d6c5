"""What status, list and logs say: silence is not death, and what cannot be asked is not bad news."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job.cloud import record, show, submit, view
from job.cloud.launch import Desk
from job.cloud.submit import Order
from job.cloud.view import View
from job.errors import JobError, UsageError
from tests.cloud.conftest import Clock, Tell
from tests.cloud_server.server import CloudServer


@pytest.fixture
def tell(desk: Desk, made: Order, clock: Clock, tmp_path: Path) -> Tell:
    """A run that was launched, and a voice for its instance and its job."""
    submit.submit(desk, made)
    return Tell(desk, "digits-1", clock, tmp_path)


def state(desk: Desk) -> str:
    return view.look(desk, "digits-1").state


def text(desk: Desk) -> str:
    return "\n".join(show.status(desk, "digits-1"))


def gone(server: CloudServer) -> None:
    for one in server.tenancy.alive():
        one["lifecycleState"] = "TERMINATED"


def test_a_life_in_words(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    assert state(desk) == "booting"
    tell.instance(phase="pull")
    assert state(desk) == "booting"
    assert "instance 0, 0 s ago: pull" in text(desk)
    tell.instance(phase="running")
    tell.job(status="running", phase="train", epoch=3, images_per_second=1000.0)
    assert state(desk) == "running"
    assert "heartbeat 0 s ago: running, phase train, epoch 3, images per second 1000.0" in text(desk)
    clock.now += 1800
    tell.job(status="complete")
    tell.put("manifest.json", {"status": "complete"})
    tell.instance(phase="ending", reason="complete", exit="0")
    assert state(desk) == "complete"
    clock.now += 60
    gone(server)
    assert state(desk) == "complete"
    seen = view.look(desk, "digits-1")
    assert seen.usd == pytest.approx(1800 / 3600 * 2.0), "until its last sign of life, not until now"


def test_silence_is_not_death(desk: Desk, tell: Tell, clock: Clock) -> None:
    tell.job(status="running", phase="train")
    tell.instance(phase="running")
    clock.now += 720
    assert state(desk) == "silent"
    assert "no sign for 12 min, and the instance is RUNNING" in text(desk)
    assert "unreachable is not dead" in text(desk)


def test_a_boot_that_never_says_anything_is_silent_in_the_end(desk: Desk, tell: Tell, clock: Clock) -> None:
    clock.now += view.FRESH + 60
    assert state(desk) == "silent"
    assert "no sign since its launch" in text(desk)


def test_compute_out_of_reach_leaves_the_heartbeat(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    tell.job(status="running", phase="train")
    server.faults.add("401", "unknown", times=None)
    assert state(desk) == "running"
    assert "not known: Compute: 401-NotAuthenticated" in text(desk)
    clock.now += 3600
    assert state(desk) == "unknown", "and not lost"


def test_the_bucket_out_of_reach_is_told(desk: Desk, tell: Tell, server: CloudServer) -> None:
    server.faults.add("401", "get", "head", name="status.json", times=None)
    assert "not known: the bucket: " in text(desk)
    assert state(desk) == "booting"


@pytest.mark.parametrize(
    ("beat", "node", "expected"),
    [
        ({"status": "failed", "reason": "loss is NaN"}, {"exit": "1", "reason": "the job left with 1"}, "failed"),
        (None, {"phase": "gpu", "reason": "boot failed in phase gpu"}, "failed"),
        ({"status": "interrupted"}, {"exit": "75", "reason": "max_duration of 7200 s is over"}, "interrupted"),
        ({"status": "interrupted"}, {"exit": "75", "reason": "cancelled"}, "cancelled"),
        ({"status": "running"}, {"phase": "running"}, "lost"),
        (None, None, "lost"),
    ],
    ids=["failed", "boot", "time", "cancelled", "lost", "nothing"],
)
def test_how_it_ended(
    desk: Desk, tell: Tell, server: CloudServer, beat: dict[str, Any] | None, node: dict[str, Any] | None, expected: str
) -> None:
    if beat is not None:
        tell.job(**beat)
    if node is not None:
        tell.instance(**node)
    gone(server)
    assert state(desk) == expected


def test_a_failure_is_told_with_its_code_and_last_lines(desk: Desk, tell: Tell, server: CloudServer) -> None:
    tell.job(status="failed", reason="CUDA out of memory")
    tell.instance(phase="ending", exit="137", reason="the job left with 137")
    tell.log("job.log", "".join(f"line {n}\n" for n in range(100)))
    gone(server)
    told = text(desk)
    assert told.startswith("digits-1: failed (CUDA out of memory)")
    assert "exit code 137: SIGKILL: out of memory" in told
    assert "    line 99" in told
    assert "line 79\n" not in told, "the last twenty"
    assert "python -m job resubmit digits-1" in told


def test_preempted_is_told_apart_from_lost(desk: Desk, tell: Tell, server: CloudServer) -> None:
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    last = version.record.last
    assert last is not None
    record.save(desk.launches, version, version.record.with_try(replace(last, preemptible=True)))
    tell.job(status="running", phase="train")
    gone(server)
    assert state(desk) == "preempted"


def test_signs_of_an_earlier_launch_say_nothing_of_this_one(
    desk: Desk, tell: Tell, server: CloudServer, clock: Clock, made: Order
) -> None:
    tell.job(status="failed", reason="of the first launch")
    tell.instance(phase="ending", reason="the job left with 1")
    gone(server)
    clock.now += 600
    submit.relaunch(desk, made, 0.0)
    assert state(desk) == "booting"
    assert "of the first launch" not in text(desk)


def test_cost_is_that_of_all_launches(desk: Desk, tell: Tell, server: CloudServer, clock: Clock, made: Order) -> None:
    clock.now += 3600
    tell.job(status="interrupted")
    gone(server)
    seen = view.look(desk, "digits-1")
    last = seen.record.last
    assert last is not None
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    record.save(desk.launches, version, version.record.with_try(replace(last, ended=clock.now)))
    submit.relaunch(desk, made, 0.0)
    clock.now += 1800
    assert view.look(desk, "digits-1").usd == pytest.approx(2.0 + 1.0)


def test_no_run_of_this_id(desk: Desk) -> None:
    with pytest.raises(UsageError, match="no run of this id was submitted"):
        view.look(desk, "nothing")


def test_the_overview_has_runs_and_what_no_record_knows(
    desk: Desk, tell: Tell, server: CloudServer, clock: Clock
) -> None:
    (known,) = server.tenancy.alive()
    tags = {"role": "run", "run_id": "stray-1", "owner": "eve"}
    server.tenancy.add({**known, "id": None, "timeCreated": None, "definedTags": {"gpu_job": tags}})
    other = {**known, "timeCreated": None, "definedTags": {"gpu_job": {"role": "something else", "run_id": "x"}}}
    server.tenancy.add(other)
    rows = show.overview(desk)
    assert {row["run_id"]: row["state"] for row in rows} == {"digits-1": "booting", "stray-1": "no record (RUNNING)"}
    shown = show.table(rows, clock.now)
    assert shown[0].split() == ["run", "state", "shape", "age", "USD", "owner"]
    assert any("digits-1" in line and "VM.GPU.A10.1" in line and "ada" in line for line in shown)
    json.dumps(rows)
    json.dumps(show.as_json(view.look(desk, "digits-1")))


def test_every_exit_code_of_the_job_has_a_meaning() -> None:
    assert {"0", "1", "2", "3", "4", "75"} <= set(view.EXIT_CODES)
    assert view.meaning("42") == "not one of the job's own codes"


def test_logs_follow_to_the_end_of_the_run(desk: Desk, tell: Tell, server: CloudServer, clock: Clock) -> None:
    first = "2026-11-24T13:05:00+00:00 Epoch 1"

    def ends() -> None:
        tell.job(status="failed")
        gone(server)

    chapters: Iterator[Callable[[], None]] = iter(
        [
            lambda: tell.log("boot.log", "2026-11-24T13:00:00Z phase: pull\n"),
            lambda: tell.put_text("logs/job.log", f"{first}\n2026-11-24T13:0"),
            lambda: tell.put_text("logs/job.log", f"{first}\n2026-11-24T13:06:00+00:00 Epoch 2\n"),
            ends,
        ]
    )

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        next(chapters)()

    lines = list(show.logs(replace(desk, sleep=sleep), "digits-1", follow=True, since=None, source=None))
    assert lines == [
        "2026-11-24T13:00:00Z phase: pull",
        "2026-11-24T13:05:00+00:00 Epoch 1",
        "2026-11-24T13:06:00+00:00 Epoch 2",
    ]


def test_no_log_yet_is_told(desk: Desk, tell: Tell) -> None:
    with pytest.raises(JobError, match="no log yet; the run is booting; logs -f waits for it"):
        list(show.logs(desk, "digits-1", follow=False, since=None, source=None))


def test_a_log_that_lost_its_beginning_goes_on_where_it_was() -> None:
    fresh = show.Fresh(None)
    text = "".join(f"line {n}\n" for n in range(2000))
    assert len(list(fresh.lines(text))) == 2000
    grown = text[5000:] + "line 2000\nline 20"
    assert list(fresh.lines(grown)) == ["line 2000"]
    assert list(fresh.lines(grown + "01\n")) == ["line 2001"]
    assert list(fresh.lines("all new\n")) == ["all new"]


def test_since_takes_the_lines_of_later_moments_and_what_belongs_to_them() -> None:
    moment = 1_764_000_000.0  # 2025-11-24 16:00 UTC
    text = "2025-11-24T15:59:59Z early\n  of early\n2025-11-24T16:00:00Z late\n  of late\n"
    assert list(show.Fresh(moment).lines(text)) == ["2025-11-24T16:00:00Z late", "  of late"]


def test_json_of_a_view_holds_what_programs_need(desk: Desk, tell: Tell) -> None:
    seen: View = view.look(desk, "digits-1")
    value = show.as_json(seen)
    assert value["state"] == "booting"
    assert value["record"]["tries"][0]["outcome"] == "launched"
    assert value["instances"][0]["state"] == "RUNNING"
