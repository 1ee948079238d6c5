"""The Terraform modules as a whole: form, their own tests, a life from apply to destroy, Resource Manager's forms."""

import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.conftest import IDS, RUN, Module

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("foundation", "run")
# outputs for people and submit, no variables of run
SEAM_ONLY = {"repository", "prefix", "nat", "log_group_id", "rdma_availability_domain", "managed"}


def blocks(path: Path, kind: str) -> dict[str, str]:
    """Name and body of each block of that kind."""
    return dict(
        re.findall(rf'^{kind} "(\w+)" \{{\n(.*?)^\}}', path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_typed_and_described_in_that_order(name: str) -> None:
    for variable, body in blocks(ROOT / "infra" / name / "variables.tf", "variable").items():
        keys = re.findall(r"^  (description|type|default|validation)\b", body, re.MULTILINE)
        assert keys[:2] == ["description", "type"], variable
        assert sorted(keys, key=["description", "type", "default", "validation"].index) == keys, variable
        for reason in re.findall(r'error_message = "(.*)"', body):
            assert len(reason.split()) > 5, f"{variable}: says why"


@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_described(name: str) -> None:
    found = blocks(ROOT / "infra" / name / "outputs.tf", "output")
    assert found
    assert [output for output, body in found.items() if "description =" not in body] == []


def test_nothing_secret_is_asked_for() -> None:
    for name in NAMES:
        asked = blocks(ROOT / "infra" / name / "variables.tf", "variable")
        assert [word for word in asked if re.search("password|token|private|secret|fingerprint", word)] == []


def test_outputs_of_the_foundation_are_variables_of_a_run() -> None:
    given = blocks(ROOT / "infra/foundation/outputs.tf", "output")
    taken = blocks(ROOT / "infra/run/variables.tf", "variable")
    assert set(given) - set(taken) == SEAM_ONLY


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_validated_and_every_rule_has_a_test(name: str) -> None:
    """A switch has its type. What may be on or off cannot be wrong otherwise."""
    module = ROOT / "infra" / name
    variables = blocks(module / "variables.tf", "variable")
    rules = {variable: body.count("validation {") for variable, body in variables.items()}
    switches = {variable for variable, body in variables.items() if re.search(r"type += bool", body)}
    assert {variable for variable, count in rules.items() if count == 0} == switches
    refused = (module / "tests/rules.tftest.hcl").read_text()
    tested = Counter(re.findall(r"\bvar\.(\w+),", refused))
    assert {variable: tested[variable] for variable in rules if tested[variable] < rules[variable]} == {}


def test_every_precondition_has_a_test() -> None:
    rules = (ROOT / "infra/run/instance.tf").read_text().count("precondition {")
    tested = len(re.findall(r"expect_failures = \[oci_core_", (ROOT / "infra/run/tests/rules.tftest.hcl").read_text()))
    assert tested >= rules > 0


@pytest.mark.parametrize("name", NAMES)
def test_terraforms_own_tests_pass(modules: dict[str, Module], name: str) -> None:
    done = modules[name].terraform("test", "-no-color", check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert re.search(r"Success! \d+ passed, 0 failed", done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_form_and_validity(modules: dict[str, Module], name: str) -> None:
    modules[name].terraform("fmt", "-check", "-recursive")
    modules[name].terraform("validate")


def test_a_life_from_apply_to_destroy(modules: dict[str, Module]) -> None:
    """The foundation's outputs make a run; a second plan of the foundation makes nothing anew."""
    foundation, run = modules["foundation"], modules["run"]
    named = [f"-var={key}={value}" for key, value in {**IDS, "region": "eu-frankfurt-1"}.items()]
    options = ["-input=false", "-no-color", *named]
    foundation.terraform("apply", "-auto-approve", *options)
    again = foundation.terraform("plan", *options).stdout
    assert re.search(r"No changes\.|Plan: 0 to add, \d+ to change, 0 to destroy", again), again
    given = {key: each["value"] for key, each in json.loads(foundation.terraform("output", "-json").stdout).items()}
    own = {key: RUN[key] for key in ("run_id", "image", "shape", "max_duration")}
    values = {key: value for key, value in given.items() if key not in SEAM_ONLY and value is not None} | own
    (run.folder / "life.tfvars.json").write_text(json.dumps(values))
    run.terraform("apply", "-auto-approve", "-input=false", "-var-file=life.tfvars.json")
    launched = json.loads(run.terraform("output", "-json").stdout)
    assert len(launched["instance_ids"]["value"]) == 1
    run.terraform("destroy", "-auto-approve", "-input=false", "-var-file=life.tfvars.json")
    foundation.terraform("destroy", "-auto-approve", *options)


def test_a_launch_that_fails_leaves_no_instance(modules: dict[str, Module], monkeypatch: pytest.MonkeyPatch) -> None:
    run = modules["run"]
    (run.folder / "full.tfvars.json").write_text(json.dumps(RUN))
    monkeypatch.setenv("OCI_STANDIN_FAIL", "oci_core_instance:500-InternalError, Out of host capacity.")
    state = ("-state=full.tfstate", "-input=false", "-var-file=full.tfvars.json")
    done = run.terraform("apply", "-auto-approve", "-no-color", *state, check=False)
    if done.returncode == 0:
        pytest.skip("this provider is no stand-in that can fail")
    assert "Out of host capacity" in done.stderr
    listed = run.terraform("state", "list", "-state=full.tfstate").stdout.split()
    assert [name for name in listed if name.startswith("oci_core_instance")] == []


@pytest.mark.parametrize("name", NAMES)
def test_resource_managers_form_fits_the_variables(name: str) -> None:
    form: dict[str, Any] = yaml.safe_load((ROOT / "infra" / name / "schema.yaml").read_text(encoding="utf-8"))
    known = blocks(ROOT / "infra" / name / "variables.tf", "variable")
    grouped = [word.strip("${}") for group in form["variableGroups"] for word in group["variables"]]
    assert sorted(grouped) == sorted(known), "each variable is in one group"
    assert set(form["variables"]) <= set(known)
    for variable, told in form["variables"].items():
        assert told["required"] == ("default " not in known[variable]), variable
    assert set(form["outputs"]) <= set(blocks(ROOT / "infra" / name / "outputs.tf", "output"))


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_for_resource_manager_stands_alone(modules: dict[str, Module], tmp_path: Path, name: str) -> None:
    """The zip has the files at its root, the table of shapes beside them, and no state or variables."""
    subprocess.run(["make", "-C", str(ROOT), "stacks", f"STACKS={tmp_path}"], check=True, capture_output=True)
    with zipfile.ZipFile(tmp_path / f"{name}.zip") as stack:
        names = stack.namelist()
        stack.extractall(tmp_path / name)
    assert {"versions.tf", "schema.yaml"} <= set(names)
    assert ("shapes.yaml" in names) == (name == "run")
    assert [entry for entry in names if "tfstate" in entry or entry.endswith((".tfvars", ".tfvars.json"))] == []
    alone = Module(tmp_path / name)
    shutil.copytree(modules[name].folder / ".terraform", alone.folder / ".terraform", symlinks=True)
    shutil.copy(modules[name].folder / ".terraform.lock.hcl", alone.folder)
    alone.terraform("validate")
