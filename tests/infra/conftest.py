"""Terraform for the tests of infra/: a copy of both modules, so that nothing is written into the checkout.

The provider is whatever Terraform's own configuration finds (TF_CLI_CONFIG_FILE: a mirror or an offline stand-in).
Without terraform or provider these tests skip.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.infra.machine import HEALTHY, Machine
from tests.infra.oracle import LOG, TOPIC, Oracle

ROOT = Path(__file__).resolve().parents[2]
IDS = {"tenancy_ocid": "ocid1.tenancy.oc1..example", "compartment_ocid": "ocid1.compartment.oc1..example"}
RUN: dict[str, Any] = {
    **IDS,
    "region": "eu-frankfurt-1",
    "namespace": "example",
    "bucket": "gpu-job",
    "subnet_id": "ocid1.subnet.oc1..example",
    "nsg_id": "ocid1.networksecuritygroup.oc1..example",
    "run_id": "demo-20261124-1a2b3c",
    "image": "fra.ocir.io/example/gpu-job@sha256:" + "0" * 64,
    "shape": "VM.GPU.A10.1",
    "max_duration": 7200,
    "availability_domain": "Uocm:EU-FRANKFURT-1-AD-1",
    "log_id": LOG,
    "topic_id": TOPIC,
    "store_uri": "oci://gpu-job@example/runs",
    "toolkit": "packages/nvidia-container-toolkit-base-1.18.0-1.x86_64.rpm",
    "toolkit_sha256": "9f2d3f8f6a2a1a1f6b7e7a1f0b4a9d1c1de1d2b4c0a55a8f3a3b7c9e0f1a2b3c",
}

NO_PROVIDER = "Failed to query available provider packages"  # what init says of a registry out of reach
PACKAGE = b"stands for a package"


@dataclass(frozen=True)
class Module:
    """A root module in a folder of its own, initialised."""

    folder: Path

    def terraform(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["terraform", f"-chdir={self.folder}", *words], capture_output=True, text=True, check=check, timeout=600
        )

    def planned(self, name: str, **values: Any) -> dict[str, Any]:
        """The plan for these variables, as terraform shows it."""
        (self.folder / f"{name}.tfvars.json").write_text(json.dumps(values))
        self.terraform("plan", "-input=false", f"-var-file={name}.tfvars.json", f"-out={name}.plan")
        plan: dict[str, Any] = json.loads(self.terraform("show", "-json", f"{name}.plan").stdout)
        return plan


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Module]:
    if shutil.which("terraform") is None:
        pytest.skip("needs terraform")
    copy = tmp_path_factory.mktemp("modules")
    ours = shutil.ignore_patterns(".terraform*", "*.tfvars", "*.tfstate*")
    shutil.copytree(ROOT / "infra", copy / "infra", ignore=ours)
    (copy / "job/cloud").mkdir(parents=True)
    shutil.copy(ROOT / "job/cloud/shapes.yaml", copy / "job/cloud")
    found = {name: Module(copy / "infra" / name) for name in ("foundation", "run")}
    for module in found.values():
        done = module.terraform("init", "-input=false", "-backend=false", check=False)
        if NO_PROVIDER in done.stderr:
            pytest.skip("terraform can reach no provider oracle/oci; TF_CLI_CONFIG_FILE can name a mirror")
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="session")
def user_data(modules: dict[str, Module]) -> str:
    """cloud-init of a run with one GPU, as the instance gets it."""
    text: str = modules["run"].planned("plain", **RUN)["planned_values"]["outputs"]["user_data"]["value"][0]
    return text


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    folder = tmp_path / "oracle"
    folder.mkdir()
    with Oracle(folder) as server:
        server.objects["launches/demo-20261124-1a2b3c/spec.yaml"] = b"name: demo\n"
        yield server


@pytest.fixture
def machine(tmp_path: Path, oracle: Oracle, user_data: str) -> Machine:
    return prepared(Machine(tmp_path / "machine", oracle, user_data))


@pytest.fixture(scope="session")
def cluster(modules: dict[str, Module]) -> list[str]:
    """cloud-init of each of two nodes with RDMA."""
    nodes = {"nodes": 2, "nodes_nsg_id": "ocid1.networksecuritygroup.oc1..nodes", "shape": "BM.GPU.L40S.4"}
    values = {**RUN, **nodes, "compute_cluster_id": "ocid1.computecluster.oc1..example"}
    plan = modules["run"].planned("cluster", **values)
    found: list[str] = plan["planned_values"]["outputs"]["user_data"]["value"]
    return found


@pytest.fixture
def nodes(tmp_path: Path, oracle: Oracle, cluster: list[str]) -> list[Machine]:
    made = [Machine(tmp_path / f"node-{node}", oracle, data, node) for node, data in enumerate(cluster)]
    for machine in made:
        machine.tell("gpus", HEALTHY * 4)
        (machine.root / "dev/infiniband").mkdir(parents=True)
    return [prepared(machine) for machine in made]


def prepared(machine: Machine) -> Machine:
    machine.oracle.objects[RUN["toolkit"]] = PACKAGE
    pin(machine, PACKAGE)
    return machine


def pin(machine: Machine, package: bytes) -> None:
    """The checksum that the run was given is this package's."""
    env = machine.root / "etc/gpu-job/env"
    env.write_text(env.read_text().replace(RUN["toolkit_sha256"], hashlib.sha256(package).hexdigest()))
