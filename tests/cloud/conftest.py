"""A small tenancy on the loopback for every test here: a foundation, a signed-in desk, a clock that waiting moves."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.cloud import clients, foundation
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.cloud.submit import Order, order
from job.storage.store import open_store
from tests.cloud_server.server import COMPARTMENT, CloudServer
from tests.object_storage.identity import TENANCY, write_config

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "phx.ocir.io/space/gpu-job@sha256:" + "a" * 64
SPEC = """
name: digits
dataset: {name: digits}
model: {name: resnet9, width: 4}
resources: {shape: VM.GPU.A10.1, max_duration: 2h}
"""


@dataclass
class Clock:
    """Time that passes by sleeping only."""

    now: float = field(default_factory=time.time)
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Tell:
    """Writes what a run's instance and its job would write into the bucket."""

    def __init__(self, desk: Desk, run_id: str, clock: Clock, folder: Path) -> None:
        self.desk, self.run_id, self.clock, self.scratch = desk, run_id, clock, folder / "scratch"

    def job(self, **fields: Any) -> None:
        """The heartbeat."""
        self.put("status.json", {"run_id": self.run_id, "time": self.clock.now, **fields})

    def instance(self, **fields: Any) -> None:
        """What a node says of itself, the first unless `node` says another."""
        told = {"run_id": self.run_id, "node": 0, "time": self.clock.now, "exit": "", "reason": "", **fields}
        self.scratch.write_text(json.dumps(told))
        self.desk.launches.put(self.scratch, f"{self.run_id}/node-{told['node']}/status.json")

    def log(self, name: str, text: str, node: int = 0) -> None:
        self.scratch.write_text(text)
        self.desk.launches.put(self.scratch, f"{self.run_id}/node-{node}/{name}")

    def put(self, name: str, value: Any) -> None:
        self.put_text(name, json.dumps(value))

    def put_text(self, name: str, text: str) -> None:
        self.scratch.write_text(text)
        self.desk.results.put(self.scratch, f"{self.run_id}/{name}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CloudServer]:
    with CloudServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def base(server: CloudServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foundation:
    """The foundation's outputs in a file, and an environment in which everything finds the loopback."""
    outputs = {
        "tenancy_ocid": TENANCY,
        "compartment_ocid": COMPARTMENT,
        "region": "us-phoenix-1",
        "namespace": "space",
        "bucket": "bucket",
        "prefix": "runs",
        "store_uri": "oci://bucket@space/runs",
        "repository": "phx.ocir.io/space/gpu-job",
        "subnet_id": "ocid1.subnet.oc1..test",
        "nsg_id": "ocid1.networksecuritygroup.oc1..test",
        "tag_namespace": "gpu_job",
        "nat": False,
    }
    path = tmp_path / "foundation.json"
    path.write_text(json.dumps({name: {"value": value, "type": "string"} for name, value in outputs.items()}))
    binary = tmp_path / "terraform"
    binary.write_text(f'#!/bin/sh\nset -eu\nexec {sys.executable} {ROOT}/tests/cloud_server/terraform.py "$@"\n')
    binary.chmod(0o755)
    for name, value in {
        "JOB_FOUNDATION": path,
        "JOB_TERRAFORM": binary,
        "JOB_CACHE_DIR": tmp_path / "cache",
        "JOB_OCI_ENDPOINT": server.endpoint,
        "OCI_CONFIG_FILE": write_config(tmp_path / "oci", server.identity),
        "OCI_CLI_AUTH": "api_key",
        "JOB_OWNER": "ada",
    }.items():
        monkeypatch.setenv(name, str(value))
    return foundation.read()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def desk(base: Foundation, clock: Clock, said: list[str]) -> Desk:
    stores = open_store(base.launches_uri), open_store(base.store_uri)
    return Desk(clients.connect(base), *stores, clock, clock.sleep, said.append)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def made(base: Foundation, spec: Path) -> Order:
    return order(str(spec), [], base, run_id="digits-1", image=IMAGE)
