"""The verbs that work on OCI, as the command line has them. Each imports what it needs when it is called.

submit · list · status · logs · cancel · resubmit · sweep, and what `doctor --cloud` and `plan --live` add.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from job.errors import UsageError

if TYPE_CHECKING:
    from job.cloud.launch import Desk
    from job.cloud.submit import Order
    from job.spec.schema import Resources

YES = ("y", "yes")
SUPERVISE = 30.0  # seconds between two looks of `resubmit --auto`


def add(verbs: Any, spec: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Adds their parsers. `verbs` is what add_subparsers returned."""
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("run", metavar="RUN", help="the run's id")
    sure = argparse.ArgumentParser(add_help=False)
    sure.add_argument("-y", "--yes", action="store_true", help="do not ask")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--json", action="store_true", help="for programs")

    def verb(name: str, call: Callable[[argparse.Namespace], int], *parents: Any, **words: str) -> Any:
        parser = verbs.add_parser(name, parents=[*parents, common], **words)
        parser.set_defaults(verb=call)
        return parser

    made = verb("submit", submit, spec, sure, help="run the spec on an OCI GPU instance")
    made.add_argument("-n", "--run-id", metavar="ID", help="name of the run; the same id again goes on")
    made.add_argument("--image", help="container image by digest; default $JOB_IMAGE")
    made.add_argument("--minutes", type=float, metavar="M", help="how long you expect the training to take")
    made.add_argument("--to", choices=("instance", "data-science", "batch"), default="instance", help="who runs it")
    made.add_argument("--project", metavar="OCID", help="of the Data Science project, for --to data-science")
    made.add_argument("--force", action="store_true", help="although the table of shapes says no")
    made.add_argument("-f", "--follow", action="store_true", help="then show the log until the run is over")
    verb("list", overview, machine, help="every run on OCI, and every instance")
    verb("status", status, run, machine, help="heartbeat, instance, cost so far, why it failed")
    made = verb("logs", logs, run, help="the run's log")
    made.add_argument("-f", "--follow", action="store_true", help="go on until the run is over")
    made.add_argument("--since", metavar="WHEN", help="only what is newer: 10m, 2h, or 2026-11-24T13:00:00Z")
    made.add_argument("--source", choices=("job", "container", "boot"), help="default: the first of these there is")
    made.add_argument("--node", type=int, metavar="N", default=0, help="of several instances; 0 is the first")
    made = verb("cancel", cancel, run, sure, help="stop the run in order, then end its instance")
    made.add_argument("--now", action="store_true", help="end the instance at once")
    made = verb("resubmit", resubmit, run, sure, help="go on from the last checkpoint on a new instance")
    made.add_argument("--auto", type=int, metavar="N", default=0, help="stay, and go on after up to N interruptions")
    verb("sweep", sweep, sure, help="find instances that outlived their run; --yes ends them")


def submit(options: argparse.Namespace) -> int:
    from job.cloud import foundation, history, managed, show
    from job.cloud import submit as submitting
    from job.spec.load import spec_hash

    base = foundation.read()
    made = submitting.order(
        options.spec, options.set, base, run_id=options.run_id, image=options.image, force=options.force
    )
    if options.to == "batch":
        print(json.dumps(managed.batch(base, made), indent=2))
        return 0
    desk = _desk()
    known = history.earlier(desk, made.loaded.spec.name, spec_hash(made.loaded.spec))
    for one in submitting.quote(made, options.minutes, known):
        print("\n".join(one.lines()))
    print(f"run id {made.run_id}, results in {made.loaded.spec.store.uri}/{made.run_id}")
    _sure(options.yes, "Launch?")
    if options.to == "data-science":
        print(managed.start(base, made, options.project))
        return 0
    _launch(desk, made)
    if options.follow:
        for line in show.logs(desk, made.run_id, follow=True, since=None, source=None):
            print(line, flush=True)
    return 0


def overview(options: argparse.Namespace) -> int:
    from job.cloud import show

    desk = _desk()
    rows = show.overview(desk)
    print(json.dumps(rows, indent=2) if options.json else "\n".join(show.table(rows, desk.clock())))
    return 0


def status(options: argparse.Namespace) -> int:
    from job.cloud import show, view

    desk = _desk()
    if options.json:
        print(json.dumps(show.as_json(view.look(desk, options.run)), indent=2))
        return 0
    for line in show.status(desk, options.run):
        print(line)
    return 0


def logs(options: argparse.Namespace) -> int:
    from job.cloud import show

    since = None if options.since is None else _moment(options.since)
    wanted = {"follow": options.follow, "since": since, "source": options.source, "node": options.node}
    for line in show.logs(_desk(), options.run, **wanted):
        print(line, flush=True)
    return 0


def cancel(options: argparse.Namespace) -> int:
    from job.cloud import ending, view

    desk = _desk()
    seen = view.look(desk, options.run)
    print(f"{options.run} is {seen.state}, with {len(seen.alive)} instance(s)")
    _sure(options.yes, "Cancel it?")
    ended = ending.cancel(desk, options.run, now=options.now)
    print(
        f"terminated {', '.join(ended)}"
        if ended
        else "stopped; it ended its instance itself"
        if seen.alive
        else "closed"
    )
    return 0


def resubmit(options: argparse.Namespace) -> int:
    from job.cloud import ending, view
    from job.cloud import submit as submitting

    desk = _desk()
    seen = view.look(desk, options.run)
    if options.auto and seen.state not in view.OVER:
        print(f"{options.run} is {seen.state}; waiting for its end")
        seen = ending.wait_until_over(desk, options.run, SUPERVISE)
    left = max(1, options.auto)
    while seen.state != "complete" or not options.auto:
        ending.may_resubmit(seen)
        if left == 0:
            raise UsageError(
                options.run, f"is {seen.state} again after {options.auto} resubmissions", "look at its status"
            )
        spent = seen.usd or 0.0
        print(f"{options.run} is {seen.state}; about {spent:.2f} USD so far")
        _sure(options.yes, "Launch it again?")
        ending.close_try(desk, seen)
        _launch(desk, submitting.again(desk, seen.record), spent)
        left -= 1
        if not options.auto:
            return 0
        options.yes = True
        seen = ending.wait_until_over(desk, options.run, SUPERVISE)
        if seen.state == "failed":
            raise UsageError(
                options.run, "failed, which another launch would repeat", f"python -m job status {options.run}"
            )
    ending.close_try(desk, seen)
    print(f"{options.run} is complete: {seen.record.store_uri}/{options.run}")
    return 0


def sweep(options: argparse.Namespace) -> int:
    from job.cloud import ending

    desk = _desk()
    verdicts = ending.sweep(desk)
    for one in verdicts:
        word = "end " if one.end else "keep"
        print(f"{word}  {one.machine.run_id}  {one.machine.shape}  {one.machine.id}: {one.why}")
    condemned = [one for one in verdicts if one.end]
    if not condemned:
        print("nothing outlived its run")
    elif not options.yes:
        print(f"{len(condemned)} to end; --yes ends them")
    else:
        for identifier in ending.carry_out(desk, verdicts):
            print(f"terminated {identifier}")
    return 0


def doctor(options: argparse.Namespace) -> tuple[list[str], bool]:
    """What `doctor --cloud` finds; at a terminal it offers to end what was left behind."""
    from job.cloud import checks, ending

    lines, healthy = checks.examine(_desk)
    if healthy or not sys.stdin.isatty():
        return lines, healthy
    print("\n".join(lines))
    desk = _desk()
    condemned = [one for one in ending.sweep(desk) if one.end]
    if condemned and input(f"End {len(condemned)} instance(s) that outlived their run? [y/N] ").lower() in YES:
        return [f"ok  terminated {identifier}" for identifier in ending.carry_out(desk, condemned)], True
    return [], False


def live(resources: "Resources") -> list[str]:
    """What `plan --live` adds: what the API says of the spec's shapes."""
    from job.cloud import checks

    names = [one for one in (resources.shape, *resources.fallback) if one is not None]
    return checks.offers(_desk(), names, resources.nodes)


def _desk() -> "Desk":
    from job.cloud import clients, foundation
    from job.cloud.launch import Desk
    from job.storage.store import open_store

    base = foundation.read()
    cloud = clients.connect(base)
    stores = open_store(base.launches_uri), open_store(base.store_uri)
    return Desk(cloud, *stores, time.time, time.sleep, lambda text: print(text, flush=True))


def _launch(desk: "Desk", made: "Order", spent: float | None = None) -> None:
    """Launches, or with `spent` launches again; shows the tries, whatever came of them."""
    from job.cloud import launch, record
    from job.cloud import submit as submitting

    try:
        version = submitting.submit(desk, made) if spent is None else submitting.relaunch(desk, made, spent)
    except BaseException:
        seen = record.read(desk.launches, made.run_id)
        if seen is not None:
            print("\n".join(launch.table(seen.record.tries)), file=sys.stderr)
        raise
    print("\n".join(launch.table(version.record.tries)))
    print(f"follow it: python -m job logs -f {made.run_id}; end it: python -m job cancel {made.run_id}")


def _sure(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("--yes", "there is nobody to ask", "add --yes if you are sure")
    if input(f"{question} [y/N] ").strip().lower() not in YES:
        raise UsageError(question.rstrip("?").lower(), "you said no", "nothing was changed")


def _moment(text: str) -> float:
    """A time, or how long ago, as Unix seconds."""
    from datetime import datetime

    from job.spec.schema import parse_duration

    try:
        return time.time() - float(parse_duration(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--since", f"{text!r} is no time", "for example 10m, 2h or 2026-11-24T13:00:00Z") from None
    return moment.astimezone().timestamp()
