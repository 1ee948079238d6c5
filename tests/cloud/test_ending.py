"""cancel, sweep and resubmit: what lives is not ended by mistake, and what outlived its run is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from job.cloud import checks, ending, record, shapes, submit, view
from job.cloud.ending import ENDING, GRACE
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.cloud.submit import Order, order
from job.errors import UsageError
from tests.cloud.conftest import IMAGE, Clock, Tell
from tests.cloud.test_launch import instance
from tests.cloud_server.server import DOMAINS, CloudServer


@pytest.fixture
def tell(desk: Desk, made: Order, clock: Clock, tmp_path: Path) -> Tell:
    submit.submit(desk, made)
    return Tell(desk, "digits-1", clock, tmp_path)


def verdict(desk: Desk) -> tuple[bool, str]:
    (one,) = ending.sweep(desk)
    return one.end, one.why


def during(desk: Desk, clock: Clock, action: Callable[[], object]) -> Desk:
    """A desk whose first wait also does something."""
    done: list[object] = []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if not done:
            done.append(action())

    return replace(desk, sleep=sleep)


def test_cancel_lets_the_run_stop_in_order(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    def stops() -> None:
        assert desk.launches.exists("digits-1/cancel"), "what the instance looks for"
        tell.job(status="interrupted")
        tell.instance(phase="ending", reason="cancelled", exit="75")
        server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"

    began = clock.now
    assert ending.cancel(during(desk, clock, stops), "digits-1", now=False) == []
    assert clock.now - began < GRACE
    assert view.look(desk, "digits-1").state == "cancelled"


def test_cancel_ends_what_does_not_listen(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    began = clock.now
    (identifier,) = (one["id"] for one in server.tenancy.alive())
    assert ending.cancel(desk, "digits-1", now=False) == [identifier]
    assert clock.now - began >= GRACE
    assert server.tenancy.alive() == []


def test_cancel_now_does_not_wait(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    ending.cancel(desk, "digits-1", now=True)
    assert clock.slept == []
    assert server.tenancy.alive() == []
    assert ending.cancel(desk, "digits-1", now=True) == [], "twice does no harm"


def test_sweep_never_ends_what_gives_signs_of_life(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    clock.now += 10 * 3600  # hours beyond its time
    tell.job(status="running", phase="train")
    assert verdict(desk) == (False, "alive: a sign 0 s ago")
    assert ending.carry_out(desk, ending.sweep(desk)) == []
    assert len(server.tenancy.alive()) == 1


def test_sweep_leaves_a_silent_run_its_time(desk: Desk, tell: Tell, clock: Clock) -> None:
    clock.now += 3600
    assert verdict(desk) == (False, "its time lasts")


def test_sweep_ends_what_outlived_its_time(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    clock.now += 7200 + ENDING + 60
    found = ending.sweep(desk)
    assert found[0].end
    assert "its time was up 11 min ago" in found[0].why
    assert len(ending.carry_out(desk, found)) == 1
    assert server.tenancy.alive() == []


def test_sweep_looks_again_before_it_ends(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    clock.now += 7200 + ENDING + 60
    found = ending.sweep(desk)
    tell.job(status="running", phase="train")
    assert ending.carry_out(desk, found) == []
    assert len(server.tenancy.alive()) == 1


def test_sweep_gives_a_complete_run_time_to_end_itself(desk: Desk, tell: Tell, clock: Clock) -> None:
    tell.job(status="complete")
    tell.put("manifest.json", {})
    assert verdict(desk)[0] is False
    clock.now += ENDING + 1
    assert verdict(desk) == (True, "its run is complete")


def test_a_bucket_out_of_reach_condemns_nobody(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    clock.now += 7200 + ENDING + 60
    server.faults.add("401", "get", "head", name="status.json", times=None)
    end, why = verdict(desk)
    assert not end
    assert why.startswith("nobody knows: the bucket: ")


def test_an_instance_without_a_record_is_swept_but_not_at_once(
    desk: Desk, base: Foundation, clock: Clock, server: CloudServer
) -> None:
    instance(server, base, "stray-1")
    assert verdict(desk) == (False, "it was made just now")
    clock.now += 120
    assert verdict(desk) == (True, "no run of this id has a record")


def test_an_instance_beside_that_of_the_record_is_swept(
    desk: Desk, tell: Tell, base: Foundation, clock: Clock, server: CloudServer
) -> None:
    other = instance(server, base)
    clock.now += ENDING + 60
    assert {one.machine.id: one.end for one in ending.sweep(desk)} == {
        one["id"]: one["id"] == other for one in server.tenancy.alive()
    }


def test_other_machines_of_the_compartment_are_none_of_ours(desk: Desk, base: Foundation, server: CloudServer) -> None:
    details = {"compartmentId": base.compartment, "shape": "VM.Standard.E5.Flex", "availabilityDomain": DOMAINS[0]}
    server.tenancy.add({**details, "definedTags": {"gpu_job": {"role": "builder", "run_id": "x"}}})
    assert ending.sweep(desk) == []


def test_doctor_finds_what_was_left_behind(desk: Desk, tell: Tell, clock: Clock, server: CloudServer) -> None:
    lines, healthy = checks.examine(lambda: desk)
    assert healthy, lines
    clock.now += 7200 + ENDING + 60
    lines, healthy = checks.examine(lambda: desk)
    assert not healthy
    assert any("python -m job sweep --yes ends it" in line for line in lines)


def test_doctor_finds_a_submit_that_never_came_back(desk: Desk, made: Order, clock: Clock) -> None:
    submit._begin(desk, made)
    assert checks.examine(lambda: desk)[1]
    clock.now += checks.STALE + 60
    lines, healthy = checks.examine(lambda: desk)
    assert not healthy
    assert "submit it again with --run-id digits-1, or python -m job cancel digits-1" in lines[-1]


def test_doctor_tells_why_it_cannot_sign_in() -> None:
    def refuse() -> Desk:
        raise UsageError("foundation.json", "it is not there", "make it")

    lines, healthy = checks.examine(refuse)
    assert not healthy
    assert lines[-1] == "!!  foundation: foundation.json: it is not there; make it"


def test_live_tells_what_is_offered_and_left(desk: Desk, server: CloudServer) -> None:
    server.tenancy.available = 1
    server.tenancy.report = {("VM.GPU.A10.2", "*", "*"): "OUT_OF_HOST_CAPACITY"}
    lines = checks.offers(desk, ["VM.GPU.A10.1", "VM.GPU.A10.2"])
    assert lines[0] == f"{DOMAINS[0]}  VM.GPU.A10.1: offered, 1 × NVIDIA A10; 1 GPUs left of gpu-a10-count; available"
    assert "; 1 GPUs left of gpu-a10-count, and it needs 2: ask for a higher limit; out of host" in lines[1]
    assert any(f"{DOMAINS[1]}  VM.GPU.A10.2: not offered to this tenancy" in line for line in lines)


def test_live_tells_where_the_api_and_the_table_differ(
    desk: Desk, server: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shapes.table()
    known = dict(before[1])
    monkeypatch.setattr(checks, "table", lambda: (before[0], known))
    known["VM.GPU.A10.2"] = replace(known["VM.GPU.A10.2"], gpus=4)
    del known["VM.GPU.A10.1"]
    lines = checks.offers(desk, ["VM.GPU.A10.1", "VM.GPU.A10.2"])
    assert "VM.GPU.A10.1: offered, 1 × NVIDIA A10, price not known; available" in lines[0]
    assert f"offered, 2 × NVIDIA A10, where the table of {before[0]} has 4: its price may be another" in lines[1]


def test_live_counts_the_limit_and_the_room_for_all_nodes(desk: Desk, server: CloudServer) -> None:
    server.tenancy.available, server.tenancy.room = 2, {DOMAINS[0]: 2}
    assert checks.offers(desk, ["VM.GPU.A10.1"], 2)[0].endswith("2 GPUs left of gpu-a10-count; available")
    told = checks.offers(desk, ["VM.GPU.A10.1"], 3)[0]
    assert told.endswith("2 GPUs left of gpu-a10-count, and it needs 3: ask for a higher limit; out of host capacity")


def test_what_is_complete_or_alive_is_not_resubmitted(desk: Desk, tell: Tell, server: CloudServer) -> None:
    with pytest.raises(UsageError, match=r"is booting; python -m job cancel digits-1"):
        ending.may_resubmit(view.look(desk, "digits-1"))
    tell.job(status="complete")
    tell.put("manifest.json", {})
    with pytest.raises(UsageError, match="is complete"):
        ending.may_resubmit(view.look(desk, "digits-1"))


def test_max_cost_bounds_all_launches_together(
    desk: Desk, base: Foundation, spec: Path, server: CloudServer, clock: Clock, tmp_path: Path
) -> None:
    made = order(str(spec), ["resources.max_cost=2.5"], base, run_id="digits-1", image=IMAGE)
    submit.submit(desk, made)
    tell = Tell(desk, "digits-1", clock, tmp_path)
    clock.now += 1800
    tell.job(status="interrupted")
    server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"
    seen = view.look(desk, "digits-1")
    assert seen.usd == pytest.approx(1.0)
    ending.may_resubmit(seen)
    ending.close_try(desk, seen)
    again = submit.relaunch(desk, submit.again(desk, seen.record), 1.0)
    assert again.record.tries[1].max_seconds == 2700, "1.50 USD are left"
    clock.now += 2700
    tell.job(status="interrupted")
    server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"
    with pytest.raises(UsageError, match=r"has cost about 2\.50 USD of resources\.max_cost 2\.50"):
        ending.may_resubmit(view.look(desk, "digits-1"))


def test_the_wait_for_the_end_outlasts_a_bucket_that_does_not_answer(
    desk: Desk, tell: Tell, server: CloudServer, clock: Clock
) -> None:
    server.faults.add("401", "get", name="record.json", times=1)

    def ends() -> None:
        tell.job(status="interrupted")
        server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"

    assert ending.wait_until_over(during(desk, clock, ends), "digits-1", 30.0).state == "interrupted"


def test_a_closed_try_keeps_what_it_cost(desk: Desk, tell: Tell, server: CloudServer, clock: Clock) -> None:
    clock.now += 1800
    tell.job(status="interrupted")
    server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"
    ending.close_try(desk, view.look(desk, "digits-1"))
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    assert version.record.last is not None
    assert version.record.last.ended == pytest.approx(clock.now)
    clock.now += 7200
    assert view.look(desk, "digits-1").usd == pytest.approx(1.0)
