"""User data as it is rendered: its size, its schema, and that the scripts in it are the checked ones."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.infra.conftest import RUN, Module
from tests.infra.machine import content

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_small(user_data: str, cluster: list[str]) -> None:
    for text in (user_data, *cluster):
        assert len(text.encode()) <= 16 * 1024
        assert len(base64.b64encode(text.encode())) <= 32_000, "what OCI takes as metadata"


def test_cloud_inits_schema(user_data: str, tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("needs cloud-init")
    (tmp_path / "user-data").write_text(user_data)
    check = ["cloud-init", "schema", "--config-file", str(tmp_path / "user-data")]
    assert "Valid cloud-config" in subprocess.run(check, check=True, capture_output=True, text=True).stdout


def test_the_scripts_are_those_of_the_checkout(user_data: str) -> None:
    files = {entry["path"]: content(entry) for entry in yaml.safe_load(user_data)["write_files"]}
    boot = ROOT / "infra/run/boot"
    first, *script = (boot / "gpu-job.sh").read_text().splitlines(keepends=True)
    code = [line for line in script if not line.lstrip().startswith("#")]  # comments would take room
    assert files["/usr/local/sbin/gpu-job"].decode() == "".join([first, *code])
    assert files["/usr/local/lib/gpu-job/oci.py"] == (boot / "oci.py").read_bytes()


def test_files_with_settings_are_roots_alone(user_data: str) -> None:
    modes = {entry["path"]: entry.get("permissions") for entry in yaml.safe_load(user_data)["write_files"]}
    assert modes["/etc/gpu-job/env"] == modes["/etc/gpu-job/job.env"] == "0600"


def test_the_settings_survive_bash(modules: dict[str, Module], tmp_path: Path) -> None:
    """Every value arrives as it was given, also one with blanks, dollars and quotes for the container."""
    odd = "a b $HOME \"c\" 'd'"
    plan = modules["run"].planned(
        "odd", **RUN, environment={"ODD": odd}, command=["run", "/spec.yaml", "--set", "name=a b"]
    )
    data = yaml.safe_load(plan["planned_values"]["outputs"]["user_data"]["value"][0])
    files = {entry["path"]: content(entry).decode() for entry in data["write_files"]}
    assert f"ODD={odd}\n" in files["/etc/gpu-job/job.env"], "an --env-file is taken to the letter"
    assert files["/etc/gpu-job/command"].splitlines() == ["run", "/spec.yaml", "--set", "name=a b"]
    (tmp_path / "env").write_text(files["/etc/gpu-job/env"])
    shell = ["bash", "-euc", f'. {tmp_path}/env; echo "$RUN_ID $MAX_DURATION $GPUS $MIN_DRIVER [$SUBNET_CIDR]"']
    told = subprocess.run(shell, check=True, capture_output=True, text=True).stdout
    assert told == f"{RUN['run_id']} 7200 1 580 [10.77.0.0/22]\n"
