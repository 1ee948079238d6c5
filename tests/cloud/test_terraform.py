"""infra/run through the real binary and an offline provider: one state a try, errors as causes, nothing left.

Needs terraform and, in TF_CLI_CONFIG_FILE, a provider oracle/oci that answers offline; skips without.
"""

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from job.cloud import submit, terraform
from job.cloud.foundation import Foundation
from job.cloud.record import Try
from job.cloud.submit import Order
from job.cloud.terraform import Workdir
from job.errors import JobError, UsageError

ONE = Try(1, "VM.GPU.A10.1", "Uocm:EU-FRANKFURT-1-AD-1", "FAULT-DOMAIN-1", False, 1, 1_764_000_000.0, 7200, 2.0)


@pytest.fixture
def real(base: Foundation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workdir:
    if shutil.which("terraform") is None or "TF_CLI_CONFIG_FILE" not in os.environ:
        pytest.skip("needs terraform, and in TF_CLI_CONFIG_FILE a provider oracle/oci that answers offline")
    monkeypatch.setenv("JOB_TERRAFORM", "terraform")
    workdir = Workdir(tmp_path / "launch")
    try:
        terraform.prepare(workdir)
    except JobError as error:
        if "Failed to query available provider packages" not in error.what:
            raise
        pytest.skip("terraform can reach no provider oracle/oci; TF_CLI_CONFIG_FILE can name a mirror")
    return workdir


def variables(base: Foundation, made: Order, **changes: Any) -> dict[str, Any]:
    return {**submit.variables(base, made, ONE), "region": "eu-frankfurt-1", **changes}


def test_a_try_is_an_apply_with_a_state_of_its_own(real: Workdir, base: Foundation, made: Order) -> None:
    with terraform.locked(real, 1) as lock:
        ids, cause = terraform.apply(real, 1, variables(base, made), lock, print)
        assert cause is None
        assert len(ids) == 1
        assert ids[0].startswith("ocid1.instance.")
        assert terraform.identifiers(real, 1) == ids
        assert terraform.destroy(real, 1, lock)
    assert terraform.identifiers(real, 1) == []


def test_no_capacity_comes_through_as_such_and_leaves_nothing(
    real: Workdir, base: Foundation, made: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCI_STANDIN_FAIL", "oci_core_instance:500-InternalError, Out of host capacity.")
    with terraform.locked(real, 1) as lock:
        ids, cause = terraform.apply(real, 1, variables(base, made), lock, print)
        assert ids == []
        assert cause is not None
        assert cause.kind == "capacity"
        assert terraform.destroy(real, 1, lock)
    monkeypatch.delenv("OCI_STANDIN_FAIL")
    with terraform.locked(real, 2) as lock:
        assert len(terraform.apply(real, 2, variables(base, made), lock, print)[0]) == 1


def test_several_nodes_are_one_try_and_leave_together(real: Workdir, base: Foundation, made: Order) -> None:
    asked = variables(base, made, nodes=2, fault_domain=None)
    with terraform.locked(real, 1) as lock:
        _, cause = terraform.apply(real, 1, asked, lock, print)
        assert cause is not None
        assert (cause.kind, cause.reach) == ("refused", "all")
        assert "the nodes cannot reach each other" in cause.said
        group = "ocid1.networksecuritygroup.oc1..nodes"
        ids, cause = terraform.apply(real, 1, {**asked, "nodes_nsg_id": group}, lock, print)
        assert cause is None
        assert len(set(ids)) == 2
        assert terraform.destroy(real, 1, lock)
    assert terraform.identifiers(real, 1) == []


def test_a_rule_of_infra_run_is_refused_with_its_reason(real: Workdir, base: Foundation, made: Order) -> None:
    with terraform.locked(real, 1) as lock:
        _, cause = terraform.apply(real, 1, variables(base, made, shape="VM.Standard.E5.Flex"), lock, print)
        assert cause is not None
        assert (cause.kind, cause.reach) == ("refused", "all")
        assert "The job needs a GPU" in cause.said
        _, cause = terraform.apply(real, 1, variables(base, made, max_duration=60), lock, print)
        assert cause is not None
        assert cause.kind == "refused"
        assert "600 seconds" in cause.said


def test_the_module_is_copied_whole_and_once(base: Foundation, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "launch")
    terraform.prepare(workdir)
    names = {path.name for path in workdir.module.rglob("*")}
    assert {"instance.tf", "cloud-init.yaml.tftpl", "boot", "gpu-job.sh", "shapes.yaml"} <= names
    assert not [name for name in names if re.search(r"\.tfvars$|tftest|\.terraform", name)]
    (workdir.module / "instance.tf").unlink()
    terraform.prepare(workdir)
    assert not (workdir.module / "instance.tf").exists(), "a run's copy does not change under it"


def test_without_infra_or_terraform_the_cure_is_told(
    base: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_INFRA", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="submit from a checkout"):
        terraform.prepare(Workdir(tmp_path / "one"))
    monkeypatch.delenv("JOB_INFRA")
    monkeypatch.setenv("JOB_TERRAFORM", str(tmp_path / "no-terraform"))
    with pytest.raises(UsageError, match="Terraform cannot be started; install Terraform"):
        terraform.prepare(Workdir(tmp_path / "two"))


def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Workdir:
    """A workdir whose terraform is this script."""
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\nset -eu\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("JOB_TERRAFORM", str(path))
    workdir = Workdir(tmp_path / "launch")
    workdir.module.mkdir(parents=True)
    return workdir


def test_an_init_that_fails_says_why(base: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = binary(tmp_path, monkeypatch, "echo 'Error: Failed to query available provider packages'; exit 1")
    with pytest.raises(JobError, match=r"terraform init: Failed to query available provider .*\.log"):
        terraform.prepare(workdir)


def test_ctrl_c_is_handed_on_and_waited_for(base: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted terraform still writes, its state above all, is there when the interrupt goes on."""
    written = tmp_path / "written"
    script = f"trap 'echo state >{written}; exit 1' INT\nkill -INT $PPID\nwhile :; do sleep 0.05; done"
    workdir = binary(tmp_path, monkeypatch, script)
    said: list[str] = []
    with terraform.locked(workdir, 1) as lock, pytest.raises(KeyboardInterrupt):
        terraform.apply(workdir, 1, {}, lock, said.append)
    assert said == ["Stopping: Terraform writes down what it has made; Ctrl-C again does not wait for that."]
    assert written.read_text() == "state\n"


def test_a_terraform_that_outlives_its_submit_is_waited_for(tmp_path: Path) -> None:
    """The lock of a try goes down to the process, so it is held until that ends."""
    workdir = Workdir(tmp_path / "launch")
    with terraform.locked(workdir, 1) as lock:
        survivor = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    with (workdir.attempt(1) / "lock").open("a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    survivor.kill()
    survivor.wait()
    with terraform.locked(workdir, 1):
        pass
