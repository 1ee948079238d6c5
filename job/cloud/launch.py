"""Gets one run's instance up, whatever dies meanwhile: tries are recorded, made, and undone one after the other.

    version = settle(desk, version)                    what an earlier submit of this run left under way
    version = provision(desk, version, launch)         the matrix, cell by cell, until one try stands

No instance without a record: a try is saved before Terraform is started for it. No second instance beside a first: a
try is begun only when no machine carries the run's tag and the try before it is known to have failed. A lease in the
bucket keeps two submits of one run apart, the lock of a try's folder a submit and the terraform of a dead one.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from job.cloud import clients, record, terraform
from job.cloud.causes import Cause
from job.cloud.clients import Cloud, CloudError
from job.cloud.matrix import Cell, Closed
from job.cloud.record import Try, Version
from job.cloud.terraform import Workdir
from job.errors import JobError, UsageError
from job.storage.lease import Lease
from job.storage.store import Store, StoreError

SETTLE = 60.0  # seconds after a try began in which an instance may exist that no list names yet
PAUSE = 60.0  # seconds between two rounds through the matrix
THROTTLED = 30.0  # seconds to leave the service alone when it asks for that
RENEW = 10.0  # seconds between two looks at the lease


@dataclass(frozen=True)
class Desk:
    """What a verb works with. Clock and sleep are given so that tests need not wait."""

    cloud: Cloud
    launches: Store  # records, and what instances say of themselves
    results: Store  # runs' folders
    clock: Callable[[], float]  # Unix seconds
    sleep: Callable[[float], None]
    say: Callable[[str], None]

    def workdir(self, run_id: str) -> Workdir:
        return Workdir(terraform.cache() / "launches" / run_id)


@dataclass(frozen=True)
class Launch:
    """What to launch, and where it may be tried."""

    cells: Sequence[Cell]
    max_wait: float  # seconds in which rounds through the cells are begun; 0 is one round
    limits: Callable[[str], tuple[int, float | None]]  # shape → seconds to the watchdog, USD/h
    variables: Callable[[Try], dict[str, Any]]  # infra/run's
    nodes: int = 1
    preemptible: bool = False


def settle(desk: Desk, version: Version) -> Version:
    """Finds out how a try ended that nobody saw the end of: its instance is taken over, or what is left is ended."""
    last = version.record.last
    if version.record.phase != "provisioning" or last is None or last.outcome is not None:
        return version
    workdir = desk.workdir(version.record.run_id)
    with terraform.locked(workdir, last.number):
        found = _alive(desk, version)
        if len(found) < last.nodes and desk.clock() - last.begun < SETTLE:
            desk.sleep(SETTLE - (desk.clock() - last.begun))
            found = _alive(desk, version)
        _keep_state(desk, version, workdir, last)
    if len(found) == last.nodes:
        ids = tuple(one.id for one in found)
        desk.say(f"Try {last.number} had launched {', '.join(ids)} before it was interrupted; it is kept.")
        return _launched(desk, version, replace(last, outcome="launched", instances=ids))
    for one in found:
        clients.terminate(desk.cloud, one.id)
    done = replace(last, outcome="interrupted", said="submit ended in the middle of it", ended=desk.clock())
    return record.save(desk.launches, version, version.record.with_try(done))


def provision(desk: Desk, version: Version, launch: Launch) -> Version:
    """Tries the cells until one stands. JobError with the table of tries when none does; nothing is left then."""
    closed, began = Closed(), desk.clock()
    first = len(version.record.tries)
    terraform.prepare(desk.workdir(version.record.run_id))
    while True:
        for cell in closed.open(launch.cells):
            if launch.max_wait and desk.clock() - began >= launch.max_wait:
                break
            _leave_if_cancelled(desk, version)
            version, cause = _attempt(desk, version, launch, cell)
            if cause is None:
                return version
            closed.add(cell, cause)
            if cause.kind == "throttled":
                desk.sleep(THROTTLED)
        left = launch.max_wait - (desk.clock() - began)
        if left <= 0 or not any(closed.open(launch.cells)):
            break
        desk.say(f"Nothing in this round; another in {min(PAUSE, left):.0f} s, for {left / 60:.0f} min yet.")
        desk.sleep(min(PAUSE, left))
    tries = version.record.tries[first:]
    cause = Cause(tries[-1].outcome, tries[-1].said) if tries else None  # type: ignore[arg-type]
    why = "no try was possible" if cause is None else f"no instance in {len(tries)} tries; the last: {cause.said}"
    record.save(desk.launches, version, replace(version.record, phase="failed", closing=why))
    raise JobError(version.record.run_id, why, "see its cause above" if cause is None else cause.cure)


@contextlib.contextmanager
def alone(desk: Desk, run_id: str) -> Iterator[None]:
    """Holds the run's lease, renewed by a thread, so that no other submit, here or elsewhere, works on it."""
    from job.storage.store import open_store

    lease = Lease(open_store(f"{desk.launches.uri}/{run_id}"))
    lease.acquire(desk.sleep)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW):
            with contextlib.suppress(StoreError):  # the record's condition is what protects; the lease only informs
                lease.renew()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StoreError):
            lease.release()


def table(tries: Sequence[Try]) -> list[str]:
    """The tries, a line each."""
    rows = [
        (str(one.number), str(_cell(one)), one.outcome or "under way", one.said if one.outcome != "launched" else "")
        for one in tries
    ]
    wide = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, wide, strict=False)), row[3]]).rstrip()
        for row in rows
    ]


def _attempt(desk: Desk, version: Version, launch: Launch, cell: Cell) -> tuple[Version, Cause | None]:
    """One try: recorded, applied, and undone unless it stands."""
    seconds, price = launch.limits(cell.shape)
    number = 1 if version.record.last is None else version.record.last.number + 1
    one = Try(
        number,
        cell.shape,
        cell.availability_domain,
        cell.fault_domain,
        launch.preemptible,
        launch.nodes,
        desk.clock(),
        seconds,
        price,
    )
    version = record.save(desk.launches, version, version.record.with_try(one))
    desk.say(f"Try {number}: {cell}")
    workdir = desk.workdir(version.record.run_id)
    with terraform.locked(workdir, number) as lock:
        try:
            ids, cause = terraform.apply(workdir, number, launch.variables(one), lock, desk.say)
        except KeyboardInterrupt:
            _undo(desk, version, workdir, one, lock)
            done = replace(one, outcome="interrupted", said="Ctrl-C", ended=desk.clock())
            closed = replace(version.record.with_try(done), phase="cancelled", closing="interrupted by Ctrl-C")
            record.save(desk.launches, version, closed)
            raise
        if cause is None:
            try:
                _keep_state(desk, version, workdir, one)
                return _launched(desk, version, replace(one, outcome="launched", instances=tuple(ids))), None
            except UsageError:  # cancelled, or taken over, while it was launching
                _undo(desk, version, workdir, one, lock)
                raise
        _undo(desk, version, workdir, one, lock)
    desk.say(f"  {cause.kind}: {cause.said}")
    done = replace(one, outcome=cause.kind, said=cause.said, ended=desk.clock())
    return record.save(desk.launches, version, version.record.with_try(done)), cause


def _launched(desk: Desk, version: Version, done: Try) -> Version:
    return record.save(desk.launches, version, replace(version.record.with_try(done), phase="launched"))


def _undo(desk: Desk, version: Version, workdir: Workdir, one: Try, lock: int) -> None:
    """Nothing of the try is left: by its state, and by the tag for what no state names."""
    terraform.destroy(workdir, one.number, lock)
    try:
        for machine in _alive(desk, version):
            clients.terminate(desk.cloud, machine.id)
    except CloudError as error:
        cure = f"submit run {version.record.run_id} again, or: python -m job sweep --yes"
        raise CloudError(f"try {one.number}", f"may have left an instance: {error.what}", cure, error.kind) from error
    _keep_state(desk, version, workdir, one)


def _alive(desk: Desk, version: Version) -> list[clients.Machine]:
    return [one for one in clients.machines(desk.cloud, version.record.run_id) if one.alive]


def _keep_state(desk: Desk, version: Version, workdir: Workdir, one: Try) -> None:
    """The state goes beside the record. Without it nothing is lost: the tag finds the instance too."""
    if workdir.state(one.number).exists():
        with contextlib.suppress(StoreError):
            desk.launches.put(workdir.state(one.number), f"{version.record.run_id}/try-{one.number}.tfstate")


def _leave_if_cancelled(desk: Desk, version: Version) -> None:
    if desk.launches.exists(f"{version.record.run_id}/{record.CANCEL}"):
        closed = replace(version.record, phase="cancelled", closing="cancelled while it was being launched")
        record.save(desk.launches, version, closed)
        raise UsageError(version.record.run_id, "was cancelled", f"python -m job resubmit {version.record.run_id}")


def _cell(one: Try) -> Cell:
    return Cell(one.shape, one.availability_domain, one.fault_domain)
