"""What a launch will cost: minutes of boot, pull, training and upload at the shape's price, and the worst case.

Everything here is an estimate and says what it rests on: --minutes, earlier runs of the same spec in the bucket, or
resources.max_duration as the longest it can be. The worst case is no estimate: the caps count from the launch, and the
watchdog on the instance holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from job.cloud.shapes import PREEMPTIBLE_PRICE, table
from job.errors import UsageError
from job.spec.schema import Resources

SEEN = "as in the last run of this spec"
SHORTEST = 600  # seconds; infra/run takes no less: boot and pull alone may take it


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, paid for like every other."""

    name: str
    minutes: float
    basis: str


@dataclass(frozen=True)
class Estimate:
    """Of one shape."""

    shape: str
    usd_per_hour: float | None  # all nodes; None for a shape that is not in the table
    phases: tuple[Phase, ...]
    max_seconds: int
    cap: str  # the key that sets max_seconds
    nodes: int = 1

    @property
    def minutes(self) -> float:
        return sum(phase.minutes for phase in self.phases)

    @property
    def usd(self) -> float | None:
        return None if self.usd_per_hour is None else self.usd_per_hour * min(self.minutes, self.max_seconds / 60) / 60

    @property
    def worst_usd(self) -> float | None:
        """At the watchdog, with the time that ending takes."""
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour * (self.max_seconds / 60 + float(_assumed()["margin"])) / 60

    def lines(self) -> list[str]:
        """For a reader."""
        price = "price not known" if self.usd_per_hour is None else f"{self.usd_per_hour:.2f} USD/h"
        rows = [f"{times(self.nodes, self.shape)}: {price} (list price of {table()[0]}, an estimate)"]
        rows += [f"  {phase.name:<10} {phase.minutes:6.1f} min  {phase.basis}" for phase in self.phases]
        cost = "" if self.usd is None else f", {self.usd:.2f} USD"
        rows.append(f"  {'in all':<10} {self.minutes:6.1f} min{cost}")
        worst = "" if self.worst_usd is None else f"; at most {self.worst_usd:.2f} USD a launch"
        rows.append(f"  gone at the latest {self.max_seconds / 60:.0f} min after the launch, by {self.cap}{worst}")
        return rows


def estimate(
    resources: Resources, shape: str, train_minutes: float | None, earlier: Sequence[dict[str, float]] = ()
) -> Estimate:
    """`earlier`: minutes by phase of completed runs of the same spec on this shape; the newest is last."""
    price = usd_per_hour(resources, shape)
    seconds, cap = longest(resources, shape, price)
    known = earlier[-1] if earlier else {}
    assumed = _assumed()
    pull = assumed["pull"]["gigabytes"] * 8 / assumed["pull"]["gbps"] / 60
    guesses = {"boot": float(assumed["boot"][shape[:2]]), "pull": pull, "upload": float(assumed["upload"])}
    basis = f"assumed on {assumed['as_of']}, not measured"

    def phase(name: str) -> Phase:
        return Phase(name, known[name], SEEN) if name in known else Phase(name, guesses[name], basis)

    before = (Phase("boot, pull", known["start"], SEEN),) if "start" in known else (phase("boot"), phase("pull"))
    after = phase("upload")
    if train_minutes is not None:
        train = Phase("train", train_minutes, "from --minutes")
    elif "train" in known:
        train = Phase("train", known["train"], SEEN)
    else:
        rest = max(0.0, seconds / 60 - sum(one.minutes for one in (*before, after)))
        train = Phase("train", rest, "not known: as long as the cap allows; --minutes tells better")
    return Estimate(shape, price, (*before, train, after), seconds, cap, resources.nodes)


def times(nodes: int, shape: str) -> str:
    """2 × VM.GPU.A10.1, or the shape alone."""
    return shape if nodes == 1 else f"{nodes} × {shape}"


def usd_per_hour(resources: Resources, shape: str) -> float | None:
    """Of all nodes on this shape; None where the table does not know it."""
    known = table()[1].get(shape)
    if known is None:
        return None
    return known.usd_per_hour * (PREEMPTIBLE_PRICE if resources.preemptible else 1.0) * resources.nodes


def longest(resources: Resources, shape: str, price: float | None) -> tuple[int, str]:
    """Seconds from the launch to the watchdog, and the key that sets them. UsageError where nothing bounds the run."""
    limits = []
    if resources.max_duration is not None:
        limits.append((int(resources.max_duration), "resources.max_duration"))
    if resources.max_cost is not None and price is not None:
        limits.append((int(resources.max_cost / price * 3600), "resources.max_cost"))
    if not limits:
        what = "nothing bounds the cost of this run"
        if resources.max_cost is not None:
            what = f"the price of {shape} is not known, so max_cost bounds nothing"
        raise UsageError("resources.max_duration", what, "set resources.max_duration, for example to 2h")
    seconds, cap = min(limits)
    if seconds < SHORTEST:
        what = f"{seconds} s on {shape} end before boot and pull may be over"
        raise UsageError(cap, what, f"allow {SHORTEST} s at least")
    return seconds, cap


@cache
def _assumed() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("minutes.yaml").read_text(encoding="utf-8"))
    return data
