"""The verbs as a person calls them, from submit to sweep, against the loopback tenancy."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from job import cli, cloud_verbs
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.storage.store import open_store
from tests.cloud.conftest import IMAGE, Clock, Tell
from tests.cloud_server.server import CloudServer


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def submit(capsys: pytest.CaptureFixture[str], spec: Path, *more: str) -> tuple[int, str, str]:
    return call(capsys, "submit", spec, "--run-id", "digits-1", "--image", IMAGE, *more)


def test_a_life_from_submit_to_sweep(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer, desk: Desk, tmp_path: Path
) -> None:
    code, out, err = submit(capsys, spec, "--minutes", "12", "--yes")
    assert (code, err) == (0, "")
    assert "VM.GPU.A10.1: 2.00 USD/h" in out
    assert "train        12.0 min  from --minutes" in out
    assert "at most 4.10 USD a launch" in out
    assert "results in oci://bucket@space/runs/digits-1" in out
    assert "python -m job logs -f digits-1" in out
    assert len(server.tenancy.alive()) == 1

    tell = Tell(desk, "digits-1", Clock(), tmp_path)
    tell.instance(phase="running")
    tell.job(status="running", phase="train", epoch=2)
    tell.put_text("logs/job.log", "2020-01-01T00:00:00+00:00 long ago\n")
    assert "digits-1  running  VM.GPU.A10.1" in call(capsys, "list")[1]
    (row,) = json.loads(call(capsys, "list", "--json")[1])
    assert (row["run_id"], row["state"], row["owner"]) == ("digits-1", "running", "ada")
    assert call(capsys, "status", "digits-1")[1].startswith("digits-1: running")
    assert json.loads(call(capsys, "status", "digits-1", "--json")[1])["heartbeat"]["epoch"] == 2
    assert call(capsys, "logs", "digits-1")[1] == "2020-01-01T00:00:00+00:00 long ago\n"
    assert call(capsys, "logs", "digits-1", "--since", "10m")[1] == ""
    assert call(capsys, "logs", "digits-1", "--since", "soon")[0] == 2
    assert "keep  digits-1" in call(capsys, "sweep")[1]

    code, out, _ = call(capsys, "cancel", "digits-1", "--now", "--yes")
    assert code == 0
    assert "terminated ocid1.instance." in out
    assert server.tenancy.alive() == []
    assert call(capsys, "sweep", "--yes")[1] == "nothing outlived its run\n"
    code, out, _ = call(capsys, "doctor", "--cloud")
    assert (code, out.splitlines()[-1]) == (0, "ok  instances: none, so none is paid for")


def test_nothing_happens_unasked(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer
) -> None:
    code, out, err = submit(capsys, spec)
    assert code == 2
    assert "at most" in out, "the price comes before the question"
    assert err == "--yes: there is nobody to ask; add --yes if you are sure\n"
    assert server.tenancy.launches == 0
    assert list(server.objects) == []


def test_when_all_fails_the_tries_are_shown(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer
) -> None:
    server.tenancy.refusals = {("*", "*", "*"): "limit"}
    code, _, err = submit(capsys, spec, "--yes")
    assert code == 1
    lines = err.splitlines()
    assert [line.split()[:4] for line in lines[:2]] == [[str(n), "VM.GPU.A10.1", "in", f"PHX-AD-{n},"] for n in (1, 2)]
    assert "limit  400-LimitExceeded" in lines[0]
    assert "ask for a higher service limit" in lines[2]


def test_batch_is_rendered_without_a_network(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer
) -> None:
    code, out, _ = submit(capsys, spec, "--to", "batch")
    assert code == 0
    assert list(json.loads(out)) == [
        "batch-context",
        "batch-job-pool",
        "batch-task-environment",
        "batch-task-profile",
        "batch-job",
    ]
    assert server.told == []


def test_data_science_is_started(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer
) -> None:
    code, out, _ = submit(capsys, spec, "--to", "data-science", "--project", "ocid1.datascienceproject.oc1..a", "--yes")
    assert code == 0
    assert "ACCEPTED" in out
    assert server.tenancy.launches == 0


def test_a_spec_in_the_bucket_is_run_from_there(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a scheduler's container does it; that the run would begin is enough to see."""
    spec.write_text("dataset: {name: digits}\nmodel: {name: tutorial_net}\nbroken: true\n")
    open_store(base.launches_uri).put(spec, "digits-1/spec.yaml")
    code, _, err = call(capsys, "run", f"{base.launches_uri}/digits-1/spec.yaml")
    assert code == 2
    assert "spec.yaml:3:1: broken: not a key" in err


@pytest.mark.parametrize("verb", ["list", "status", "logs", "cancel", "resubmit", "sweep"])
def test_without_a_foundation_the_cure_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JOB_FOUNDATION", raising=False)
    code, out, err = call(capsys, verb, *([] if verb in ("list", "sweep") else ["digits-1"]))
    assert (code, out) == (2, "")
    assert "terraform -chdir=infra/foundation output -json > foundation.json" in err


def test_resubmit_goes_on_after_interruptions_until_complete(
    capsys: pytest.CaptureFixture[str],
    base: Foundation,
    spec: Path,
    server: CloudServer,
    desk: Desk,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit(capsys, spec, "--yes")
    tell = Tell(desk, "digits-1", clock, tmp_path)
    rounds: list[int] = []

    def sleep(seconds: float) -> None:
        """Each wait, the instance is taken away; the third time the run had come to its end."""
        clock.sleep(seconds)
        rounds.append(1)
        tell.job(status="running" if len(rounds) < 3 else "complete")
        if len(rounds) == 3:
            tell.put("manifest.json", {})
        for one in server.tenancy.alive():
            one["lifecycleState"] = "TERMINATED"

    monkeypatch.setattr(cloud_verbs, "_desk", lambda: replace(desk, sleep=sleep))
    code, out, _ = call(capsys, "resubmit", "digits-1", "--auto", "3", "--yes")
    assert code == 0
    assert out.splitlines()[-1] == "digits-1 is complete: oci://bucket@space/runs/digits-1"
    assert server.tenancy.launches == 3
    assert server.tenancy.most == 1


def test_resubmit_gives_up_after_so_many_times(
    capsys: pytest.CaptureFixture[str],
    base: Foundation,
    spec: Path,
    server: CloudServer,
    desk: Desk,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit(capsys, spec, "--yes")

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        for one in server.tenancy.alive():
            one["lifecycleState"] = "TERMINATED"

    monkeypatch.setattr(cloud_verbs, "_desk", lambda: replace(desk, sleep=sleep))
    code, _, err = call(capsys, "resubmit", "digits-1", "--auto", "2", "--yes")
    assert code == 2
    assert "is lost again after 2 resubmissions" in err
    assert server.tenancy.launches == 3


def test_plan_live_asks_the_api(
    capsys: pytest.CaptureFixture[str], base: Foundation, spec: Path, server: CloudServer
) -> None:
    code, out, err = call(capsys, "plan", spec, "--live")
    assert (code, err) == (0, "")
    assert "PHX-AD-1  VM.GPU.A10.1: offered, 1 × NVIDIA A10; 8 GPUs left of gpu-a10-count; available" in out


def test_doctor_offers_to_end_what_was_left_behind(
    capsys: pytest.CaptureFixture[str],
    base: Foundation,
    spec: Path,
    server: CloudServer,
    desk: Desk,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit(capsys, spec, "--yes")
    clock.now += 10 * 3600
    monkeypatch.setattr(cloud_verbs, "_desk", lambda: desk)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert call(capsys, "doctor", "--cloud")[0] == 1
    assert len(server.tenancy.alive()) == 1
    code, out, _ = call(capsys, "doctor", "--cloud")
    assert code == 0
    assert "ok  terminated ocid1.instance." in out
    assert server.tenancy.alive() == []
