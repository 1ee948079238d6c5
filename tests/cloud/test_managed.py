"""Payloads for Data Science and Batch are what the SDK's own models take, and starting twice starts once."""

from typing import Any

import oci.batch.models
import oci.data_science.models
import pytest

from job import environment
from job.cloud import managed
from job.cloud.foundation import Foundation
from job.cloud.submit import Order, order
from job.errors import UsageError
from tests.cloud.conftest import IMAGE
from tests.cloud_server.server import COMPARTMENT, CloudServer

PROJECT = "ocid1.datascienceproject.oc1..test"


def read(models: Any, kind: str, value: dict[str, Any]) -> Any:
    """A model from its JSON, as the SDK reads answers; a name it does not know or a wrong type fails."""
    model = getattr(models, kind)()
    names = {wire: name for name, wire in model.attribute_map.items()}
    for wire, content in value.items():
        setattr(model, names[wire], content)
    return model


def test_a_data_science_job_runs_the_image_by_digest(base: Foundation, made: Order) -> None:
    job = managed.job(base, made, PROJECT)
    environment = job.job_environment_configuration_details
    assert environment.job_environment_type == "OCIR_CONTAINER"
    assert f"{environment.image}@{environment.image_digest}" == IMAGE
    assert environment.cmd == ["run", "oci://bucket@space/launches/digits-1/spec.yaml", "--run-id", "digits-1"]
    infrastructure = job.job_infrastructure_configuration_details
    assert infrastructure.job_infrastructure_type == "STANDALONE"
    assert infrastructure.shape_name == "VM.GPU.A10.1"
    assert infrastructure.block_storage_size_in_gbs >= 50
    configuration = job.job_configuration_details
    assert configuration.job_type == "DEFAULT"
    assert configuration.maximum_runtime_in_minutes == 120
    assert (job.project_id, job.compartment_id) == (PROJECT, COMPARTMENT)


def test_its_run_is_of_that_job(base: Foundation, made: Order) -> None:
    run = managed.run(base, made, PROJECT, "ocid1.datasciencejob.oc1..a")
    assert isinstance(run, oci.data_science.models.CreateJobRunDetails)
    assert (run.job_id, run.display_name) == ("ocid1.datasciencejob.oc1..a", "digits-1")


def test_starting_twice_starts_once(base: Foundation, made: Order, server: CloudServer) -> None:
    first = managed.start(base, made, PROJECT)
    assert managed.start(base, made, PROJECT) == first
    assert "ACCEPTED" in first
    kinds = [identifier.split(".")[1] for identifier, _ in server.tenancy.science]
    assert kinds == ["datasciencejobs", "datasciencejobruns"]
    assert server.tenancy.science[1][1]["jobId"] == server.tenancy.science[0][0]
    assert "launches/digits-1/spec.yaml" in server.objects


def test_a_project_is_needed(base: Foundation, made: Order) -> None:
    with pytest.raises(UsageError, match="a Data Science job belongs to a project"):
        managed.start(base, made, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch-context", "CreateBatchContextDetails"),
        ("batch-job-pool", "CreateBatchJobPoolDetails"),
        ("batch-task-environment", "CreateBatchTaskEnvironmentDetails"),
        ("batch-task-profile", "CreateBatchTaskProfileDetails"),
        ("batch-job", "CreateBatchJobDetails"),
    ],
)
def test_batch_resources_are_the_services_own_json(base: Foundation, made: Order, name: str, kind: str) -> None:
    rendered = managed.batch(base, made)
    assert next(iter(rendered)) == "batch-context", "in the order they are created in"
    model = read(oci.batch.models, kind, rendered[name])
    assert model.compartment_id == COMPARTMENT


def test_a_batch_task_says_what_a_run_says(base: Foundation, made: Order) -> None:
    rendered = managed.batch(base, made)
    (task,) = rendered["batch-job"]["tasks"]
    model = read(oci.batch.models, "CreateComputeTaskDetails", task)
    assert model.type == "COMPUTE"
    assert model.arguments == managed.words(base, made)
    assert {"name": "JOB_RUN_ID", "value": "digits-1"} in model.environment_variables
    (fleet,) = rendered["batch-context"]["fleets"]
    shape = read(oci.batch.models, "CreateFixedGpuFleetShapeDetails", fleet["shape"])
    assert fleet["type"] == "SERVICE_MANAGED_GPU_FLEET"
    assert (shape.type, shape.shape_name) == ("FIXED_GPU_FLEET_SHAPE", "VM.GPU.A10.1")
    profile = rendered["batch-task-profile"]
    assert (profile["minOcpus"], profile["minMemoryInGBs"]) == (15, 240)


def test_batch_logs_where_the_foundation_does(base: Foundation, made: Order) -> None:
    assert "loggingConfiguration" not in managed.batch(base, made)["batch-context"]
    logged = Foundation({**base.values, "log_id": "ocid1.log.oc1..a", "log_group_id": "ocid1.loggroup.oc1..a"})
    told = managed.batch(logged, made)["batch-context"]["loggingConfiguration"]
    assert told == {"type": "OCI_LOGGING", "logGroupId": "ocid1.loggroup.oc1..a", "logId": "ocid1.log.oc1..a"}
    science = managed.job(logged, made, PROJECT).job_log_configuration_details
    assert (science.log_group_id, science.log_id) == ("ocid1.loggroup.oc1..a", "ocid1.log.oc1..a")
    assert science.enable_auto_log_creation is False


def test_a_scheduler_without_rights_is_not_asked(base: Foundation, made: Order, server: CloudServer) -> None:
    one = Foundation({**base.values, "managed": ["data-science"]})
    managed.start(one, made, PROJECT)
    with pytest.raises(UsageError, match="no rights; set allow_batch = true in infra/foundation"):
        managed.batch(one, made)
    with pytest.raises(UsageError, match="no rights; set allow_data_science = true"):
        managed.start(Foundation({**base.values, "managed": []}), made, PROJECT)
    assert len(server.tenancy.science) == 2


def test_what_the_managed_ways_cannot_do_is_refused(base: Foundation, spec: Any) -> None:
    preemptible = order(
        str(spec), ["resources.preemptible=true", "resources.shape=VM.GPU3.1"], base, run_id="digits-1", image=IMAGE
    )
    with pytest.raises(UsageError, match="several nodes and preemptible capacity are not to be had here"):
        managed.start(base, preemptible, PROJECT)
    several = order(str(spec), ["resources.nodes=2"], base, run_id="digits-1", image=IMAGE)
    with pytest.raises(UsageError, match="--to batch: several nodes"):
        managed.batch(base, several)
    unknown = order(str(spec), ["resources.shape=VM.GPU.NEW"], base, run_id="digits-1", image=IMAGE)
    with pytest.raises(UsageError, match=r"VM\.GPU\.NEW is not in the table"):
        managed.batch(base, unknown)


def test_the_manifests_facts_name_the_schedulers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_RUN_OCID", "ocid1.datasciencejobrun.oc1..one")
    monkeypatch.setenv("OCI_BATCH_JOB_ID", "ocid1.batchjob.oc1..two")
    facts = environment.facts()
    assert facts["data_science_job_run"] == "ocid1.datasciencejobrun.oc1..one"
    assert facts["batch_job"] == "ocid1.batchjob.oc1..two"
