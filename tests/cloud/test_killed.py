"""kill -9 at every request of a submit, then the same submit again: one instance, never two, none forgotten.

The same for two nodes. The first place has no capacity, or for one of two only, so that the undoing of a try is on the
way too. Killed alone, submit leaves a terraform at work; killed with it, a launch may have been accepted that no state
tells of.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.cloud import ending, record
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from tests.cloud.conftest import IMAGE, ROOT, Clock
from tests.cloud_server.server import DOMAINS, CloudServer, Kill


class Submits:
    """Submits in processes of their own."""

    def __init__(self, spec: Path, nodes: int) -> None:
        self.spec, self.nodes = spec, nodes
        command = [sys.executable, "-m", "tests.cloud_server.zygote"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, server: CloudServer, run_id: str, kill: Kill | None = None) -> int:
        """The exit status. `kill.victim` is filled in."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._write(json.dumps({"run_id": run_id, "image": IMAGE, "spec": str(self.spec)}))
        pid = int(self.process.stdout.readline())
        if kill is not None:
            kill.victim = pid
        server.kill = kill
        self._write("go")
        status = int(self.process.stdout.readline())
        server.kill = None
        return status

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def close(self) -> str:
        _, errors = self.process.communicate(timeout=30)
        return errors


@pytest.fixture(params=[1, 2], ids=["one-node", "two-nodes"])
def submits(base: Foundation, spec: Path, request: pytest.FixtureRequest) -> Iterator[Submits]:
    spec.write_text(spec.read_text().replace("resources: {", f"resources: {{nodes: {request.param}, "))
    started = Submits(spec, request.param)
    yield started
    assert started.close() == "", "no submit complained"


def killed_at(
    at: int, effect: str, children: bool, submits: Submits, server: CloudServer, desk: Desk, run_id: str
) -> bool:
    """Kills a submit at its nth request, submits again, and checks; False once it had fewer requests than that."""
    tenancy = server.tenancy
    tenancy.most = 0
    kill = Kill(0, at, effect, children)  # type: ignore[arg-type]
    first = submits.run(server, run_id, kill)
    if not kill.done:
        assert first == 0
        return False
    assert first == -9
    assert submits.run(server, run_id) == 0, f"{run_id}: the second submit succeeds"
    alive = [one["id"] for one in tenancy.alive(run_id)]
    version = record.read(desk.launches, run_id)
    assert version is not None
    last = version.record.last
    assert last is not None
    assert (version.record.phase, last.outcome) == ("launched", "launched"), run_id
    assert list(last.instances) == alive, f"{run_id}: the record names the one instance there is"
    assert len(alive) == submits.nodes, run_id
    assert tenancy.most == submits.nodes, f"{run_id}: there was never one more"
    return True


@pytest.mark.exhaustive
@pytest.mark.parametrize("children", [False, True], ids=["alone", "with-terraform"])
@pytest.mark.parametrize("effect", ["before", "after"])
def test_killed_at_every_request(
    submits: Submits, server: CloudServer, desk: Desk, clock: Clock, effect: str, children: bool
) -> None:
    if submits.nodes == 1:
        server.tenancy.refusals = {("*", DOMAINS[0], "FAULT-DOMAIN-1"): "capacity"}
    server.tenancy.report = {("*", "*", "*"): "AVAILABLE"}  # which is not so
    at = 1
    if submits.nodes > 1:
        server.tenancy.room = {DOMAINS[0]: submits.nodes - 1}
    while killed_at(at, effect, children, submits, server, desk, f"digits-{at}"):
        at += 1
    assert at > 8, "domains, report, two launches and what lies between"
    clock.now += 3600
    assert [one.machine.run_id for one in ending.sweep(desk) if one.end] == [], "no instance without a record"


@pytest.mark.parametrize("effect", ["before", "after"])
def test_killed_at_the_launch(submits: Submits, server: CloudServer, desk: Desk, effect: str) -> None:
    """The one moment that counts most, quickly enough for every round of tests."""
    submits.run(server, "digits-counted")
    operations = [told.operation for told in server.told]
    at = operations.index("launch") + submits.nodes  # of several, the last
    server.told.clear()
    assert killed_at(at, effect, True, submits, server, desk, "digits-killed")
    ended = submits.nodes - 1 if effect == "before" else 0  # what stood of a try that nobody finished
    assert server.tenancy.launches == 2 * submits.nodes + ended


def test_ctrl_c_at_the_launch_undoes_it(submits: Submits, server: CloudServer, desk: Desk) -> None:
    submits.run(server, "digits-counted")
    at = [told.operation for told in server.told].index("launch") + 1
    assert submits.run(server, "digits-1", Kill(0, at, "after", False, number=signal.SIGINT)) == 75
    assert submits.nodes < server.tenancy.launches <= 2 * submits.nodes, "the request was on its way"
    assert server.tenancy.alive("digits-1") == []
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    assert (version.record.phase, version.record.closing) == ("cancelled", "interrupted by Ctrl-C")
    assert [one.outcome for one in version.record.tries] == ["interrupted"]
