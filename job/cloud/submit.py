"""From a spec to an instance: check, estimate, ask, record, launch.

    python -m job submit SPEC --image HOST/NAMESPACE/REPOSITORY@sha256:…

Nothing is made before the question is answered, and everything that is made afterwards is in the run's record first,
so the same command with the same --run-id goes on where a killed one stopped.
"""

import getpass
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job.cloud import clients, estimate, launch, matrix, record
from job.cloud.clients import CloudError
from job.cloud.estimate import Estimate
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk, Launch
from job.cloud.record import Record, Try, Version
from job.cloud.shapes import table
from job.errors import JobError, SpecError, UsageError
from job.runfolder import write_text
from job.spec.load import Loaded, dump, load, parse, spec_hash
from job.spec.schema import Spec

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")  # infra/run's rule
IMAGE = re.compile(r"[a-z0-9.-]+\.[a-z]+(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}")  # infra/run's rule
# Outputs of the foundation that infra/run does not take
NOT_FOR_RUN = ("repository", "prefix", "nat", "log_group_id", "rdma_availability_domain", "managed")
LONGEST_GRACE = 600  # seconds; infra/run's rule
SHIPPING = 30  # seconds from the job's last checkpoint to its container's end
BUNDLED = ("digits",)  # data sets inside the image


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    loaded: Loaded  # as the instance will run it
    run_id: str
    image: str
    owner: str
    force: bool = False  # although the table of shapes says no

    @property
    def shapes(self) -> list[str]:
        resources = self.loaded.spec.resources
        assert resources.shape is not None
        return list(dict.fromkeys([resources.shape, *resources.fallback]))


def order(
    path: str,
    overrides: Sequence[str],
    foundation: Foundation,
    *,
    run_id: str | None,
    image: str | None,
    owner: str | None = None,
    force: bool = False,
) -> Order:
    """The spec as the instance will run it, checked against what an instance has. All without a network."""
    asked = load(path, [*overrides, "resources.preemptible=false"])  # which asks for the store that is put in here
    loaded = load(path, [*overrides, *_adjustments(asked.spec, foundation)])
    spec = loaded.spec
    _check_shapes(spec, force)
    _check_data(spec, foundation)
    run_id = run_id or f"{spec.name}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    if not RUN_ID.fullmatch(run_id):
        cure = "use up to 100 lower-case letters, digits, dots, dashes and underscores"
        raise UsageError("--run-id", f"{run_id!r} cannot be a tag and an object's name", cure)
    image = image or os.environ.get("JOB_IMAGE")
    if image is None or not IMAGE.fullmatch(image):
        what = "no image is named" if image is None else f"{image} names no digest"
        repository = foundation.values.get("repository") or "HOST/NAMESPACE/REPOSITORY"
        cure = f"--image {repository}@sha256:… (or JOB_IMAGE); a tag may mean another image by the time it is pulled"
        raise UsageError("--image", what, cure)
    made = Order(loaded, run_id, image, owner or _user(), force)
    for shape in made.shapes:
        estimate.longest(spec.resources, shape, estimate.usd_per_hour(spec.resources, shape))
    return made


def again(desk: Desk, before: Record) -> Order:
    """The order of a run that was submitted before, from its record and the spec beside it."""
    name = f"{before.run_id}/{record.SPEC}"
    text = record.read_bytes(desk.launches, name).decode("utf-8")
    return Order(parse(text, f"{desk.launches.uri}/{name}"), before.run_id, before.image, before.owner, before.force)


def quote(made: Order, minutes: float | None, earlier: Callable[[str], Sequence[dict[str, float]]]) -> list[Estimate]:
    """An estimate for each shape. `earlier` tells minutes by phase of completed runs on a shape."""
    resources = made.loaded.spec.resources
    return [estimate.estimate(resources, shape, minutes, earlier(shape)) for shape in made.shapes]


def submit(desk: Desk, made: Order) -> Version:
    """Records, uploads the spec, launches. The record as it stands when an instance does; JobError when none does."""
    with launch.alone(desk, made.run_id):
        version = _begin(desk, made)
        version = launch.settle(desk, version)
        if version.record.phase == "launched":
            return version
        _upload_spec(desk, made)
        return launch.provision(desk, version, _launch(desk, made))


def relaunch(desk: Desk, made: Order, spent: float) -> Version:
    """The same run once more, from its last checkpoint: its record stays and grows by tries.

    `spent` US dollars of resources.max_cost are gone; UsageError where too little is left for a launch.
    """
    with launch.alone(desk, made.run_id):
        version = record.read(desk.launches, made.run_id)
        assert version is not None
        version = launch.settle(desk, version)
        if any(one.alive for one in clients.machines(desk.cloud, made.run_id)):
            raise UsageError(made.run_id, "its instance is still there", f"python -m job cancel {made.run_id} ends it")
        desk.launches.delete(f"{made.run_id}/{record.CANCEL}")
        reopened = replace(version.record, phase="provisioning", closing="")
        version = record.save(desk.launches, version, reopened)
        return launch.provision(desk, version, _launch(desk, made, spent))


def _begin(desk: Desk, made: Order) -> Version:
    """The run's record: a new one, or that of the submit this one goes on with."""
    spec = made.loaded.spec
    version = record.read(desk.launches, made.run_id)
    if version is None:
        new = Record(
            made.run_id,
            spec_hash(spec),
            spec.store.uri,
            made.owner,
            made.image,
            desk.clock(),
            max_cost=spec.resources.max_cost,
            force=made.force,
        )
        return record.save(desk.launches, Version(new), new)
    before = version.record
    if before.spec_hash != spec_hash(spec) or before.image != made.image:
        what = "this id was submitted with another " + ("image" if before.spec_hash == spec_hash(spec) else "spec")
        raise UsageError(made.run_id, what, "use another --run-id")
    if before.phase == "launched":
        if any(one.alive for one in clients.machines(desk.cloud, made.run_id)):
            desk.say(f"{made.run_id} runs already; nothing is launched.")
            return version
        raise UsageError(
            made.run_id, "was launched before and its instance is gone", f"python -m job resubmit {made.run_id}"
        )
    if before.phase == "cancelled":
        raise UsageError(made.run_id, f"was cancelled ({before.closing})", f"python -m job resubmit {made.run_id}")
    if before.phase == "failed":
        return record.save(desk.launches, version, replace(before, phase="provisioning", closing=""))
    return version


def _launch(desk: Desk, made: Order, spent: float = 0.0) -> Launch:
    resources = made.loaded.spec.resources
    if resources.max_cost is not None:
        resources = resources.model_copy(update={"max_cost": max(0.0, resources.max_cost - spent)})

    def limits(shape: str) -> tuple[int, float | None]:
        price = estimate.usd_per_hour(resources, shape)
        return estimate.longest(resources, shape, price)[0], price

    return Launch(
        cells=places(desk, made.shapes, resources.nodes),
        max_wait=resources.max_wait or 0.0,
        limits=limits,
        variables=lambda one: variables(desk.cloud.foundation, made, one),
        nodes=resources.nodes,
        preemptible=resources.preemptible,
    )


def places(desk: Desk, shapes: Sequence[str], nodes: int = 1) -> list[matrix.Cell]:
    """The cells to try; a report that cannot be had only means that nothing is known beforehand.

    Several nodes with RDMA are tried where the foundation's compute cluster is, and nowhere else.
    """
    among = clients.domains(desk.cloud)
    if nodes > 1:
        among = {domain: [] for domain in among}
    try:
        report = clients.capacity_report(desk.cloud, shapes, among, nodes)
    except CloudError as error:
        desk.say(f"No capacity report ({error.what}); shapes and domains are tried in order.")
        report = {}
    cluster = desk.cloud.foundation.cluster_domain
    found = matrix.cells(shapes, among, report)
    return [cell for cell in found if cluster in (None, cell.availability_domain) or not _by_rdma(cell.shape, nodes)]


def variables(foundation: Foundation, made: Order, one: Try) -> dict[str, Any]:
    """infra/run's variables for a try."""
    resources = made.loaded.spec.resources
    values = {name: value for name, value in foundation.values.items() if name not in NOT_FOR_RUN}
    if not _by_rdma(one.shape, one.nodes):
        values["compute_cluster_id"] = None  # a foundation may have one; this try has no use for it
    return {
        **values,
        "run_id": made.run_id,
        "owner": made.owner,
        "image": made.image,
        "shape": one.shape,
        "availability_domain": one.availability_domain,
        "fault_domain": one.fault_domain,
        "preemptible": one.preemptible,
        "force": made.force,
        "nodes": one.nodes,
        "launched": datetime.fromtimestamp(one.begun, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_duration": one.max_seconds,
        "first_step_timeout": min(int(resources.first_step_timeout), one.max_seconds - 1),
        "stop_grace": min(LONGEST_GRACE, int(made.loaded.spec.checkpoint.grace) + SHIPPING),
    }


def _by_rdma(shape: str, nodes: int) -> bool:
    known = table()[1].get(shape)
    return nodes > 1 and known is not None and known.rdma_gbps > 0


def _upload_spec(desk: Desk, made: Order) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / record.SPEC
        write_text(
            path, f"# As {made.owner} submitted it; spec hash {spec_hash(made.loaded.spec)}\n{dump(made.loaded.spec)}"
        )
        desk.launches.put(path, f"{made.run_id}/{record.SPEC}")


def _adjustments(spec: Spec, foundation: Foundation) -> list[str]:
    """What has to differ on an instance: results go to the foundation's bucket, no folder of this machine is there."""
    uri, ours = spec.store.uri, foundation.store_uri
    changes = []
    if not uri.startswith("oci://"):
        changes.append(f"store.uri={ours}")
    elif uri.rstrip("/") != ours:
        cure = f"set store.uri to {ours}, or leave it out"
        raise UsageError("store.uri", f"an instance may write to {ours} only, not to {uri}", cure)
    if spec.dataset.root is not None:
        changes.append("dataset.root=null")
    return changes


def _check_shapes(spec: Spec, force: bool) -> None:
    resources = spec.resources
    if resources.shape is None:
        raise UsageError("resources.shape", "no shape is named", "for example --set resources.shape=VM.GPU.A10.1")
    known = table()[1]
    names = [resources.shape, *resources.fallback]
    refused = [name for name in names if name in known and not known[name].preemptible]
    if resources.preemptible and refused and not force:
        which = ", ".join(name for name, shape in known.items() if shape.preemptible)
        what = f"{', '.join(refused)}: not offered as preemptible ({table()[0]})"
        raise SpecError([JobError("resources.preemptible", what, f"only {which} are; --force tries all the same")])
    if resources.preemptible and resources.nodes > 1:
        what = "one node that is taken away stops all, while the others are still paid for"
        raise UsageError("resources.nodes", what, "set resources.preemptible to false, or take one node")


def _check_data(spec: Spec, foundation: Foundation) -> None:
    """An instance has neither this machine's folders nor, without NAT, the internet."""
    data = spec.dataset
    if data.name in BUNDLED or (data.uri or data.mirror or "").startswith("oci://"):
        return
    if data.name == "shards":
        cure = "copy the whole folder into the bucket, index.json last, and set dataset.uri to that place"
        raise UsageError(
            "dataset.uri", "an instance cannot have these shards: this machine's folders are not there", cure
        )
    if data.name == "image_folder" or not foundation.values.get("nat"):
        cure = f"put the archive into the bucket and set dataset.mirror: oci://{foundation.values['bucket']}@"
        cure += f"{foundation.values['namespace']}/data/ARCHIVE"
        why = "this machine's folders are not there" if data.name == "image_folder" else "it has no way to the internet"
        raise UsageError("dataset.mirror", f"an instance cannot have {data.name}: {why}", cure)


def _user() -> str:
    name = os.environ.get("JOB_OWNER") or getpass.getuser()
    return re.sub(r"[^A-Za-z0-9._@+-]", "-", name)[:100] or "unknown"
