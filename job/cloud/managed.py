"""The same image and spec under Oracle's own schedulers: a Data Science job, or the resources of OCI Batch.

    submit SPEC --to data-science --project OCID     creates the job and starts its run
    submit SPEC --to batch                           prints what `oci batch … create --from-json` takes, in order

Both sign in as a resource principal; infra/foundation gives it rights with allow_data_science or allow_batch. The
container fetches its spec from the bucket; its manifest then names JOB_RUN_OCID or OCI_BATCH_JOB_ID.
"""

import tempfile
from pathlib import Path
from typing import Any

from job.cloud import estimate, record
from job.cloud.foundation import Foundation
from job.cloud.shapes import table
from job.cloud.submit import Order
from job.errors import UsageError
from job.runfolder import write_text
from job.spec.load import dump
from job.storage.store import open_store

STORAGE_GB = 150  # as infra/run's boot volume: image, data and the run's folder
SMALLEST_GB = 50  # of Data Science's block storage
FLEET = "gpu"
LATER = "OCID_OF_THE_{}"  # what the step before answers with


def words(foundation: Foundation, made: Order) -> list[str]:
    """What follows the image's entrypoint."""
    return ["run", f"{foundation.launches_uri}/{made.run_id}/{record.SPEC}", "--run-id", made.run_id]


def job(foundation: Foundation, made: Order, project: str) -> Any:
    """oci.data_science's CreateJobDetails."""
    from oci.data_science import models

    environment = _environment(made)
    return models.CreateJobDetails(
        project_id=project,
        compartment_id=foundation.compartment,
        display_name=made.run_id,
        freeform_tags={"project": "gpu-job", "run_id": made.run_id},
        job_configuration_details=models.DefaultJobConfigurationDetails(
            environment_variables=environment,
            maximum_runtime_in_minutes=_seconds(made) // 60,
        ),
        job_infrastructure_configuration_details=models.StandaloneJobInfrastructureConfigurationDetails(
            shape_name=made.shapes[0],
            subnet_id=foundation.values.get("subnet_id"),
            block_storage_size_in_gbs=max(SMALLEST_GB, STORAGE_GB),
        ),
        job_environment_configuration_details=models.OcirContainerJobEnvironmentConfigurationDetails(
            image=made.image.partition("@")[0],
            image_digest=made.image.partition("@")[2],
            cmd=words(foundation, made),
        ),
        job_log_configuration_details=_job_log(foundation, models),
    )


def run(foundation: Foundation, made: Order, project: str, job_id: str) -> Any:
    """oci.data_science's CreateJobRunDetails."""
    from oci.data_science import models

    return models.CreateJobRunDetails(
        project_id=project, compartment_id=foundation.compartment, job_id=job_id, display_name=made.run_id
    )


def start(foundation: Foundation, made: Order, project: str | None) -> str:
    """Uploads the spec, creates the job and its run; says which. Safe to repeat: the retry tokens are the run's id."""
    import oci.data_science

    from job.cloud import clients

    if project is None:
        cure = "--project OCID; the console shows it under Data Science, Projects"
        raise UsageError("--project", "a Data Science job belongs to a project", cure)
    _may_be_sent(foundation, made, "data-science")
    upload_spec(foundation, made)
    (service,) = clients.signed_in(foundation, oci.data_science.DataScienceClient)
    created = clients.ask(service.create_job, job(foundation, made, project), opc_retry_token=f"job-{made.run_id}").data
    details = run(foundation, made, project, created.id)
    started = clients.ask(service.create_job_run, details, opc_retry_token=f"run-{made.run_id}").data
    return f"job {created.id}\nrun {started.id}: {started.lifecycle_state}"


def batch(foundation: Foundation, made: Order) -> dict[str, Any]:
    """What to create in OCI Batch, by name and in order, as the service's own JSON. Nothing is sent."""
    from oci.batch import models

    _may_be_sent(foundation, made, "batch")
    shape = made.shapes[0]
    known = table()[1].get(shape)
    if known is None:
        raise UsageError("resources.shape", f"{shape} is not in the table of shapes", "name a shape with a known size")
    compartment = foundation.compartment
    groups = [foundation.values[name] for name in ("nsg_id",) if foundation.values.get(name)]
    group, log = foundation.values.get("log_group_id"), foundation.values.get("log_id")
    context = models.CreateBatchContextDetails(
        compartment_id=compartment,
        display_name="gpu-job",
        network=models.CreateNetworkDetails(subnet_id=foundation.values.get("subnet_id"), nsg_ids=groups),
        fleets=[
            models.CreateServiceManagedGpuFleetDetails(
                name=FLEET,
                max_concurrent_tasks=1,
                shape=models.CreateFixedGpuFleetShapeDetails(shape_name=shape, disk_size_in_gbs=STORAGE_GB),
            )
        ],
        logging_configuration=models.OciLoggingConfiguration(log_group_id=group, log_id=log) if group and log else None,
    )
    environment = [models.EnvironmentVariable(name=name, value=value) for name, value in _environment(made).items()]
    task = models.CreateComputeTaskDetails(
        name="train",
        batch_task_profile_id=LATER.format("TASK_PROFILE"),
        batch_task_environment_id=LATER.format("TASK_ENVIRONMENT"),
        arguments=words(foundation, made),
        environment_variables=environment,
        fleet_assignment_policy=models.BestFitFleetAssignmentPolicy(),
    )
    rendered = {
        "batch-context": context,
        "batch-job-pool": models.CreateBatchJobPoolDetails(
            compartment_id=compartment, display_name="gpu-job", batch_context_id=LATER.format("BATCH_CONTEXT")
        ),
        "batch-task-environment": models.CreateBatchTaskEnvironmentDetails(
            compartment_id=compartment, display_name="gpu-job", image_url=made.image, working_directory="/work"
        ),
        "batch-task-profile": models.CreateBatchTaskProfileDetails(
            compartment_id=compartment,
            display_name=shape,
            min_ocpus=known.ocpus,
            min_memory_in_gbs=known.ram_gb,
            min_disk_size_in_gbs=STORAGE_GB,
            extended_information=models.CreateGpuShapeTaskProfileExtendedInformationDetails(shape_name=shape),
        ),
        "batch-job": models.CreateBatchJobDetails(
            compartment_id=compartment,
            display_name=made.run_id,
            batch_job_pool_id=LATER.format("BATCH_JOB_POOL"),
            tasks=[task],
        ),
    }
    return {name: _wire(model) for name, model in rendered.items()}


def upload_spec(foundation: Foundation, made: Order) -> None:
    """The spec where the container fetches it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / record.SPEC
        write_text(path, dump(made.loaded.spec))
        open_store(foundation.launches_uri).put(path, f"{made.run_id}/{record.SPEC}")


def _may_be_sent(foundation: Foundation, made: Order, way: str) -> None:
    """UsageError for what the way cannot do, or has no rights for."""
    if way not in foundation.values.get("managed", [way]):  # a foundation of before says nothing of it
        cure = (
            f"set allow_{way.replace('-', '_')} = true in infra/foundation, apply it, and write foundation.json again"
        )
        raise UsageError(f"--to {way}", "the foundation gives it no rights", cure)
    resources = made.loaded.spec.resources
    if resources.nodes > 1 or resources.preemptible:
        what = "several nodes and preemptible capacity are not to be had here"
        raise UsageError(f"--to {way}", what, "submit to an instance, or take one node on demand")


def _environment(made: Order) -> dict[str, str]:
    return {"JOB_RUN_ID": made.run_id, "JOB_IMAGE_DIGEST": made.image.partition("@")[2], "JOB_SHAPE": made.shapes[0]}


def _seconds(made: Order) -> int:
    resources, shape = made.loaded.spec.resources, made.shapes[0]
    return estimate.longest(resources, shape, estimate.usd_per_hour(resources, shape))[0]


def _job_log(foundation: Foundation, models: Any) -> Any:
    group, log = foundation.values.get("log_group_id"), foundation.values.get("log_id")
    if group is None or log is None:
        return None
    return models.JobLogConfigurationDetails(
        enable_logging=True,
        enable_auto_log_creation=False,  # making logs would take another right
        log_group_id=group,
        log_id=log,
    )


def _wire(model: Any) -> Any:
    """A model of the SDK as the JSON it sends: its own names, nothing that is unset."""
    if isinstance(model, list):
        return [_wire(one) for one in model]
    if not hasattr(model, "attribute_map"):
        return model
    values = {wire: getattr(model, name) for name, wire in model.attribute_map.items()}
    return {wire: _wire(value) for wire, value in values.items() if value is not None}
