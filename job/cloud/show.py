"""status, list and logs: a run's view in words, as a table, as JSON, and its log as it grows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from job.cloud import clients, launch, record, view
from job.cloud.clients import CloudError, Machine
from job.cloud.estimate import times
from job.cloud.launch import Desk
from job.cloud.view import OVER, View
from job.errors import JobError, UsageError
from job.storage.store import Store

POLL = 5.0  # seconds between two looks at a log that is followed; instances ship every 30
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")


def status(desk: Desk, run_id: str) -> Iterator[str]:
    """Lines for a reader."""
    seen = view.look(desk, run_id)
    yield f"{run_id}: {seen.state}{_said(seen)}"
    yield from (f"  not known: {trouble}" for trouble in seen.troubles)
    if seen.state == "silent":
        yield "  unreachable is not dead: nothing ends it while its time lasts; `cancel` does if you want it to"
    beat = seen.heartbeat
    if beat is not None:
        facts = [
            f"{key.replace('_', ' ')} {beat[key]}"
            for key in ("phase", "epoch", "step", "images_per_second")
            if key in beat
        ]
        yield f"  heartbeat {_span(seen.now - float(beat['time']))} ago: {beat.get('status')}" + "".join(
            f", {x}" for x in facts
        )
    elif seen.record.last is not None and seen.record.last.outcome == "launched":
        yield "  no heartbeat of the job yet"
    for node in seen.nodes:
        age = _span(seen.now - float(node["time"]))
        yield f"  instance {node.get('node')}, {age} ago: {node.get('phase')}" + _because(node)
    if seen.missing:
        last = seen.record.last
        assert last is not None
        yield f"  {seen.missing} of {last.nodes} instances are gone; the others end within a minute of being told"
    for machine in seen.machines or ():
        yield f"  {machine.state}: {machine.shape} in {machine.availability_domain}, {machine.id}"
    last = seen.record.last
    if last is not None and last.outcome == "launched":
        cost = "price not known" if seen.usd is None else f"about {seen.usd:.2f} USD so far"
        yield f"  launched {_at(last.begun)}, gone by {_at(last.expires)}; {cost}"
    if len(seen.record.tries) > 1:
        yield from (f"  {row}" for row in launch.table(seen.record.tries))
    if seen.state in ("failed", "lost", "interrupted"):
        yield from _post_mortem(desk, seen)


def overview(desk: Desk) -> list[dict[str, Any]]:
    """Every run that was submitted, newest first, and every instance that no record knows."""
    try:
        machines: list[Machine] | None = clients.machines(desk.cloud)
    except CloudError as error:
        desk.say(f"Compute cannot be asked ({error.what}); what follows is from the bucket alone.")
        machines = None
    ids = record.run_ids(desk.launches)
    rows = [
        _row(view.look(desk, run_id, machines) if machines is not None else view.look(desk, run_id)) for run_id in ids
    ]
    rows += [_orphan(one) for one in machines or () if one.alive and one.run_id not in ids]
    return sorted(rows, key=lambda row: -float(row["created"]))


def table(rows: Sequence[dict[str, Any]], now: float) -> list[str]:
    """The overview for a terminal."""
    shown = [("run", "state", "shape", "age", "USD", "owner")]
    for row in rows:
        cost = "?" if row["usd"] is None else f"{row['usd']:.2f}"
        shape = "-" if row["shape"] is None else times(row["nodes"], row["shape"])
        shown.append((row["run_id"], row["state"], shape, _span(now - row["created"]), cost, row["owner"]))
    wide = [max(len(line[column]) for line in shown) for column in range(6)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, wide, strict=True)).rstrip() for line in shown]


def as_json(seen: View) -> dict[str, Any]:
    """A view for programs."""
    return {**_row(seen), "heartbeat": seen.heartbeat, "nodes": seen.nodes, "record": asdict(seen.record)} | {
        "instances": None if seen.machines is None else [asdict(one) for one in seen.machines],
        "troubles": list(seen.troubles),
    }


def logs(
    desk: Desk, run_id: str, *, follow: bool, since: float | None, source: str | None, node: int = 0
) -> Iterator[str]:
    """Lines of the log from `since` (Unix seconds) on; following, until the run is over."""
    fresh = Fresh(since)
    while True:
        seen = view.look(desk, run_id)  # before reading, so that what is over has been read to its end
        found = _source(desk, seen, source, node)
        if found is not None:
            yield from fresh.lines(record.read_bytes(*found).decode("utf-8", "replace"))
        elif not follow:
            raise UsageError(run_id, f"no log yet; the run is {seen.state}", "logs -f waits for it")
        if not follow or seen.state in OVER:
            return
        desk.sleep(POLL)


class Fresh:
    """What a log has grown by. The stored log may be the last megabytes only, so growth is found by its overlap."""

    OVERLAP = 4096

    def __init__(self, since: float | None) -> None:
        self.since, self.before = since, ""
        self.late = since is None

    def lines(self, text: str) -> Iterator[str]:
        whole = text[: text.rfind("\n") + 1]
        new = whole
        if self.before and not whole.startswith(self.before):
            end = self.before[-self.OVERLAP :]
            at = whole.rfind(end)
            new = whole[at + len(end) :] if at >= 0 else whole
        elif self.before:
            new = whole[len(self.before) :]
        self.before = whole
        yield from (line for line in new.splitlines() if self._wanted(line))

    def _wanted(self, line: str) -> bool:
        """From the first stamped line that is late enough; lines without a stamp belong to the one before."""
        if not self.late and (stamp := STAMP.search(line[:40])):
            assert self.since is not None
            self.late = datetime.fromisoformat(stamp[0]).timestamp() >= self.since
        return self.late


def _source(desk: Desk, seen: View, source: str | None, node: int) -> tuple[Store, str] | None:
    """The log that was asked for; else the job's own, which has times, the container's, the boot's.

    The first node alone writes the job's own; of another node there are the two others.
    """
    here = f"{seen.record.run_id}/node-{node}"
    places = {
        "job": (desk.results, f"{seen.record.run_id}/logs/job.log"),
        "container": (desk.launches, f"{here}/job.log"),
        "boot": (desk.launches, f"{here}/boot.log"),
    }
    if node > 0:
        del places["job"]
    if source is not None and source not in places:
        raise UsageError("--source job", "the first node alone writes it", f"--node {node} --source container")
    for name in [source] if source else list(places):
        store, path = places[name]
        if store.exists(path):
            return store, path
    return None


def _post_mortem(desk: Desk, seen: View) -> Iterator[str]:
    culprit = seen.culprit or {}
    node = int(culprit.get("node", 0))
    code = str(culprit.get("exit", ""))
    whose = f" of instance {node}" if len(seen.nodes) > 1 else ""
    if code not in ("", "0"):
        yield f"  exit code {code}{whose}: {view.meaning(code)}"
    try:
        lines = view.tail(desk, seen.record, node)
    except JobError as error:
        lines = [f"(the log cannot be read: {error.what})"]
    if lines:
        yield f"  last lines{whose}:"
        yield from (f"    {line}" for line in lines)
    yield f"  from its last checkpoint: python -m job resubmit {seen.record.run_id}"


def _said(seen: View) -> str:
    if seen.state in ("not launched", "cancelled") and seen.record.closing:
        return f" ({seen.record.closing})"
    if seen.state == "silent":
        sign = "since its launch" if seen.age is None else f"for {_span(seen.age)}"
        return f": no sign {sign}, and the instance is {seen.alive[0].state}"
    reason = (seen.heartbeat or {}).get("reason")
    return f" ({reason})" if reason else ""


def _because(node: dict[str, Any]) -> str:
    return f", because: {node['reason']}" if node.get("reason") else ""


def _row(seen: View) -> dict[str, Any]:
    made = seen.record
    return {
        "run_id": made.run_id,
        "state": seen.state,
        "shape": None if made.last is None else made.last.shape,
        "nodes": 0 if made.last is None else made.last.nodes,
        "created": made.created,
        "usd": seen.usd,
        "owner": made.owner,
    }


def _orphan(machine: Machine) -> dict[str, Any]:
    return {
        "run_id": machine.run_id,
        "state": f"no record ({machine.state})",
        "shape": machine.shape,
        "nodes": 1,
        "created": machine.created,
        "usd": None,
        "owner": machine.owner,
    }


def _span(seconds: float) -> str:
    """12 s, 3 min, 2.5 h, 4 d: in the largest unit of which there are two or more."""
    seconds = max(0.0, seconds)
    for unit, length, digits in (("d", 86400, 0), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _at(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
