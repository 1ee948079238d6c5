"""The scripts in a container, where cloud-init lays them down: /etc, /run, /var and /usr/local are theirs."""

import subprocess
from pathlib import Path

import pytest

from tests.infra.machine import Machine
from tests.infra.oracle import Oracle
from tests.infra.test_instance import RUN_ID

NAMESPACES = ["--mount", "--pid", "--fork"]


@pytest.fixture
def contained(machine: Machine) -> Machine:
    for namespaces in (NAMESPACES, ["--map-root-user", *NAMESPACES]):
        mounts = 'mount -t tmpfs none "$1" && mount -t proc none "$1"'
        probe = ["unshare", *namespaces, "sh", "-c", mounts, "sh", str(machine.root / "usr")]
        try:
            refused = subprocess.run(probe, capture_output=True, check=False).returncode
        except FileNotFoundError:
            break
        if not refused:
            machine.contain(namespaces)
            return machine
    pytest.skip("no namespaces can be made here (unshare --mount)")


def test_a_first_boot(contained: Machine, oracle: Oracle) -> None:
    contained.first_boot()
    assert oracle.refused == []
    assert oracle.terminated == 1
    assert contained.status()["reason"] == "complete"
    assert b"the job speaks" in oracle.objects[f"launches/{RUN_ID}/node-0/job.log"]
    assert contained.read("run/gpu-job/phase").strip() == "ending"
    assert not Path("/etc/gpu-job").exists(), "nothing reaches the machine around it"


@pytest.mark.parametrize(("what", "reason"), [("gpus", "driver branch"), ("pull.code", "pull")])
def test_whatever_fails_it_ends(contained: Machine, oracle: Oracle, what: str, reason: str) -> None:
    contained.tell(what, "1\n" if what == "pull.code" else "")
    contained.first_boot()
    assert oracle.terminated == 1
    assert reason in contained.status()["reason"]
