"""Two machines, as two trees of processes on the loopback with folders of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import JobError, UsageError
from job.training.nodes import BROKE, Meeting, Nodes, from_environ, interface_to

RUN = """
name: two
dataset: {name: digits, subset: 300, validation: 0.2}
loader: {batch_size: 32}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 12, log_every: 1, device: cpu}
resources: {nodes: 2, processes: 1}
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    return found


class Machine:
    """One of two; `end` kills what is left of it."""

    def __init__(self, folder: Path, number: int, port: int, *changes: str) -> None:
        self.folder = folder / str(number)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "spec.yaml").write_text(RUN)
        sets = [word for change in (f"store.uri={self.folder}", *changes) for word in ("--set", change)]
        environ = {"JOB_NODES": "2", "JOB_NODE_RANK": str(number), "JOB_RENDEZVOUS": f"127.0.0.1:{port}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "job", "run", str(self.folder / "spec.yaml"), "--run-id", "run", *sets],
            env={**os.environ, **environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""

    def wait_for(self, start: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith(start):
                return
        raise AssertionError(self.process.communicate()[1])

    def end(self, timeout: float = 240) -> tuple[int, str, str]:
        said, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, self.said + said, errors


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    started: list[Machine] = []
    yield started
    for machine in started:
        machine.process.kill()
        machine.process.communicate()


@pytest.mark.slow
def test_a_machine_is_lost_and_comes_back_and_the_first_one_has_the_result(
    tmp_path: Path, port: int, machines: list[Machine]
) -> None:
    first, second = Machine(tmp_path, 0, port), Machine(tmp_path, 1, port)
    machines += [first, second]
    first.wait_for("Saved")
    second.process.kill()  # and all of its ranks with it
    machines.append(again := Machine(tmp_path, 1, port))
    code, said, errors = first.end()
    assert code == 0, errors
    assert again.end()[0] == 0
    assert "begin again from the last checkpoint" in errors
    assert "Resumed from step-" in said
    assert said.count("Done: run") == 1
    report = json.loads((tmp_path / "0/run/report.json").read_text())
    assert [entry["epoch"] for entry in report["history"]] == list(range(1, 13))
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == ["spec.yaml"]


@pytest.mark.slow
def test_sigterm_on_one_machine_interrupts_both(tmp_path: Path, port: int, machines: list[Machine]) -> None:
    first, second = (Machine(tmp_path, number, port, "train.epochs=100000") for number in (0, 1))
    machines += [first, second]
    first.wait_for("[2,")
    second.process.send_signal(signal.SIGTERM)
    code, _, errors = first.end()
    assert (code, second.end()[0]) == (75, 75), errors
    assert "stopped, received SIGTERM" in errors
    assert json.loads((tmp_path / "0/run/status.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_what_one_machine_lacks_ends_both_in_a_line(tmp_path: Path, port: int, machines: list[Machine]) -> None:
    first = Machine(tmp_path, 0, port)
    second = Machine(tmp_path, 1, port, "dataset.subset=200")
    machines += [first, second]
    code, _, errors = first.end()
    assert (code, second.end()[0]) == (2, 2), errors
    assert "dataset digits: on machine 1 it is not what the first one has" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "who"), [(0, "number 1"), (1, "the first one")])
def test_a_machine_that_never_comes_ends_the_others(
    tmp_path: Path, port: int, machines: list[Machine], number: int, who: str
) -> None:
    machines.append(alone := Machine(tmp_path, number, port, "resources.first_step_timeout=2s"))
    code, said, errors = alone.end()
    assert (code, said) == (1, "")
    assert errors.count("\n") == 1
    assert f"of 2 machines {who} did not come within 1 s" in errors


def test_all_hear_how_a_round_ended_and_meet_again(port: int) -> None:
    nodes = [Nodes(number, 3, "127.0.0.1", port) for number in range(3)]
    meetings = [Meeting(node, 60) for node in nodes]
    with ThreadPoolExecutor(3) as pool:

        def begin() -> list[int | None]:
            return list(pool.map(lambda meeting: meeting.begin(lambda: False), meetings))

        ports = begin()
        assert None not in ports
        assert len(set(ports)) == 1
        meetings[1].wish()
        assert meetings[2].end(BROKE) == BROKE
        assert meetings[0].end("75") == BROKE, "what was said first holds"
        hear(meetings, BROKE)
        assert meetings[0].stop
        begin()
        assert not meetings[0].stop
        meetings[2].hang_up()
        meetings[2] = Meeting(nodes[2], 60)  # it was killed and comes back
        back = pool.submit(meetings[2].begin, lambda: False)
        hear(meetings[:2], BROKE)
        again = [pool.submit(meeting.begin, lambda: False) for meeting in meetings[:2]]
        assert len({found.result() for found in [back, *again]}) == 1
        meetings[0].end("0")
        hear(meetings, "0")
        list(pool.map(lambda meeting: meeting.leave(60), meetings))


def hear(meetings: list[Meeting], what: str) -> None:
    until = time.monotonic() + 60
    while any(meeting.over != what for meeting in meetings):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_stop_ends_the_waiting(port: int) -> None:
    assert Meeting(Nodes(1, 2, "127.0.0.1", port), 60).begin(lambda: True) is None


def test_the_environment_is_what_the_spec_says() -> None:
    said = {"JOB_NODES": "2", "JOB_NODE_RANK": "1", "JOB_RENDEZVOUS": "host-0.example:29500"}
    assert from_environ(said, 2) == Nodes(1, 2, "host-0.example", 29500)
    assert from_environ({}, 1) is None
    assert from_environ({**said, "JOB_NODES": "1", "JOB_NODE_RANK": "0"}, 1) is None
    for environ, wanted, why in [
        ({}, 2, "2 machines need JOB_NODES, JOB_NODE_RANK, JOB_RENDEZVOUS"),
        (said, 3, "2, and resources.nodes is 3"),
        ({**said, "JOB_NODE_RANK": "2"}, 2, "count from 0"),
        ({**said, "JOB_RENDEZVOUS": "host"}, 2, "no sense in"),
        ({"JOB_NODES": "2"}, 2, "no sense in"),
    ]:
        with pytest.raises(UsageError, match=why):
            from_environ(environ, wanted)


def test_a_port_that_is_taken_is_said(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        with pytest.raises(JobError, match="JOB_RENDEZVOUS: the machines cannot meet here"):
            Meeting(Nodes(0, 2, "127.0.0.1", port), 5).begin(lambda: False)


def test_the_way_to_this_machine_is_the_loopback() -> None:
    assert interface_to("127.0.0.1", 29500) == "lo"
