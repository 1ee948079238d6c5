"""What is known of OCI's GPU shapes: price, GPUs, and whether they can be preemptible. Data, with source and date."""

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from job.errors import JobError, SpecError
from job.spec.schema import Resources

PREEMPTIBLE_PRICE = 0.5  # of the list price, fixed, in every region: Oracle's "Preemptible Instances"


@dataclass(frozen=True)
class Shape:
    name: str
    gpus: int
    gpu: str
    arch: str  # sm_86 or, AMD's, gfx942
    ocpus: int
    ram_gb: int
    usd_per_hour: float  # for the whole shape
    memory_gb: int | None = None  # of each GPU; None where the sources are silent
    nvme_tb: float = 0.0
    rdma_gbps: int = 0
    preemptible: bool = False
    quota: str | None = None  # the service limit it counts against, in GPUs
    cpu: Literal["x86", "arm"] = "x86"


@cache
def table() -> tuple[str, dict[str, Shape]]:
    """The date of the figures, and the shapes by name."""
    data = yaml.safe_load((Path(__file__).parent / "shapes.yaml").read_text(encoding="utf-8"))
    return str(data["as_of"]), {name: Shape(name, **fields) for name, fields in data["shapes"].items()}


def usd_per_hour(resources: Resources) -> float | None:
    """Price of the spec's shape; None where there is no shape or it is not in the table. SpecError for what cannot be.

    A shape that is not in the table may still be offered to a tenancy, so it is an error only where a price is needed.
    """
    if resources.shape is None:
        return None
    shapes = table()[1]
    shape = shapes.get(resources.shape)
    if shape is None and resources.max_cost is None:
        return None
    if shape is None:
        near = difflib.get_close_matches(resources.shape, shapes, 1, 0.5) or sorted(shapes)[:3]
        problem = JobError(
            "resources.shape",
            f"{resources.shape} has no known price, and max_cost needs one",
            f"did you mean {near[0]}?",
        )
        raise SpecError([problem])
    if resources.preemptible and not shape.preemptible:
        which = ", ".join(name for name, other in shapes.items() if other.preemptible)
        problem = JobError("resources.preemptible", f"{shape.name} is not offered as preemptible", f"only {which} are")
        raise SpecError([problem])
    return shape.usd_per_hour * (PREEMPTIBLE_PRICE if resources.preemptible else 1.0) * resources.nodes
