"""What earlier runs of a spec took, from their records and reports in the bucket."""

import contextlib
from collections.abc import Callable, Sequence
from datetime import datetime

from job.cloud import record
from job.cloud.launch import Desk
from job.cloud.record import Record
from job.errors import JobError

MOST = 10  # runs looked at, the newest of the spec's name


def earlier(desk: Desk, name: str, spec_hash: str) -> Callable[[str], Sequence[dict[str, float]]]:
    """Shape → minutes of completed runs of the very same spec, newest last: start (boot and pull), train, upload."""
    found: dict[str, list[tuple[float, dict[str, float]]]] = {}
    with contextlib.suppress(JobError):  # an estimate is no reason not to launch
        ids = [run_id for run_id in record.run_ids(desk.launches) if run_id.startswith(f"{name}-")]
        for run_id in sorted(ids)[-MOST:]:
            version = record.read(desk.launches, run_id)
            if version is None or version.record.spec_hash != spec_hash:
                continue
            made, last = version.record, version.record.last
            if last is not None and (minutes := _minutes(desk, made)):
                found.setdefault(last.shape, []).append((made.created, minutes))
    return lambda shape: [minutes for _, minutes in sorted(found.get(shape, []), key=lambda one: one[0])]


def _minutes(desk: Desk, made: Record) -> dict[str, float] | None:
    """None unless the run is complete and ran in one launch."""
    launched = [one for one in made.tries if one.outcome == "launched"]
    told = record.read_object(desk.results, f"{made.run_id}/report.json") or {}
    if len(launched) != 1 or told.get("status") != "complete":
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        started = datetime.fromisoformat(told["started"]).timestamp()
        total = float(told["seconds"]["total"])
        minutes = {"start": (started - launched[0].begun) / 60, "train": total / 60}
        node = record.read_object(desk.launches, f"{made.run_id}/node-0/status.json")
        if node is not None:
            minutes["upload"] = max(0.0, float(node["time"]) - started - total) / 60
        return minutes
    return None
