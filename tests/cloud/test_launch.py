"""One instance or none, whatever the places answer, and whatever an earlier submit left under way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from job.cloud import launch, record, submit, terraform
from job.cloud.clients import CloudError
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.cloud.record import Try, Version
from job.cloud.submit import Order, order
from job.errors import JobError, UsageError
from job.storage.lease import NAME, in_memory
from job.storage.store import open_store
from tests.cloud.conftest import IMAGE, Clock
from tests.cloud_server.server import DOMAINS, CloudServer

ANY = ("*", "*", "*")


def the_record(desk: Desk) -> record.Record:
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    return version.record


def asked(base: Foundation, spec: Path, *overrides: str) -> Order:
    return order(str(spec), overrides, base, run_id="digits-1", image=IMAGE)


def test_a_submit_launches_one_instance_and_writes_it_down(desk: Desk, made: Order, server: CloudServer) -> None:
    version = submit.submit(desk, made)
    (machine,) = server.tenancy.alive()
    assert version.record == the_record(desk)
    assert version.record.phase == "launched"
    (one,) = version.record.tries
    assert (one.outcome, one.instances, one.max_seconds, one.usd_per_hour) == ("launched", (machine["id"],), 7200, 2.0)
    tags = machine["definedTags"]["gpu_job"]
    assert (tags["role"], tags["run_id"], tags["owner"]) == ("run", "digits-1", "ada")
    assert record.read_object(desk.launches, "digits-1/try-1.tfstate"), "the state is kept with the record"
    assert b"store:" in record.read_bytes(desk.launches, "digits-1/spec.yaml")


def test_the_same_submit_again_launches_nothing(desk: Desk, made: Order, server: CloudServer, said: list[str]) -> None:
    submit.submit(desk, made)
    submit.submit(desk, made)
    assert server.tenancy.launches == 1
    assert said[-1] == "digits-1 runs already; nothing is launched."


@pytest.mark.parametrize("full", range(1, 5))
def test_no_capacity_up_to_any_cell_goes_on_with_the_next(
    desk: Desk, made: Order, server: CloudServer, full: int
) -> None:
    places = [("*", domain, fault) for domain in DOMAINS for fault in ("FAULT-DOMAIN-1", "FAULT-DOMAIN-2")]
    server.tenancy.refusals = dict.fromkeys(places[:full], "capacity")
    if full < len(places):
        submit.submit(desk, made)
        assert len(server.tenancy.alive()) == 1
    else:
        with pytest.raises(JobError, match="no instance in 4 tries; the last: 500-InternalError, Out of host capacity"):
            submit.submit(desk, made)
        assert server.tenancy.alive() == []
        assert the_record(desk).phase == "failed"
    outcomes = [one.outcome for one in the_record(desk).tries]
    assert outcomes == ["capacity"] * full + ["launched"] * (full < len(places))
    assert server.tenancy.most <= 1


def test_after_a_failure_the_same_submit_tries_again(desk: Desk, made: Order, server: CloudServer) -> None:
    server.tenancy.refusals = {ANY: "capacity"}
    with pytest.raises(JobError):
        submit.submit(desk, made)
    server.tenancy.refusals = {}
    assert submit.submit(desk, made).record.last == the_record(desk).tries[4]
    assert len(server.tenancy.alive()) == 1


def test_a_limit_closes_the_shape_in_its_domain(desk: Desk, base: Foundation, spec: Path, server: CloudServer) -> None:
    server.tenancy.refusals = {("VM.GPU.A10.1", "*", "*"): "limit"}
    submit.submit(desk, asked(base, spec, "resources.fallback=[VM.GPU.A10.2]"))
    tries = the_record(desk).tries
    assert [(one.shape, one.outcome) for one in tries] == [
        ("VM.GPU.A10.1", "limit"),
        ("VM.GPU.A10.1", "limit"),
        ("VM.GPU.A10.2", "launched"),
    ]
    assert {tries[0].availability_domain, tries[1].availability_domain} == set(DOMAINS)


@pytest.mark.parametrize(
    ("kind", "tries"), [("authorisation", 1), ("limit", 2), ("quota", 2), ("shape", 2), ("other", 4)]
)
def test_each_cause_is_named_and_reaches_as_far_as_it_does(
    desk: Desk, made: Order, server: CloudServer, kind: str, tries: int
) -> None:
    server.tenancy.refusals = {ANY: kind}
    with pytest.raises(JobError):
        submit.submit(desk, made)
    assert [one.outcome for one in the_record(desk).tries] == [kind] * tries
    assert server.tenancy.alive() == []


def test_the_report_orders_and_its_absence_does_not_matter(
    desk: Desk, made: Order, server: CloudServer, said: list[str]
) -> None:
    server.tenancy.report = {("*", DOMAINS[0], "*"): "OUT_OF_HOST_CAPACITY"}
    places = submit.places(desk, made.shapes)
    assert [cell.availability_domain for cell in places] == [DOMAINS[1]] * 2 + [DOMAINS[0]] * 2
    server.faults.add("404", "unknown", times=None, after=3)  # domains and fault domains answer, the report does not
    assert len(submit.places(desk, made.shapes)) == 4
    assert said[-1].startswith("No capacity report (404-NotAuthorizedOrNotFound")


def test_max_wait_bounds_the_rounds(
    desk: Desk, base: Foundation, spec: Path, server: CloudServer, clock: Clock
) -> None:
    server.tenancy.refusals = {ANY: "capacity"}
    began = clock.now
    with pytest.raises(JobError, match="no instance in 8 tries"):
        submit.submit(desk, asked(base, spec, "resources.max_wait=100s"))
    assert clock.now - began == pytest.approx(100), "a pause of 60 s, one of 40 s, and no more"
    assert server.tenancy.alive() == []


def test_throttling_is_waited_out(desk: Desk, made: Order, server: CloudServer, clock: Clock) -> None:
    server.tenancy.refusals = {("*", DOMAINS[0], "FAULT-DOMAIN-1"): "throttled"}
    submit.submit(desk, made)
    assert launch.THROTTLED in clock.slept
    assert [one.outcome for one in the_record(desk).tries] == ["throttled", "launched"]


def test_of_two_submits_at_once_one_wins(desk: Desk, made: Order, server: CloudServer) -> None:
    with (
        launch.alone(replace(desk, sleep=desk.sleep), "digits-1"),
        pytest.raises(JobError, match="another process writes this run"),
        launch.alone(renewing(desk), "digits-1"),
    ):
        pass
    assert server.tenancy.launches == 0


def renewing(desk: Desk) -> Desk:
    """A desk whose waiting lets the other holder renew its lease, as ten seconds would."""

    def sleep(_: float) -> None:
        lease = open_store(f"{desk.launches.uri}/digits-1")
        with in_memory(record.read_bytes(lease, NAME)) as path:
            lease.put(path, NAME)

    return replace(desk, sleep=sleep)


def test_an_id_belongs_to_one_spec_and_one_image(desk: Desk, base: Foundation, spec: Path, made: Order) -> None:
    submit.submit(desk, made)
    with pytest.raises(UsageError, match="submitted with another spec"):
        submit.submit(desk, asked(base, spec, "train.epochs=9"))
    with pytest.raises(UsageError, match="submitted with another image"):
        submit.submit(desk, replace(made, image=IMAGE.replace("a" * 64, "b" * 64)))


def test_what_was_launched_and_is_gone_is_resubmitted_not_submitted(
    desk: Desk, made: Order, server: CloudServer
) -> None:
    submit.submit(desk, made)
    server.tenancy.alive()[0]["lifecycleState"] = "TERMINATED"
    with pytest.raises(UsageError, match="python -m job resubmit digits-1"):
        submit.submit(desk, made)
    again = submit.relaunch(desk, submit.again(desk, the_record(desk)), 0.0)
    assert [one.number for one in again.record.tries] == [1, 2]
    assert len(server.tenancy.alive()) == 1


def test_what_is_still_there_is_not_launched_beside(desk: Desk, made: Order, server: CloudServer) -> None:
    submit.submit(desk, made)
    with pytest.raises(UsageError, match="its instance is still there"):
        submit.relaunch(desk, made, 0.0)
    assert server.tenancy.launches == 1


def under_way(desk: Desk, made: Order) -> Version:
    """The record of a submit that was killed right after it wrote its first try down."""
    version = submit._begin(desk, made)
    one = Try(1, "VM.GPU.A10.1", DOMAINS[0], "FAULT-DOMAIN-1", False, 1, desk.clock(), 7200, 2.0)
    return record.save(desk.launches, version, version.record.with_try(one))


def instance(server: CloudServer, base: Foundation, run_id: str = "digits-1") -> str:
    tags = {"role": "run", "run_id": run_id, "owner": "ada"}
    details = {"compartmentId": base.compartment, "shape": "VM.GPU.A10.1", "availabilityDomain": DOMAINS[0]}
    return str(server.tenancy.add({**details, "definedTags": {"gpu_job": tags}})["id"])


def test_an_instance_nobody_saw_launched_is_taken_over(
    desk: Desk, made: Order, server: CloudServer, base: Foundation
) -> None:
    under_way(desk, made)
    identifier = instance(server, base)
    version = submit.submit(desk, made)
    assert server.tenancy.launches == 1
    assert version.record.tries[0].instances == (identifier,)
    assert version.record.phase == "launched"


def test_a_try_that_made_nothing_is_followed_by_another(
    desk: Desk, made: Order, server: CloudServer, clock: Clock
) -> None:
    under_way(desk, made)
    submit.submit(desk, made)
    assert clock.slept[0] == pytest.approx(launch.SETTLE), "an instance may exist that no list names yet"
    assert [one.outcome for one in the_record(desk).tries] == ["interrupted", "launched"]


def test_a_list_that_lags_does_not_lead_to_a_second_instance(
    desk: Desk, made: Order, server: CloudServer, base: Foundation
) -> None:
    under_way(desk, made)
    instance(server, base)
    server.tenancy.hidden = 1
    submit.submit(desk, made)
    assert (server.tenancy.launches, server.tenancy.most) == (1, 1)


def test_half_a_cluster_is_ended(desk: Desk, made: Order, server: CloudServer, base: Foundation) -> None:
    version = under_way(desk, made)
    one = version.record.last
    assert one is not None
    record.save(desk.launches, version, version.record.with_try(replace(one, nodes=2)))
    identifier = instance(server, base)
    submit.submit(desk, made)
    assert server.tenancy.instances[identifier]["lifecycleState"] == "TERMINATED"
    assert len(server.tenancy.alive()) == 1
    assert server.tenancy.most == 1


def test_a_second_node_without_room_takes_the_first_with_it(desk: Desk, made: Order, server: CloudServer) -> None:
    """The provider launched one of two; the try is undone whole."""
    version = under_way(desk, made)
    one = version.record.last
    assert one is not None
    workdir = desk.workdir("digits-1")
    terraform.prepare(workdir)
    variables = {**submit.variables(desk.cloud.foundation, made, replace(one, nodes=2)), "nodes": 1}
    with terraform.locked(workdir, 1) as lock:
        ids, cause = terraform.apply(workdir, 1, variables, lock, print)
        assert (len(ids), cause) == (1, None)
        server.tenancy.refusals = {ANY: "capacity"}
        _, cause = terraform.apply(workdir, 1, {**variables, "nodes": 2}, lock, print)
        assert cause is not None
        assert cause.kind == "capacity"
        launch._undo(desk, version, workdir, one, lock)
    assert server.tenancy.alive() == []


def test_a_cancel_between_two_tries_ends_the_submit(
    desk: Desk, made: Order, server: CloudServer, tmp_path: Path
) -> None:
    server.tenancy.refusals = {ANY: "capacity"}
    (tmp_path / "cancel").write_text("now")

    def say(text: str) -> None:
        if text.startswith("Try 2"):
            desk.launches.put(tmp_path / "cancel", "digits-1/cancel")

    with pytest.raises(UsageError, match="was cancelled"):
        submit.submit(replace(desk, say=say), made)
    assert [one.outcome for one in the_record(desk).tries] == ["capacity", "capacity"]
    assert the_record(desk).phase == "cancelled"
    with pytest.raises(UsageError, match="python -m job resubmit"):
        submit.submit(desk, made)


def test_a_record_closed_during_the_launch_undoes_it(desk: Desk, made: Order, server: CloudServer) -> None:
    def say(text: str) -> None:
        if text.startswith("Try 1"):
            version = record.read(desk.launches, "digits-1")
            assert version is not None
            record.save(desk.launches, version, replace(version.record, phase="cancelled"))

    with pytest.raises(UsageError, match="changed this run just now"):
        submit.submit(replace(desk, say=say), made)
    assert server.tenancy.launches == 1
    assert server.tenancy.alive() == []


def test_what_cannot_be_undone_now_is_told(desk: Desk, made: Order, server: CloudServer) -> None:
    server.tenancy.refusals = {ANY: "capacity"}

    def say(text: str) -> None:
        if text.startswith("Try 1"):
            server.faults.add("401", "unknown", times=None, after=1)  # the launch is answered, nothing after it

    with pytest.raises(CloudError, match="may have left an instance") as told:
        submit.submit(replace(desk, say=say), made)
    assert "python -m job sweep" in told.value.cure
    assert the_record(desk).tries[0].outcome is None, "still open, so that the next submit settles it"


def test_the_variables_are_those_infra_run_declares(base: Foundation, made: Order) -> None:
    one = Try(3, "VM.GPU.A10.1", DOMAINS[0], "FAULT-DOMAIN-1", False, 1, 1_764_000_000.0, 7200, 2.0)
    with_cluster = Foundation({**base.values, "compute_cluster_id": "ocid1.computecluster.oc1..a"})
    values = submit.variables(with_cluster, made, one)
    text = "".join(path.read_text() for path in (Path(__file__).parents[2] / "infra/run").glob("*.tf"))
    assert [name for name in values if f'variable "{name}"' not in text] == []
    assert values["launched"] == "2025-11-24T16:00:00Z"
    assert values["compute_cluster_id"] is None, "one node has nobody to talk to"
    assert values["first_step_timeout"] == 1800
    json.dumps(values)
