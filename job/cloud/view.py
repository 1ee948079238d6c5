"""A run as seen from outside: its record, its heartbeat, what its instance says of itself, and what Compute says.

Each may be missing, old or out of reach, and that is told apart from bad news: an old heartbeat beside a running
instance is silence, not death, and a service that does not answer says nothing of the run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from job.cloud import clients, record
from job.cloud.clients import CloudError, Machine
from job.cloud.launch import Desk
from job.cloud.record import Record, Try
from job.errors import UsageError
from job.storage.store import Store, StoreError

FRESH = 180.0  # seconds; a heartbeat is written every few seconds and stored every half minute at most
TAIL = 20  # lines shown after a failure
FOLLOWED = "ended with "  # how an instance says that it ended because another node did

State = Literal[
    "submitting",
    "not launched",
    "cancelled",
    "booting",
    "running",
    "silent",
    "ending",
    "complete",
    "failed",
    "interrupted",
    "preempted",
    "lost",
    "unknown",
]
OVER: tuple[State, ...] = ("not launched", "cancelled", "complete", "failed", "interrupted", "preempted", "lost")
RESUMABLE: tuple[State, ...] = ("not launched", "cancelled", "failed", "interrupted", "preempted", "lost")

EXIT_CODES = {
    "0": "done",
    "1": "the job failed; its last lines say why",
    "2": "bad spec or usage",
    "3": "bad or missing data",
    "4": "trained, but not everything was uploaded",
    "75": "interrupted and resumable",
    "125": "the container engine could not start the container",
    "126": "the container's command cannot be executed",
    "127": "the container's command was not found",
    "134": "SIGABRT: a library gave up; look for an assertion or CUDA error above",
    "137": "SIGKILL: out of memory, or it did not stop in its grace period",
    "139": "SIGSEGV: a library crashed",
    "143": "SIGTERM: it was asked to stop and did not answer in order",
}
EXIT_CODES |= {
    "KILL": EXIT_CODES["137"],
    "SEGV": EXIT_CODES["139"],
    "ABRT": EXIT_CODES["134"],
    "TERM": EXIT_CODES["143"],
}


@dataclass(frozen=True)
class View:
    """Everything known of a run at one moment."""

    record: Record
    machines: tuple[Machine, ...] | None  # None: Compute could not be asked
    heartbeat: dict[str, Any] | None  # PREFIX/RUN/status.json
    nodes: tuple[dict[str, Any], ...]  # node-N/status.json, of the current launch
    sealed: bool  # manifest.json is there: complete and verified
    troubles: tuple[str, ...]  # what could not be asked, and why
    now: float

    @property
    def alive(self) -> tuple[Machine, ...]:
        return tuple(one for one in self.machines or () if one.alive)

    @property
    def sign(self) -> float | None:
        """When the job or its instance last said anything."""
        told = [*(() if self.heartbeat is None else (self.heartbeat,)), *self.nodes]
        times = [float(one["time"]) for one in told if isinstance(one.get("time"), int | float)]
        return max(times, default=None)

    @property
    def age(self) -> float | None:
        return None if self.sign is None else max(0.0, self.now - self.sign)

    @property
    def fresh(self) -> bool:
        return self.age is not None and self.age <= FRESH

    @property
    def state(self) -> State:
        """In one word."""
        if self.sealed:
            return "complete"
        if self.record.phase == "provisioning":
            return "submitting"
        if self.record.phase == "failed":
            return "not launched"
        if self.machines is None:
            return "running" if self.fresh else "unknown"
        if self.alive:
            return self._alive_state()
        if self.record.phase == "cancelled":
            return "cancelled"
        return self._gone_state()

    @property
    def culprit(self) -> dict[str, Any] | None:
        """The node whose end ended the others: the first with an error of its own; else the first that tells."""
        alone = [one for one in self.nodes if not str(one.get("reason", "")).startswith(FOLLOWED)]
        wrong = [one for one in alone if str(one.get("exit", "")) not in ("", "0")]
        boots = [one for one in alone if one.get("reason") not in (None, "", "complete")]
        return next(iter([*wrong, *boots, *self.nodes]), None)

    @property
    def missing(self) -> int:
        """Instances that are gone while others of the same launch are still there."""
        last = self.record.last
        if last is None or last.outcome != "launched" or not self.alive:
            return 0
        return max(0, last.nodes - len(self.alive))

    @property
    def usd(self) -> float | None:
        """So far, of all launches, at list price; None where a price is not known."""
        costs = [self._usd(one) for one in self.record.tries if one.outcome == "launched"]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def _alive_state(self) -> State:
        if any(node.get("phase") == "ending" for node in self.nodes):
            return "ending"
        if not self.fresh:
            last = self.record.last
            began = max([one.created for one in self.alive] + ([] if last is None else [last.begun]))
            return "silent" if self.sign is not None or self.now - began > FRESH else "booting"
        return (
            "running" if any(node.get("phase") == "running" for node in self.nodes) or self._job_beats() else "booting"
        )

    def _gone_state(self) -> State:
        told = None if self.heartbeat is None else self.heartbeat.get("status")
        if told == "failed" or (told is None and any(node.get("reason") for node in self.nodes)):
            return "failed"
        if told == "interrupted" and any(node.get("reason") == "cancelled" for node in self.nodes):
            return "cancelled"
        last = self.record.last
        if last is not None and last.preemptible and not any(node.get("reason") for node in self.nodes):
            return "preempted"
        return "interrupted" if told == "interrupted" else "lost"

    def _job_beats(self) -> bool:
        beat = self.heartbeat or {}
        return isinstance(beat.get("time"), int | float) and self.now - float(beat["time"]) <= FRESH

    def _usd(self, one: Try) -> float | None:
        if one.usd_per_hour is None:
            return None
        end = self.now
        if one is not self.record.last or (self.machines is not None and not self.alive):
            end = one.ended or self.sign or one.expires  # the API does not say when an instance was terminated
        return max(0.0, min(end, one.expires) - one.begun) / 3600 * one.usd_per_hour


def look(desk: Desk, run_id: str, machines: Iterable[Machine] | None = None) -> View:
    """The run now. UsageError where there is none; what cannot be asked is one of `troubles`."""
    version = record.read(desk.launches, run_id)
    if version is None:
        raise UsageError(run_id, "no run of this id was submitted", "python -m job list shows what there is")
    made, troubles = version.record, []
    found: tuple[Machine, ...] | None = None
    if machines is not None:
        found = tuple(one for one in machines if one.run_id == run_id)
    else:
        try:
            found = tuple(clients.machines(desk.cloud, run_id))
        except CloudError as error:
            troubles.append(f"Compute: {error.what}")
    beat, sealed, nodes = None, False, []
    try:
        beat = record.read_object(desk.results, f"{run_id}/status.json")
        sealed = (beat or {}).get("status") == "complete" and desk.results.exists(f"{run_id}/manifest.json")
        nodes = _nodes(desk.launches, made)
    except StoreError as error:
        troubles.append(f"the bucket: {error.what}")
    return View(made, found, _current(beat, made), tuple(nodes), sealed, tuple(troubles), desk.clock())


def tail(desk: Desk, made: Record, node: int) -> list[str]:
    """The end of what a node's container said, or of its boot's log where it never started."""
    for name in ("job.log", "boot.log"):
        path = f"{made.run_id}/node-{node}/{name}"
        if desk.launches.exists(path):
            text = record.read_bytes(desk.launches, path).decode("utf-8", "replace")
            return text.splitlines()[-TAIL:]
    return []


def meaning(exit_code: str) -> str:
    """Of what systemd says a container left with."""
    return EXIT_CODES.get(exit_code, "not one of the job's own codes")


def _nodes(launches: Store, made: Record) -> list[dict[str, Any]]:
    """What the instances of the last launch say; older objects are of the launch before."""
    last = made.last
    if last is None:
        return []
    found = [record.read_object(launches, f"{made.run_id}/node-{node}/status.json") for node in range(last.nodes)]
    return [one for one in found if one is not None and _since(one, last)]


def _current(beat: dict[str, Any] | None, made: Record) -> dict[str, Any] | None:
    """The heartbeat, unless it is of a launch before the last: that job was another process on another machine."""
    if beat is None or made.last is None or beat.get("status") == "complete":
        return beat
    return beat if _since(beat, made.last) else None


def _since(told: dict[str, Any], last: Try) -> bool:
    return isinstance(told.get("time"), int | float) and float(told["time"]) >= last.begun
