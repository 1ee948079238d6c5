"""Where to try: shape × availability domain × fault domain, in an order that the capacity report only suggests.

The report has been wrong both ways, so nothing is left out for it: what it calls available comes first, what it says
nothing of next, what it calls full or missing last; within each, the shapes in the order of the spec. Several nodes
need not share a fault domain, so for them a cell is a whole availability domain, within which OCI chooses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from job.cloud.causes import Cause

RANK = {"AVAILABLE": 0, "OUT_OF_HOST_CAPACITY": 2, "HARDWARE_NOT_SUPPORTED": 3}
UNKNOWN = 1


@dataclass(frozen=True)
class Cell:
    """One place to try."""

    shape: str
    availability_domain: str
    fault_domain: str | None

    def __str__(self) -> str:
        domain = self.availability_domain.rpartition(":")[2]
        return f"{self.shape} in {domain}" + (f", {self.fault_domain}" if self.fault_domain else "")


def cells(shapes: Sequence[str], domains: Mapping[str, Sequence[str]], report: Mapping[Cell, str]) -> list[Cell]:
    """All cells, best first. `domains`: fault domains by availability domain; `report`: status by cell."""
    every = []
    for shape in shapes:
        for domain, fault_domains in domains.items():
            every += [Cell(shape, domain, one) for one in fault_domains] or [Cell(shape, domain, None)]
    return sorted(every, key=lambda cell: RANK.get(report.get(cell, ""), UNKNOWN))  # stable: the spec's order stays


class Closed:
    """What has become pointless to try in this submit."""

    def __init__(self) -> None:
        self.shapes: set[tuple[str, str]] = set()
        self.all = False

    def add(self, cell: Cell, cause: Cause) -> None:
        if cause.reach == "shape":
            self.shapes.add((cell.shape, cell.availability_domain))
        self.all |= cause.reach == "all"

    def open(self, among: Sequence[Cell]) -> Iterator[Cell]:
        """Those still worth trying; asked anew for each, since a try may close others."""
        for cell in among:
            if not self.all and (cell.shape, cell.availability_domain) not in self.shapes:
                yield cell
