"""A run on several instances: all of them or none, and every verb knows of each."""

import json
from pathlib import Path

import pytest

from job import cli
from job.cloud import checks, ending, record, show, submit, view
from job.cloud.estimate import usd_per_hour
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.cloud.record import Try
from job.cloud.submit import Order, order
from job.errors import JobError, UsageError
from tests.cloud.conftest import IMAGE, Clock, Tell
from tests.cloud_server.server import DOMAINS, CloudServer

NODES = 3
CLUSTER = {"compute_cluster_id": "ocid1.computecluster.oc1..a", "rdma_availability_domain": DOMAINS[1]}


def asked(base: Foundation, spec: Path, *overrides: str) -> Order:
    return order(str(spec), [f"resources.nodes={NODES}", *overrides], base, run_id="digits-1", image=IMAGE)


@pytest.fixture
def several(base: Foundation, spec: Path) -> Order:
    return asked(base, spec)


@pytest.fixture
def tell(desk: Desk, several: Order, clock: Clock, tmp_path: Path) -> Tell:
    submit.submit(desk, several)
    return Tell(desk, "digits-1", clock, tmp_path)


def last(desk: Desk) -> Try:
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    assert version.record.last is not None
    return version.record.last


def gone(server: CloudServer, *nodes: int) -> None:
    alive = server.tenancy.alive()
    for node in nodes or range(len(alive)):
        alive[node]["lifecycleState"] = "TERMINATED"


def text(desk: Desk) -> str:
    return "\n".join(show.status(desk, "digits-1"))


def test_all_are_launched_in_one_try_and_written_down(desk: Desk, several: Order, server: CloudServer) -> None:
    submit.submit(desk, several)
    alive = server.tenancy.alive("digits-1")
    assert len(alive) == NODES
    one = last(desk)
    assert (one.nodes, one.instances) == (NODES, tuple(machine["id"] for machine in alive))
    assert one.fault_domain is None, "OCI spreads them within the domain"
    assert one.usd_per_hour == NODES * 2.0


def test_the_estimate_is_of_all(base: Foundation, several: Order) -> None:
    (quoted,) = submit.quote(several, 60.0, lambda _: ())
    assert quoted.usd_per_hour == NODES * 2.0 == usd_per_hour(several.loaded.spec.resources, "VM.GPU.A10.1")
    assert quoted.lines()[0].startswith("3 × VM.GPU.A10.1: 6.00 USD/h")
    assert quoted.worst_usd == pytest.approx(6.0 * (120 + 3) / 60)


@pytest.mark.parametrize("room", range(NODES))
def test_room_for_some_only_leaves_nothing_and_the_next_place_is_tried(
    desk: Desk, several: Order, server: CloudServer, room: int
) -> None:
    server.tenancy.room = {DOMAINS[0]: room}
    server.tenancy.report = {("*", "*", "*"): "AVAILABLE"}  # which is not so
    version = submit.submit(desk, several)
    assert [(one.availability_domain, one.outcome) for one in version.record.tries] == [
        (DOMAINS[0], "capacity"),
        (DOMAINS[1], "launched"),
    ]
    assert {one["availabilityDomain"] for one in server.tenancy.alive()} == {DOMAINS[1]}
    assert len(server.tenancy.alive()) == NODES
    assert server.tenancy.launches == room + NODES
    assert server.tenancy.most == NODES


def test_room_for_some_only_everywhere_leaves_nothing(
    desk: Desk, base: Foundation, spec: Path, server: CloudServer
) -> None:
    server.tenancy.room = dict.fromkeys(DOMAINS, NODES - 1)
    with pytest.raises(JobError, match="no instance in 4 tries; the last: 500-InternalError, Out of host capacity"):
        submit.submit(desk, asked(base, spec, "resources.fallback=[VM.GPU.A10.2]"))
    assert server.tenancy.alive() == []
    assert server.tenancy.launches == 4 * (NODES - 1), "each try got as far as there was room"


def test_a_report_of_too_few_is_one_of_none(desk: Desk, server: CloudServer) -> None:
    server.tenancy.room = {DOMAINS[0]: NODES - 1}
    domains = [cell.availability_domain for cell in submit.places(desk, ["VM.GPU.A10.1"], NODES)]
    assert domains == [DOMAINS[1], DOMAINS[0]]
    assert submit.places(desk, ["VM.GPU.A10.1"], 1)[0].availability_domain == DOMAINS[0]


def test_a_launch_that_lags_behind_in_the_list_is_waited_for(
    desk: Desk, several: Order, server: CloudServer, clock: Clock
) -> None:
    """Submit was killed when all were launched; the list does not show the newest yet."""
    version = submit._begin(desk, several)
    one = Try(1, "VM.GPU.A10.1", DOMAINS[0], None, False, NODES, desk.clock(), 7200, 6.0)
    record.save(desk.launches, version, version.record.with_try(one))
    tags = {"role": "run", "run_id": "digits-1", "owner": "ada"}
    place = {"compartmentId": desk.cloud.foundation.compartment, "availabilityDomain": DOMAINS[0]}
    for _ in range(NODES):
        server.tenancy.add({**place, "shape": "VM.GPU.A10.1", "definedTags": {"gpu_job": tags}})
    server.tenancy.hidden = 1
    submit.submit(desk, several)
    assert len(last(desk).instances) == server.tenancy.launches == server.tenancy.most == NODES


def test_list_and_status_tell_of_each(desk: Desk, tell: Tell, server: CloudServer, clock: Clock) -> None:
    for node in range(NODES):
        tell.instance(node=node, phase="running")
    tell.job(status="running", phase="train", epoch=1)
    assert view.look(desk, "digits-1").state == "running"
    rows = show.overview(desk)
    assert any("3 × VM.GPU.A10.1" in line for line in show.table(rows, clock.now))
    told = text(desk)
    assert [f"instance {node}, 0 s ago: running" in told for node in range(NODES)] == [True] * NODES
    assert told.count("RUNNING: VM.GPU.A10.1") == NODES
    clock.now += 1800
    assert view.look(desk, "digits-1").usd == pytest.approx(3.0)
    json.dumps(show.as_json(view.look(desk, "digits-1")))


def test_one_that_is_gone_is_told(desk: Desk, tell: Tell, server: CloudServer) -> None:
    tell.instance(phase="running")
    assert checks.examine(lambda: desk)[1]
    gone(server, 1)
    assert "1 of 3 instances are gone" in text(desk)
    lines, healthy = checks.examine(lambda: desk)
    assert not healthy
    assert "!!  digits-1 has 2 instances instead of 3; python -m job cancel digits-1" in lines


def test_the_one_that_failed_is_named_with_its_log(desk: Desk, tell: Tell, server: CloudServer) -> None:
    tell.job(status="interrupted")
    tell.instance(node=0, phase="ending", exit="75", reason="ended with node 2: the job left with 137")
    tell.instance(node=1, phase="ending", exit="75", reason="ended with node 2: the job left with 137")
    tell.instance(node=2, phase="ending", exit="137", reason="the job left with 137")
    tell.log("job.log", "the first node's words\n")
    tell.log("job.log", "Killed\n", node=2)
    gone(server)
    told = text(desk)
    assert "exit code 137 of instance 2: SIGKILL: out of memory" in told
    assert "last lines of instance 2:\n    Killed" in told
    assert "the first node's words" not in told


def test_a_boot_that_failed_on_one_is_named(desk: Desk, tell: Tell, server: CloudServer) -> None:
    tell.instance(node=0, phase="ending", reason="ended with node 1: nvidia-smi fails")
    tell.instance(node=1, phase="ending", reason="nvidia-smi fails: no driver, or a GPU fell off the bus")
    tell.log("boot.log", "phase: gpu\n", node=1)
    gone(server)
    assert "last lines of instance 1:\n    phase: gpu" in text(desk)


def test_logs_of_another_than_the_first(
    desk: Desk, tell: Tell, capsys: pytest.CaptureFixture[str], base: Foundation
) -> None:
    tell.put_text("logs/job.log", "the run\n")
    tell.log("job.log", "the second node\n", node=1)
    assert cli.main(["logs", "digits-1", "--node", "1"]) == 0
    assert cli.main(["logs", "digits-1"]) == 0
    assert capsys.readouterr().out == "the second node\nthe run\n"
    assert cli.main(["logs", "digits-1", "--node", "1", "--source", "job"]) == 2
    assert "--node 1 --source container" in capsys.readouterr().err


def test_cancel_ends_all(desk: Desk, tell: Tell, server: CloudServer) -> None:
    identifiers = {one["id"] for one in server.tenancy.alive()}
    assert set(ending.cancel(desk, "digits-1", now=True)) == identifiers
    assert server.tenancy.alive() == []


def test_sweep_ends_all_that_outlived_their_time(desk: Desk, tell: Tell, server: CloudServer, clock: Clock) -> None:
    assert [one.end for one in ending.sweep(desk)] == [False] * NODES
    gone(server, 0)
    clock.now += 7200 + ending.ENDING + 60
    assert len(ending.carry_out(desk, ending.sweep(desk))) == NODES - 1
    assert server.tenancy.alive() == []


def test_resubmit_waits_for_the_last_to_be_gone(
    desk: Desk, tell: Tell, several: Order, server: CloudServer, clock: Clock
) -> None:
    tell.job(status="interrupted")
    gone(server, 0, 1)
    with pytest.raises(UsageError, match="its instance is still there"):
        submit.relaunch(desk, several, 0.0)
    gone(server)
    submit.relaunch(desk, several, 0.0)
    assert len(server.tenancy.alive()) == NODES


def test_several_that_may_be_taken_away_are_refused(base: Foundation, spec: Path) -> None:
    with pytest.raises(UsageError, match=r"resources\.nodes: one node that is taken away stops all"):
        asked(base, spec, "resources.preemptible=true", "resources.shape=VM.GPU3.1")


def test_rdma_is_tried_where_the_cluster_is_and_tcp_everywhere(desk: Desk, several: Order) -> None:
    base = Foundation({**desk.cloud.foundation.values, **CLUSTER})
    there = Desk(**{**vars(desk), "cloud": type(desk.cloud)(**{**vars(desk.cloud), "foundation": base})})
    cells = submit.places(there, ["BM.GPU.H100.8", "VM.GPU.A10.1"], 2)
    assert [(cell.shape, cell.availability_domain) for cell in cells] == [
        ("BM.GPU.H100.8", DOMAINS[1]),
        ("VM.GPU.A10.1", DOMAINS[0]),
        ("VM.GPU.A10.1", DOMAINS[1]),
    ]
    assert len(submit.places(there, ["BM.GPU.H100.8"], 1)) == 4, "one node needs no cluster"
    assert len(submit.places(desk, ["BM.GPU.H100.8"], 2)) == 2, "nor do several without one: they talk TCP"
    rdma = Try(1, "BM.GPU.H100.8", DOMAINS[1], None, False, 2, 1_764_000_000.0, 7200, 160.0)
    assert submit.variables(base, several, rdma)["compute_cluster_id"] == CLUSTER["compute_cluster_id"]
    tcp = Try(1, "VM.GPU.A10.1", DOMAINS[0], None, False, 2, 1_764_000_000.0, 7200, 4.0)
    assert submit.variables(base, several, tcp)["compute_cluster_id"] is None
