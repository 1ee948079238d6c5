"""kill -9 at every request of a submit, then the same submit again: one instance, never two, none forgotten.

The same for two nodes. The first place has no capacity, or for one of two only, so that the undoing of a try is on the
way too. Killed alone, submit leaves a terraform at work; killed with it, a launch may have been accepted that no state
tells of. What would come to the same is not done twice: dying of the answer to a read is dying before the next request,
and a terraform is at work only while it makes requests itself.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from job.cloud import record
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from tests.cloud.conftest import IMAGE, ROOT
from tests.cloud_server.server import DOMAINS, CloudServer, Kill

CHANGES = ("put", "delete", "launch", "terminate")
TERRAFORMS = ("launch", "terminate")
EFFECTS: dict[str, tuple[Literal["before", "after"], ...]] = {
    "before": ("before",),
    "after": ("after",),
    "with-terraform": ("before", "after"),
}


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


def crowded(server: CloudServer, nodes: int) -> None:
    """The first place tried has no room, though the report says so."""
    server.tenancy.report = {("*", "*", "*"): "AVAILABLE"}
    if nodes == 1:
        server.tenancy.refusals = {("*", DOMAINS[0], "FAULT-DOMAIN-1"): "capacity"}
    else:
        server.tenancy.room = {DOMAINS[0]: nodes - 1}


def requests(submits: Submits, server: CloudServer) -> list[str]:
    """The operations of a submit that nobody disturbs, in order."""
    server.told.clear()
    assert submits.run(server, "digits-counted") == 0
    operations = [told.operation for told in server.told]
    server.tenancy.instances.clear()
    return operations


def killed_at(kill: Kill, submits: Submits, server: CloudServer, desk: Desk, run_id: str) -> None:
    """Kills a submit, submits again, and checks."""
    tenancy = server.tenancy
    tenancy.most = 0
    assert submits.run(server, run_id, kill) == -9
    assert submits.run(server, run_id) == 0, f"{run_id}: the second submit succeeds"
    alive = [one["id"] for one in tenancy.alive()]
    version = record.read(desk.launches, run_id)
    assert version is not None
    last = version.record.last
    assert last is not None
    assert (version.record.phase, last.outcome) == ("launched", "launched"), run_id
    assert list(last.instances) == alive, f"{run_id}: the record names what there is"
    assert len(alive) == submits.nodes, run_id
    assert tenancy.most == submits.nodes, f"{run_id}: there was never one more"
    tenancy.instances.clear()


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", EFFECTS)
def test_killed_at_every_request(submits: Submits, server: CloudServer, desk: Desk, way: str) -> None:
    crowded(server, submits.nodes)
    operations = requests(submits, server)
    assert operations.count("launch") == 2 * submits.nodes, "of the first place, and of the second"
    for at, operation in enumerate(operations, 1):
        if (way == "after" and operation not in CHANGES) or (way == "with-terraform" and operation not in TERRAFORMS):
            continue
        for effect in EFFECTS[way]:
            kill = Kill(0, at, effect, way == "with-terraform")
            killed_at(kill, submits, server, desk, f"digits-{at}-{effect}")
            assert kill.operation == operation, "the same requests in the same order"


@pytest.mark.parametrize("effect", ["before", "after"])
def test_killed_at_the_launch(
    submits: Submits, server: CloudServer, desk: Desk, effect: Literal["before", "after"]
) -> None:
    """The one moment that counts most, quickly enough for every round of tests."""
    at = requests(submits, server).index("launch") + submits.nodes  # of several, the last
    server.tenancy.launches = 0
    killed_at(Kill(0, at, effect, True), submits, server, desk, "digits-killed")
    ended = submits.nodes - 1 if effect == "before" else 0  # what stood of a try that nobody finished
    assert server.tenancy.launches == submits.nodes + ended


def test_ctrl_c_at_the_launch_undoes_it(submits: Submits, server: CloudServer, desk: Desk) -> None:
    at = requests(submits, server).index("launch") + 1
    server.tenancy.launches = 0
    assert submits.run(server, "digits-1", Kill(0, at, "after", False, number=signal.SIGINT)) == 75
    assert 0 < server.tenancy.launches <= submits.nodes, "the request was on its way"
    assert server.tenancy.alive("digits-1") == []
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    assert (version.record.phase, version.record.closing) == ("cancelled", "interrupted by Ctrl-C")
    assert [one.outcome for one in version.record.tries] == ["interrupted"]
