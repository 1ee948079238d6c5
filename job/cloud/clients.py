"""Plain functions over the SDK's clients for Compute, Identity and Limits; all of Compute that the verbs need.

Asking is repeated when the service stumbles; so is terminating, which may be repeated without harm. Nothing here
launches: an instance is defined in infra/run alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job.cloud.causes import CURES, of_service_error
from job.cloud.foundation import Foundation
from job.cloud.matrix import Cell
from job.errors import JobError

GONE = ("TERMINATING", "TERMINATED")  # states in which nothing is billed and nothing can be ended
FULL = "OUT_OF_HOST_CAPACITY"
SHAPES_A_REPORT = 10  # most a capacity report takes
TIMEOUT = (10.0, 60.0)  # seconds to connect and to read
ATTEMPTS, ELAPSED = 5, 60  # of one request


class CloudError(JobError):
    """OCI refused or could not be reached. `kind` as in causes."""

    def __init__(self, where: str, what: str, cure: str, kind: str) -> None:
        super().__init__(where, what, cure)
        self.kind = kind


@dataclass(frozen=True)
class Machine:
    """An instance that carries the tags of a run."""

    id: str
    run_id: str
    owner: str
    state: str
    shape: str
    availability_domain: str
    created: float
    expires: float | None  # None where the tag is missing or no time

    @property
    def alive(self) -> bool:
        return self.state not in GONE


@dataclass(frozen=True)
class Cloud:
    """A tenancy as the verbs see it."""

    foundation: Foundation
    compute: Any
    identity: Any
    limits: Any


def connect(foundation: Foundation) -> Cloud:
    """Clients for the foundation's region, signed in as job.auth finds it."""
    import oci.core
    import oci.identity
    import oci.limits

    kinds = oci.core.ComputeClient, oci.identity.IdentityClient, oci.limits.LimitsClient
    return Cloud(foundation, *signed_in(foundation, *kinds))


def signed_in(foundation: Foundation, *kinds: Callable[..., Any]) -> list[Any]:
    """Clients of these kinds for the foundation's region, with time-outs and a patience of our own."""
    import oci.circuit_breaker
    import oci.retry

    from job import auth

    who = auth.find()
    strategy = oci.retry.RetryStrategyBuilder(
        max_attempts=ATTEMPTS,
        total_elapsed_time_seconds=ELAPSED,
        service_error_retry_config={409: ["IncorrectState", "Conflict"], 429: []},
        service_error_retry_on_any_5xx=True,
        retry_max_wait_between_calls_seconds=8,
    ).get_retry_strategy()
    options = {"signer": who.signer, "timeout": TIMEOUT, "retry_strategy": strategy}
    options["circuit_breaker_strategy"] = oci.circuit_breaker.NoCircuitBreakerStrategy()
    if (endpoint := auth.endpoint_override()) is not None:
        options["service_endpoint"] = endpoint
    return [kind({**who.config, "region": foundation.region}, **options) for kind in kinds]


def machines(cloud: Cloud, run_id: str | None = None) -> list[Machine]:
    """Instances of runs in the foundation's compartment, oldest first; the terminated too, while OCI lists them."""
    found = [_machine(one, cloud.foundation.tag_namespace) for one in _all(cloud.compute.list_instances, cloud)]
    runs = [one for one in found if one is not None and run_id in (None, one.run_id)]
    return sorted(runs, key=lambda one: (one.created, one.id))


def terminate(cloud: Cloud, instance_id: str) -> None:
    """Ends the instance and its disks. No error where it is gone already."""
    try:
        ask(
            cloud.compute.terminate_instance,
            instance_id,
            preserve_boot_volume=False,
            preserve_data_volumes_created_at_launch=False,
        )
    except CloudError as error:
        if not any(one.id == instance_id and one.alive for one in machines(cloud)):
            return
        raise error


def domains(cloud: Cloud) -> dict[str, list[str]]:
    """Fault domains by availability domain."""
    tenancy = cloud.foundation.tenancy
    names = [one.name for one in ask(cloud.identity.list_availability_domains, tenancy).data]
    return {name: [one.name for one in ask(cloud.identity.list_fault_domains, tenancy, name).data] for name in names}


def capacity_report(
    cloud: Cloud, shapes: Sequence[str], among: Mapping[str, Sequence[str]], nodes: int = 1
) -> dict[Cell, str]:
    """Status by cell: AVAILABLE, OUT_OF_HOST_CAPACITY or HARDWARE_NOT_SUPPORTED. CloudError where it is refused.

    A domain without fault domains is asked about as a whole. Room for fewer than `nodes` is none.
    """
    from oci.core import models

    found = {}
    for domain, fault_domains in among.items():
        places: Sequence[str | None] = fault_domains or [None]
        asked = [(shape, place) for shape in shapes for place in places]
        for start in range(0, len(asked), SHAPES_A_REPORT):
            details = models.CreateComputeCapacityReportDetails(
                compartment_id=cloud.foundation.tenancy,
                availability_domain=domain,
                shape_availabilities=[
                    models.CreateCapacityReportShapeAvailabilityDetails(instance_shape=shape, fault_domain=fault_domain)
                    for shape, fault_domain in asked[start : start + SHAPES_A_REPORT]
                ],
            )
            report = ask(cloud.compute.create_compute_capacity_report, details).data
            for one in report.shape_availabilities:
                short = one.available_count is not None and one.available_count < nodes
                status = FULL if short and one.availability_status == "AVAILABLE" else str(one.availability_status)
                found[Cell(one.instance_shape, domain, one.fault_domain)] = status
    return found


def shapes(cloud: Cloud, domain: str) -> list[Any]:
    """GPU shapes that this tenancy may use in the domain, as the API names them."""
    listed = _all(cloud.compute.list_shapes, cloud, availability_domain=domain, limit=100)
    return [one for one in listed if one.gpus]


def available(cloud: Cloud, limit: str, domain: str) -> int | None:
    """What is left of a Compute limit in the domain, in GPUs."""
    left = ask(
        cloud.limits.get_resource_availability,
        "compute",
        limit,
        cloud.foundation.compartment,
        availability_domain=domain,
    ).data.available
    return None if left is None else int(left)


def ask(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """One request; what goes wrong becomes a CloudError with its kind and cure."""
    import oci.exceptions

    where = getattr(call, "__name__", "OCI").replace("_", " ")
    try:
        return call(*arguments, **keywords)
    except oci.exceptions.ServiceError as error:
        cause = of_service_error(error.status, error.code, error.message)
        request = f" (opc-request-id {error.request_id})" if error.request_id else ""
        raise CloudError(where, cause.said + request, cause.cure, cause.kind) from error
    except (oci.exceptions.RequestException, oci.exceptions.ConnectTimeout, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CloudError(where, f"OCI cannot be reached: {reason}", CURES["unreachable"], "unreachable") from error


def _all(call: Callable[..., Any], cloud: Cloud, **keywords: Any) -> Iterable[Any]:
    """All pages."""
    page = None
    while True:
        more = keywords if page is None else {**keywords, "page": page}
        answer = ask(call, cloud.foundation.compartment, **more)
        yield from answer.data
        if not answer.has_next_page:
            return
        page = answer.next_page


def _machine(instance: Any, namespace: str) -> Machine | None:
    tags = (instance.defined_tags or {}).get(namespace, {})
    if tags.get("role") != "run" or not tags.get("run_id"):
        return None
    return Machine(
        instance.id,
        str(tags["run_id"]),
        str(tags.get("owner", "unknown")),
        str(instance.lifecycle_state),
        str(instance.shape),
        str(instance.availability_domain),
        instance.time_created.timestamp(),
        _time(tags.get("expires")),
    )


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
