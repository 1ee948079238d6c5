"""cancel, sweep and resubmit: how runs end, and begin again.

Three layers end an instance: the job itself, the watchdog on it, and `sweep` from outside. Sweep ends what outlived
its run, and never what still gives signs of life: a run whose heartbeat is fresh, or cannot be read, is left alone.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from job.cloud import clients, record, view
from job.cloud.clients import Machine
from job.cloud.launch import SETTLE, Desk
from job.cloud.view import OVER, View
from job.errors import JobError, UsageError
from job.runfolder import write_text
from job.storage.store import StoreError

GRACE = 300.0  # seconds an instance gets to notice a cancel (30), stop the job (120) and ship its logs
LOOK = 5.0  # seconds between two looks
ENDING = 600.0  # seconds an instance may take to end itself after its run is over or its time is up


@dataclass(frozen=True)
class Verdict:
    """What sweep thinks of an instance."""

    machine: Machine
    end: bool
    why: str


def cancel(desk: Desk, run_id: str, *, now: bool) -> list[str]:
    """Asks the run to stop in order, then terminates what is left. The ids of what had to be terminated."""
    seen = view.look(desk, run_id)
    _ask_to_stop(desk, run_id)
    _close(desk, run_id)
    deadline = desk.clock() + (0.0 if now or not seen.alive else GRACE)
    while seen.alive and desk.clock() < deadline:
        desk.sleep(LOOK)
        seen = view.look(desk, run_id)
    ended = [one.id for one in clients.machines(desk.cloud, run_id) if one.alive]
    for instance_id in ended:
        clients.terminate(desk.cloud, instance_id)
    return ended


def sweep(desk: Desk) -> list[Verdict]:
    """A verdict on every instance of a run that is there. Ends nothing."""
    found = [one for one in clients.machines(desk.cloud) if one.alive]
    return sorted((_judge(desk, one) for one in found), key=lambda one: (not one.end, one.machine.run_id))


def carry_out(desk: Desk, verdicts: list[Verdict]) -> list[str]:
    """Ends what the verdicts condemn; each is looked at once more, since the list may be minutes old."""
    ended = []
    for verdict in verdicts:
        if verdict.end and _still(desk, verdict):
            clients.terminate(desk.cloud, verdict.machine.id)
            ended.append(verdict.machine.id)
    return ended


def may_resubmit(seen: View) -> None:
    """UsageError unless the run is over, not complete, and has money left."""
    run_id = seen.record.run_id
    if seen.state == "complete":
        cure = f"python -m job fetch {seen.record.store_uri}/{run_id}"
        raise UsageError(run_id, "is complete; there is nothing to go on with", cure)
    if seen.state not in view.RESUMABLE and seen.state != "submitting":
        raise UsageError(run_id, f"is {seen.state}", f"python -m job cancel {run_id} ends it first")
    if seen.record.max_cost is not None and seen.usd is not None and seen.usd >= seen.record.max_cost:
        what = f"has cost about {seen.usd:.2f} USD of resources.max_cost {seen.record.max_cost:.2f}"
        raise UsageError(run_id, what, "submit it under a new id, or with a higher max_cost")


def wait_until_over(desk: Desk, run_id: str, poll: float) -> View:
    """Returns once the run has ended. What cannot be asked is asked again: unreachable is not over."""
    while True:
        try:
            seen = view.look(desk, run_id)
        except StoreError as error:
            desk.say(f"{run_id}: the bucket cannot be asked ({error.what}); again in {poll:.0f} s")
        else:
            if seen.state in OVER:
                return seen
        desk.sleep(poll)


def close_try(desk: Desk, seen: View) -> None:
    """Writes down when the last launch ended, so that what it cost stays known."""
    last = seen.record.last
    version = record.read(desk.launches, seen.record.run_id)
    if last is None or version is None or version.record.last != last or last.ended is not None:
        return
    done = replace(last, ended=min(seen.sign or last.expires, last.expires))
    record.save(desk.launches, version, version.record.with_try(done))


def _ask_to_stop(desk: Desk, run_id: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / record.CANCEL
        write_text(path, f"{desk.clock():.0f}\n")
        desk.launches.put(path, f"{run_id}/{record.CANCEL}")


def _close(desk: Desk, run_id: str) -> None:
    """The record says cancelled; a submit at work finds it changed and undoes its try."""
    for _ in range(5):
        version = record.read(desk.launches, run_id)
        if version is None or version.record.phase in ("cancelled", "failed"):
            return
        try:
            record.save(desk.launches, version, replace(version.record, phase="cancelled", closing="cancelled by hand"))
        except UsageError:
            continue
        return
    raise JobError(run_id, "its record changes faster than it can be closed", "run cancel again")


def _judge(desk: Desk, machine: Machine) -> Verdict:
    now = desk.clock()
    try:
        seen = view.look(desk, machine.run_id, [machine])
    except UsageError:
        if now - machine.created < SETTLE:
            return Verdict(machine, False, "it was made just now")
        return Verdict(machine, True, "no run of this id has a record")
    except StoreError as error:
        return Verdict(machine, False, f"the bucket cannot be asked, so nobody knows ({error.what})")
    if seen.troubles:
        return Verdict(machine, False, f"nobody knows: {'; '.join(seen.troubles)}")
    if seen.fresh and not seen.sealed:
        return Verdict(machine, False, f"alive: a sign {seen.age:.0f} s ago")
    if seen.sealed and now - (seen.sign or machine.created) > ENDING:
        return Verdict(machine, True, "its run is complete")
    if machine.expires is not None and now > machine.expires + ENDING:
        return Verdict(machine, True, f"its time was up {(now - machine.expires) / 60:.0f} min ago")
    if seen.record.phase in ("cancelled", "failed") and now - (seen.sign or machine.created) > ENDING:
        return Verdict(machine, True, f"its run is {seen.record.phase}")
    last = seen.record.last
    known = last is not None and (machine.id in last.instances or last.outcome is None)
    if not known and now - machine.created > ENDING:
        return Verdict(machine, True, "its run's record names another instance")
    return Verdict(machine, False, "its time lasts" if machine.expires else "it has no end, and no reason to end it")


def _still(desk: Desk, verdict: Verdict) -> bool:
    return _judge(desk, verdict.machine).end
