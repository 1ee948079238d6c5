"""Several instances of one run: each ends itself, and none is left waiting for one that is gone."""

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.infra.machine import Machine
from tests.infra.oracle import Oracle, instance

RUN_ID = "demo-20261124-1a2b3c"
SPEC = b"""
name: demo
dataset: {name: digits, subset: 200}
loader: {batch_size: 32, num_workers: 0}
model: {name: resnet9, width: 2}
train: {epochs: 1, device: cpu}
resources: {nodes: 2, processes: 1}
store: {uri: runs}
"""


@pytest.fixture(autouse=True)
def signatures_hold(oracle: Oracle) -> object:
    yield
    assert oracle.refused == []


def test_each_is_told_its_place_and_lets_the_others_in(cluster: list[str], nodes: list[Machine]) -> None:
    for node, (data, machine) in enumerate(zip(cluster, nodes, strict=True)):
        files = {entry["path"]: entry for entry in yaml.safe_load(data)["write_files"]}
        told = base64.b64decode(files["/etc/gpu-job/job.env"]["content"]).decode().splitlines()
        assert {"JOB_NODES=2", f"JOB_NODE_RANK={node}"} <= set(told)
        (place,) = [line for line in told if line.startswith("JOB_RENDEZVOUS=")]
        assert place.endswith("-0.runs.gpujob.oraclevcn.com:29400")
        machine.first_boot()
        assert machine.read("firewall.log") == "--quiet --zone=trusted --add-source=10.77.0.0/22\n"
        assert "--network=host" in machine.read("engine.log")


def test_all_succeed_and_each_ends_itself(nodes: list[Machine], oracle: Oracle) -> None:
    for machine in nodes:
        machine.first_boot()
    assert oracle.ended == [instance(0), instance(1)]
    assert [machine.status()["reason"] for machine in nodes] == ["complete", "complete"]
    assert len(oracle.messages) == 1, "one run, one message"


def test_one_that_is_done_early_leaves_the_first_to_its_uploads(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[0].begun()
    nodes[1].first_boot()
    nodes[0].beat()
    assert oracle.ended == [instance(1)]


def test_the_end_of_the_first_is_the_end_of_all(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[1].begun()
    nodes[0].first_boot()
    nodes[1].beat()
    assert oracle.ended == [instance(0), instance(1)]
    assert nodes[1].status()["reason"] == "ended with node 0: complete"


def test_a_failure_of_one_stops_the_others_in_order(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[0].begun()
    assert nodes[0].verb("report") == 0
    nodes[1].tell("exits", "137\n")
    nodes[1].first_boot()
    nodes[0].beat()
    assert "stop gpu-job.service" in nodes[0].read("systemctl.log").splitlines(), "a checkpoint is saved first"
    assert oracle.ended == [instance(1), instance(0)]
    assert nodes[0].status()["reason"] == "ended with node 1: the job left with 137"
    assert [message["title"] for message in oracle.messages] == [f"{RUN_ID}: ended with node 1: the job left with 137"]


def test_a_first_node_that_never_comes_keeps_no_other_and_somebody_tells(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[1].begun()
    nodes[1].seconds_later(1900)
    nodes[1].beat()
    assert oracle.ended == [instance(1)]
    assert nodes[1].status()["reason"].startswith("no training step within 1800 s")
    (message,) = oracle.messages
    assert message["title"] == f"{RUN_ID}: {nodes[1].status()['reason']}"
    assert "Node 1 tells it, since nothing is heard of node 0." in message["body"]


def test_a_first_node_that_is_lost_is_told_by_the_one_that_ends_for_it(nodes: list[Machine], oracle: Oracle) -> None:
    """What it said before is old by then."""
    nodes[0].begun()
    assert nodes[0].verb("report") == 0
    nodes[1].seconds_later(600)
    nodes[1].tell("exits", "1\n")
    nodes[1].first_boot()
    assert oracle.ended == [instance(1)]
    assert [message["title"] for message in oracle.messages] == [f"{RUN_ID}: the job left with 1"]


def test_a_boot_that_fails_on_one_ends_the_others(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[1].begun()
    nodes[0].tell("nvidia-smi.code", "9")
    nodes[0].first_boot()
    nodes[1].beat()
    assert set(oracle.ended) == {instance(0), instance(1)}
    assert nodes[1].status()["reason"].startswith("ended with node 0: nvidia-smi fails")
    assert "nvidia-smi fails" in oracle.messages[0]["body"]


def test_the_first_to_fail_stays_the_cause(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[0].begun()
    nodes[1].tell("exits", "137\n")
    nodes[1].first_boot()
    nodes[0].verb("end", "the job left with 1")
    (marker,) = [content for name, content in oracle.objects.items() if "/over-" in name]
    assert marker == b"node 1: the job left with 137\n"


def test_the_end_of_an_earlier_launch_ends_nothing(nodes: list[Machine], oracle: Oracle) -> None:
    oracle.objects[f"launches/{RUN_ID}/over-2020-01-01T00:00:00Z"] = b"node 1: the job left with 1\n"
    nodes[0].begun()
    nodes[0].beat()
    assert oracle.ended == []


def test_a_cancel_reaches_each(nodes: list[Machine], oracle: Oracle) -> None:
    for machine in nodes:
        machine.begun()
    oracle.objects[f"launches/{RUN_ID}/cancel"] = b""
    for machine in nodes:
        machine.beat()
    assert oracle.ended == [instance(0), instance(1)]
    assert [machine.status()["reason"] for machine in nodes] == ["cancelled", "cancelled"]


def test_each_has_a_watchdog_of_its_own(nodes: list[Machine], oracle: Oracle) -> None:
    oracle.fail.update({"/n/": 503})  # not even the bucket is needed
    for node, machine in enumerate(nodes):
        machine.begun()
        machine.start("gpu-job-deadline.service")
        assert oracle.ended[-1] == instance(node)


@pytest.mark.slow
def test_the_launchers_in_the_containers_meet_and_train(nodes: list[Machine], oracle: Oracle) -> None:
    """Boot, container, launcher and training together: the job itself runs in what stands for the containers."""
    oracle.objects[f"launches/{RUN_ID}/spec.yaml"] = SPEC
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    for machine in nodes:
        machine.containers_run(place)
    with ThreadPoolExecutor(2) as pool:
        for booted in [pool.submit(machine.first_boot) for machine in nodes]:
            booted.result()
    said = [machine.read("var/log/gpu-job/job.log") for machine in nodes]
    assert [machine.status()["reason"] for machine in nodes] == ["complete", "complete"], said
    assert sorted(oracle.ended) == [instance(0), instance(1)]
    assert [message["title"] for message in oracle.messages] == [f"{RUN_ID}: complete"]
    report = json.loads(nodes[0].read(f"var/lib/gpu-job/work/runs/{RUN_ID}/report.json"))
    assert report["status"] == "complete"
    assert nodes[0].status()["stepped"], "what the other node's first step is judged by"
    assert not (nodes[1].root / "var/lib/gpu-job/work/runs").exists(), "the first one has the results"
    for node, machine in enumerate(nodes):
        told = json.loads(machine.read("container.json"))
        assert (told["JOB_NODES"], told["JOB_NODE_RANK"]) == ("2", str(node))
        assert told["JOB_RENDEZVOUS"].endswith("-0.runs.gpujob.oraclevcn.com:29400")
        assert float(told["JOB_DEADLINE"]) > time.time()


@pytest.mark.parametrize("stepped", [True, False])
def test_the_first_step_is_the_first_nodes_to_tell(nodes: list[Machine], oracle: Oracle, stepped: bool) -> None:
    """Only the first node writes a heartbeat."""
    for machine in nodes:
        machine.begun()
    nodes[0].heartbeat(status="running", phase="train" if stepped else "prepare")
    assert nodes[0].verb("report") == 0
    assert nodes[0].status()["stepped"] is stepped
    nodes[1].seconds_later(1900)
    nodes[1].beat()
    assert oracle.ended == ([] if stepped else [instance(1)])


def test_a_bucket_out_of_reach_says_nothing_of_the_first_step(nodes: list[Machine], oracle: Oracle) -> None:
    nodes[1].begun()
    nodes[1].seconds_later(1900)
    oracle.fail["/n/"] = 503
    nodes[1].beat()
    assert oracle.ended == []


def test_rdma_reaches_the_container(nodes: list[Machine]) -> None:
    nodes[0].first_boot()
    run = next(line for line in nodes[0].read("engine.log").splitlines() if "--name gpu-job" in line)
    assert {"--device=/dev/infiniband", "--ulimit=memlock=-1"} <= set(run.split())


def test_an_image_without_rdma_is_refused_before_it_costs_more(nodes: list[Machine], oracle: Oracle) -> None:
    (nodes[0].root / "dev/infiniband").rmdir()
    nodes[0].first_boot()
    assert oracle.ended == [instance(0)]
    assert nodes[0].status()["reason"] == "RDMA is paid for, and the machine's image has no driver for it"
    assert "--name gpu-job" not in nodes[0].read("engine.log")


def test_one_node_asks_for_none_of_this(machine: Machine, oracle: Oracle) -> None:
    machine.first_boot()
    assert not [name for name in oracle.objects if "/over-" in name]
    assert machine.read("firewall.log") == ""
    assert "infiniband" not in machine.read("engine.log")
