"""Rights: every statement is parsed by OCI's grammar, limited to the compartment, and conditional."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from oci_lexer_parser import parse_dynamic_group_matching_rules, parse_policy_statements

from tests.infra.conftest import IDS, Module

EVERYTHING = {**IDS, "region": "eu-frankfurt-1", "allow_data_science": "true", "allow_batch": "true"}
VARIABLES = [f"-var={key}={value}" for key, value in EVERYTHING.items()]
BATCH = {"batchjob", "batchcontextinfrastructure"}  # types of principal, as Oracle documents them


@pytest.fixture(scope="module")
def resources(modules: dict[str, Module]) -> dict[str, dict[str, Any]]:
    """Values of the foundation's resources, applied: statements name OCIDs that are known only then."""
    foundation = modules["foundation"]
    state = "-state=policies.tfstate"
    foundation.terraform("apply", "-auto-approve", "-input=false", state, *VARIABLES)
    shown = json.loads(foundation.terraform("show", "-json", "policies.tfstate").stdout)
    return {each["address"]: each["values"] for each in shown["values"]["root_module"]["resources"]}


@pytest.fixture(scope="module")
def statements(resources: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    texts = [
        text
        for name, values in resources.items()
        if name.startswith("oci_identity_policy.")
        for text in values["statements"]
    ]
    assert len(texts) > 20
    return parsed(texts)


def parsed(texts: list[str]) -> list[dict[str, Any]]:
    answer = parse_policy_statements(texts, error_mode="raise")
    assert isinstance(answer, dict)
    found: list[dict[str, Any]] = answer["statements"]
    assert len(found) == len(texts)
    return found


def clauses(node: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Every comparison in a condition: variable and value."""
    if node is None:
        return
    if node["type"] == "clause":
        yield node["node"]["lhs"], node["node"]["rhs"]["value"]
    for item in node.get("items", []):
        yield from clauses(item)


def faults(statement: dict[str, Any]) -> list[str]:
    """What is wrong with a statement, by the rules of this project."""
    found = []
    if statement["resources"]["type"] == "all-resources":
        found.append("all resources")
    if statement["location"]["type"] != "compartment-id":
        found.append("not one compartment")
    told = list(clauses(statement.get("conditions")))
    if not told:
        found.append("no condition")
    if statement["subject"]["type"] not in ("dynamic-group", "service"):
        principal = dict(told)
        of_ours = principal.get("request.principal.compartment.id") == IDS["compartment_ocid"]
        always = statement["conditions"] is not None and statement["conditions"].get("mode") == "all"
        if not (of_ours and always) or principal.get("request.principal.type") not in BATCH:
            found.append("anybody")
    writes = statement["actions"]["values"] == ["manage"]
    if writes and not any(name.startswith(("target.bucket.name", "request.operation")) for name, _ in told):
        found.append("manages without naming bucket or operation")
    return found


def test_no_statement_grants_more_than_it_must(statements: list[dict[str, Any]]) -> None:
    assert [(statement["resources"], wrong) for statement in statements if (wrong := faults(statement))] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "Allow any-user to read objects in compartment id ocid1.compartment.oc1..c where target.bucket.name = 'b'",
            "anybody",
        ),
        (
            "Allow any-user to read objects in compartment id ocid1.compartment.oc1..c"
            " where all {request.principal.type = 'batchjob', target.bucket.name = 'b'}",
            "anybody",
        ),
        ("Allow dynamic-group d to manage all-resources in compartment id ocid1.compartment.oc1..c", "all resources"),
        ("Allow dynamic-group d to read objects in tenancy where target.bucket.name = 'b'", "not one compartment"),
        ("Allow dynamic-group d to use ons-topics in compartment id ocid1.compartment.oc1..c", "no condition"),
        (
            "Allow dynamic-group d to manage instances in compartment id ocid1.compartment.oc1..c"
            " where target.resource.tag.gpu_job.role = 'run'",
            "manages without naming bucket or operation",
        ),
    ],
)
def test_the_rules_know_a_bad_statement(text: str, fault: str) -> None:
    assert fault in faults(parsed([text])[0])


def of(statements: list[dict[str, Any]], who: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Verb, resource and comparisons of what this group, service or type of principal is allowed."""
    found = []
    for each in statements:
        told = list(clauses(each["conditions"]))
        names = [subject["label"] for subject in each["subject"]["values"]]
        if who in names or ("request.principal.type", who) in told:
            asked = [(name, value) for name, value in told if not name.startswith("request.principal.")]
            found.append((each["actions"]["values"][0], each["resources"]["values"][0], asked))
    return found


def by_resource(
    statements: list[dict[str, Any]], resource: str, who: str = "gpu-job-runs"
) -> list[list[tuple[str, str]]]:
    return [told for _, kind, told in of(statements, who) if kind == resource]


def test_only_instances_of_runs_can_be_terminated(statements: list[dict[str, Any]]) -> None:
    assert by_resource(statements, "instances") == [
        [("request.operation", "TerminateInstance"), ("target.resource.tag.gpu_job.role", "run")]
    ]


def test_writing_is_limited_to_the_bucket_and_two_folders(statements: list[dict[str, Any]]) -> None:
    writing = [told for told in by_resource(statements, "objects") if ("request.permission", "OBJECT_CREATE") in told]
    assert len(writing) == 1
    assert ("target.bucket.name", "gpu-job") in writing[0]
    assert [value for name, value in writing[0] if name == "target.object.name"] == ["runs/*", "launches/*"]
    assert {value for name, value in writing[0] if name == "request.permission"} == {
        "OBJECT_CREATE", "OBJECT_OVERWRITE", "OBJECT_DELETE"
    }, "versions cannot be deleted"  # fmt: skip


def test_one_repository_and_one_log_group(
    statements: list[dict[str, Any]], resources: dict[str, dict[str, Any]]
) -> None:
    assert by_resource(statements, "repos") == [[("target.repo.name", "gpu-job")]]
    group = resources["oci_logging_log_group.this"]["id"]
    assert by_resource(statements, "log-content") == [[("target.loggroup.id", group)]]


DATA = ("buckets", "objects", "log-content")  # what a job needs; pulling is the scheduler's


@pytest.mark.parametrize(
    ("who", "resources_of_it"),
    [
        ("gpu-job-data-science", {*DATA, "repos"}),
        ("batchjob", {*DATA}),
        ("batchcontextinfrastructure", {"repos", "log-content"}),
    ],
)
def test_a_scheduler_may_do_what_an_instance_may_and_no_more(
    statements: list[dict[str, Any]], who: str, resources_of_it: set[str]
) -> None:
    allowed = of(statements, who)
    assert {resource for _, resource, _ in allowed} == resources_of_it
    assert [right for right in allowed if right not in of(statements, "gpu-job-runs")] == []


def test_data_science_itself_may_attach_to_the_network_and_change_nothing_of_it(
    statements: list[dict[str, Any]],
) -> None:
    ((verb, resource, told),) = of(statements, "datascience")
    assert (verb, resource) == ("use", "virtual-network-family")
    assert {name for name, _ in told} == {"request.permission"}
    assert {permission.partition("_")[0] for _, permission in told} == {"VCN", "SUBNET", "VNIC"}
    assert not [permission for _, permission in told if permission.endswith(("UPDATE", "MANAGE"))]


def members(group: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a member of the dynamic group has to be, all of it."""
    answer = parse_dynamic_group_matching_rules(group["matching_rule"], error_mode="raise")
    assert isinstance(answer, dict)
    expression = answer["rules"][0]["expr"]
    assert expression["mode"] == "all"
    return list(clauses(expression))


def test_the_job_runs_of_data_science_are_those_of_the_compartment(resources: dict[str, dict[str, Any]]) -> None:
    assert members(resources["oci_identity_dynamic_group.data_science[0]"]) == [
        ("resource.type", "datasciencejobrun"), ("resource.compartment.id", IDS["compartment_ocid"])
    ]  # fmt: skip


def test_the_group_is_the_runs_by_compartment_and_tag(resources: dict[str, dict[str, Any]]) -> None:
    assert members(resources["oci_identity_dynamic_group.runs"]) == [
        ("instance.compartment.id", IDS["compartment_ocid"]), ("tag.gpu_job.role.value", "run")
    ]  # fmt: skip
