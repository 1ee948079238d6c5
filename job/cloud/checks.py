"""Is the tenancy ready, and is anything left behind? A line each, with the cure; and what the API offers of a shape."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from job.cloud import clients, ending, record, terraform, view
from job.cloud.clients import CloudError
from job.cloud.launch import Desk
from job.cloud.shapes import table
from job.errors import JobError

STALE = 900.0  # seconds after its last try began in which a submit may still be at work


def examine(make: Callable[[], Desk]) -> tuple[list[str], bool]:
    """Lines 'ok …' or '!! …', and whether nothing is wrong. `make` signs in, which may be what is wrong."""
    found = [_terraform()]
    try:
        desk = make()
        found.append((True, f"foundation: {desk.cloud.foundation.compartment} in {desk.cloud.foundation.region}"))
    except JobError as error:
        found.append((False, f"foundation: {error}"))
    else:
        for check in (_compute, _bucket, _instances, _records):
            try:
                found += check(desk)
            except JobError as error:
                found.append((False, str(error)))
    return [f"{'ok' if good else '!!'}  {text}" for good, text in found], all(good for good, _ in found)


def offers(desk: Desk, shapes: Sequence[str], nodes: int = 1) -> list[str]:
    """For each shape and availability domain: whether the tenancy may use it and what it is, as the API says; what is
    left of its limit for so many nodes; the capacity report.
    """
    among = clients.domains(desk.cloud)
    try:
        report = clients.capacity_report(desk.cloud, shapes, among, nodes)
    except CloudError as error:
        desk.say(f"no capacity report: {error.what}")
        report = {}
    lines = []
    for domain in among:
        offered = {one.shape: one for one in clients.shapes(desk.cloud, domain)}
        for shape in shapes:
            here = sorted(
                {status for cell, status in report.items() if (cell.shape, cell.availability_domain) == (shape, domain)}
            )
            what = _offered(offered[shape]) if shape in offered else "not offered to this tenancy"
            words = [what, *_limit(desk, shape, domain, nodes)]
            lines.append(
                f"{domain}  {shape}: {'; '.join([*words, *(word.lower().replace('_', ' ') for word in here)])}"
            )
        others = sorted(offered.keys() - set(shapes))
        if others:
            lines.append(f"{domain}  other GPU shapes: {', '.join(others)}")
    return lines


def _offered(one: Any) -> str:
    """A shape as the API describes it, and where the table of prices, which has a date, describes another."""
    gpus = f"{one.gpus} × {one.gpu_description or 'GPU'}"
    known = table()[1].get(one.shape)
    if known is not None and known.gpus != one.gpus:
        return f"offered, {gpus}, where the table of {table()[0]} has {known.gpus}: its price may be another"
    return f"offered, {gpus}" + ("" if known is not None else ", price not known")


def _limit(desk: Desk, shape: str, domain: str, nodes: int) -> Iterator[str]:
    known = table()[1].get(shape)
    if known is None or known.quota is None:
        return
    try:
        left = clients.available(desk.cloud, known.quota, domain)
    except CloudError as error:
        yield f"{known.quota} not known ({error.kind})"
        return
    if left is not None:
        needed = known.gpus * nodes
        enough = "" if left >= needed else f", and it needs {needed}: ask for a higher limit"
        yield f"{left} GPUs left of {known.quota}{enough}"


def _terraform() -> tuple[bool, str]:
    import os

    name = os.environ.get(terraform.BINARY) or "terraform"
    path = shutil.which(name)
    cure = f"not found; install Terraform 1.9 or later, or name it in {terraform.BINARY}"
    return path is not None, f"terraform: {path or cure}"


def _compute(desk: Desk) -> Iterator[tuple[bool, str]]:
    among = clients.domains(desk.cloud)
    yield True, f"signed in; availability domains: {', '.join(among)}"


def _bucket(desk: Desk) -> Iterator[tuple[bool, str]]:
    count = len(record.run_ids(desk.launches))
    yield True, f"bucket: {desk.launches.uri} can be read, {count} runs have a record"


def _instances(desk: Desk) -> Iterator[tuple[bool, str]]:
    verdicts, records = ending.sweep(desk), record.run_ids(desk.launches)
    for one in verdicts:
        cure = "; python -m job sweep --yes ends it" if one.end else ""
        yield not one.end, f"instance {one.machine.id} of {one.machine.run_id}: {one.why}{cure}"
    for run_id in sorted({one.machine.run_id for one in verdicts}):
        mine = [one.machine for one in verdicts if one.machine.run_id == run_id]
        if run_id not in records:
            continue
        seen = view.look(desk, run_id, mine)
        last, settled = seen.record.last, seen.record.phase == "launched" and seen.state != "ending"
        if last is not None and (len(mine) > last.nodes or (seen.missing and settled)):
            yield False, f"{run_id} has {len(mine)} instances instead of {last.nodes}; python -m job cancel {run_id}"
    if not verdicts:
        yield True, "instances: none, so none is paid for"


def _records(desk: Desk) -> Iterator[tuple[bool, str]]:
    for run_id in record.run_ids(desk.launches):
        version = record.read(desk.launches, run_id)
        if version is None or version.record.phase != "provisioning":
            continue
        last = version.record.last
        since = version.record.created if last is None else last.begun
        if desk.clock() - since > STALE:
            cure = f"submit it again with --run-id {run_id}, or python -m job cancel {run_id}"
            yield (
                False,
                f"{run_id}: its submit ended {(desk.clock() - since) / 60:.0f} min ago without a result; {cure}",
            )
