"""What happens on an instance, from first boot to its end. Whatever goes wrong, it ends in TerminateInstance."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from tests.infra.machine import Machine
from tests.infra.oracle import INSTANCE, Oracle

RUN_ID = "demo-20261124-1a2b3c"


@pytest.fixture(autouse=True)
def signatures_hold(oracle: Oracle) -> object:
    yield
    assert oracle.refused == []


def test_a_run_that_succeeds(machine: Machine, oracle: Oracle) -> None:
    machine.first_boot()
    assert oracle.terminated == 1
    assert machine.status()["reason"] == "complete"
    assert machine.status()["exit"] == "0" or machine.status()["exit"] == 0
    assert b"the job speaks" in oracle.objects[f"launches/{RUN_ID}/node-0/job.log"]
    assert b"phase: gpu" in oracle.objects[f"launches/{RUN_ID}/node-0/boot.log"]
    assert "the job speaks" in oracle.lines
    assert [message["title"] for message in oracle.messages] == [f"{RUN_ID}: complete"]


def test_the_watchdog_is_armed_before_anything_is_fetched(machine: Machine, oracle: Oracle) -> None:
    assert machine.config["bootcmd"][0][:4] == ["cloud-init-per", "once", "gpu-job-early", "systemd-run"]
    assert machine.verb("arm") == 0
    assert oracle.requests == []
    asked = machine.read("systemctl.log").splitlines()
    assert asked.index("enable --now gpu-job-deadline.timer") < asked.index("start --no-block gpu-job-boot.service")
    assert "enable gpu-job-boot.service" in asked, "a reboot goes on"
    timer = machine.unit("gpu-job-deadline.timer")["Timer"]
    env = machine.read("etc/gpu-job/env")
    expires = re.search(r"EXPIRES='(.+)'", env)
    assert expires
    assert timer["OnCalendar"] == expires[1].replace("T", " ").replace("Z", " UTC")
    assert timer["Persistent"] == "true", "a machine that was off at that time ends when it is on again"
    assert timer["OnBootSec"] == "7200", "also where the clock is wrong"


def test_the_container_is_closed_and_pulled_by_digest(machine: Machine) -> None:
    machine.first_boot()
    calls = machine.read("engine.log").splitlines()
    image = "fra.ocir.io/example/gpu-job@sha256:" + "0" * 64
    assert f"pull {image}" in calls
    run = next(call for call in calls if "--name gpu-job" in call)
    for flag in ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=16g",
                 "--stop-timeout=120", "--pull=never", "--device=nvidia.com/gpu=all"):  # fmt: skip
        assert flag in run.split()
    assert run.endswith(f"{image} run /spec.yaml --run-id {RUN_ID}")
    assert "JOB_DEADLINE=" in run
    assert machine.read("var/lib/gpu-job/spec.yaml") == "name: demo\n"


def test_the_login_is_gone_after_the_pull(machine: Machine) -> None:
    machine.first_boot()
    place = machine.read("login-place").strip()
    assert place
    assert not (machine.root / place).exists()
    assert machine.read("password") == "registry-token"
    assert "login --username BEARER_TOKEN --password-stdin fra.ocir.io" in machine.read("engine.log")
    assert "registry-token" not in machine.read("engine.log") + machine.read("var/log/gpu-job/boot.log")


def test_updates_of_the_driver_are_masked(machine: Machine) -> None:
    machine.first_boot()
    assert "mask --now dnf-automatic.timer" in machine.read("systemctl.log").splitlines()


def test_a_job_that_fails(machine: Machine, oracle: Oracle) -> None:
    machine.tell("exits", "1\n")
    machine.first_boot()
    assert oracle.terminated == 1
    assert machine.status()["reason"] == "the job left with 1"


@pytest.mark.parametrize(("exits", "left"), [("137", True), ("139", True), ("1", True), ("137", False)])
def test_what_a_killed_job_left_goes_up(machine: Machine, oracle: Oracle, exits: str, left: bool) -> None:
    """Where there is something, and where the job has not done it by itself."""
    folder = machine.root / f"var/lib/gpu-job/work/runs/{RUN_ID}/.outbox"
    if left:
        folder.mkdir(parents=True)
    machine.tell("exits", f"{exits}\n9\n")
    machine.first_boot()
    calls = [call for call in machine.read("engine.log").splitlines() if "--name gpu-job" in call]
    assert (len(calls) == 2) == (left and exits != "1")
    if len(calls) == 2:
        assert calls[1].endswith(f" upload /work/runs/{RUN_ID}")
        assert "--device=nvidia.com/gpu=all" not in calls[1], "the GPU may be what is broken"
    assert machine.status()["reason"] == f"the job left with {exits}"
    assert oracle.terminated == 1


def test_the_message_of_a_good_end(machine: Machine, oracle: Oracle) -> None:
    machine.seconds_later(1800)
    machine.first_boot()
    (message,) = oracle.messages
    assert message["title"] == f"{RUN_ID}: complete"
    minutes = re.search(r"(\d+) minutes", message["body"])
    assert minutes
    assert 30 <= int(minutes[1]) <= 35
    cost = re.search(r"about (\d\.\d\d) USD", message["body"])
    assert cost
    assert 1.00 <= float(cost[1]) <= 1.20, "half an hour at 2 USD"
    assert message["body"].splitlines() == [
        f"Run {RUN_ID} has ended: complete.",
        "Exit code: 0.",
        f"Cost: {minutes[1]} minutes on 1 VM.GPU.A10.1 since the launch, about {cost[1]} USD at list price.",
        f"Report and results: oci://gpu-job@example/runs/{RUN_ID} "
        f"(python -m job fetch oci://gpu-job@example/runs/{RUN_ID}).",
        f"More: python -m job status {RUN_ID}",
    ]


def test_the_message_of_a_bad_end_has_the_jobs_words_and_nothing_of_its_log(machine: Machine, oracle: Oracle) -> None:
    machine.heartbeat(status="failed", phase="train", reason="the loss is not a number at step 12")
    machine.tell("exits", "1\n")
    machine.first_boot()
    body = oracle.messages[0]["body"]
    assert body.splitlines()[:3] == [
        f"Run {RUN_ID} has ended: the job left with 1.",
        "The job says: the loss is not a number at step 12.",
        "Exit code: 1.",
    ]
    assert body.endswith(f"To go on from the last checkpoint: python -m job resubmit {RUN_ID}\n")
    assert b"the job speaks" in oracle.objects[f"launches/{RUN_ID}/node-0/job.log"]
    assert "the job speaks" not in body, "a log may hold what a mail should not"


def test_a_topic_out_of_reach_keeps_no_machine(machine: Machine, oracle: Oracle) -> None:
    oracle.fail["/20181201/"] = 404
    machine.first_boot()
    assert oracle.ended == [INSTANCE]
    assert oracle.messages == []


def test_75_starts_the_job_again(machine: Machine, oracle: Oracle) -> None:
    machine.tell("exits", "75\n75\n0\n")
    machine.first_boot()
    assert machine.read("engine.log").count("--name gpu-job") == 3
    assert (oracle.terminated, machine.status()["reason"], machine.status()["restarts"]) == (1, "complete", 2)


def test_75_for_ever_ends(machine: Machine, oracle: Oracle) -> None:
    machine.tell("exits", "75\n" * 9)
    machine.first_boot()
    assert machine.read("engine.log").count("--name gpu-job") == 4, "once, and three times again"
    assert (oracle.terminated, machine.status()["reason"]) == (1, "the job left with 75")


def test_75_shortly_before_the_deadline_ends(machine: Machine, oracle: Oracle) -> None:
    machine.tell("exits", "75\n0\n")
    machine.seconds_later(7200 - 200)
    machine.first_boot()
    assert machine.read("engine.log").count("--name gpu-job") == 1
    assert oracle.terminated == 1


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("nvidia-smi.code", "9", "nvidia-smi fails"),
        ("gpus", "580.95.05, 0, Not Active, Not Active, NVIDIA A10\n" * 2, "2 GPUs where the shape has 1"),
        ("gpus", "570.86.10, 0, Not Active, Not Active, NVIDIA A10\n", "driver branch 570"),
        ("gpus", "580.95.05, 3, Not Active, Not Active, NVIDIA A10\n", "uncorrected ECC errors: 3"),
        ("gpus", "580.95.05, 0, Active, Not Active, NVIDIA A10\n", "throttled by the hardware"),
        ("gpus", "580.95.05, [N/A], Not Active, Active, NVIDIA A10\n", "throttled by the hardware"),
        ("pull.code", "1", "boot failed in phase pull"),
        ("gate.code", "1", "nvidia-smi fails inside the container"),
    ],
    ids=["no-driver", "wrong-count", "old-driver", "ecc", "throttled", "hot", "pull", "container"],
)
def test_a_boot_that_fails(machine: Machine, oracle: Oracle, file: str, text: str, reason: str) -> None:
    machine.tell(file, text)
    machine.first_boot()
    assert oracle.terminated >= 1
    assert reason in machine.status()["reason"]
    assert "--name gpu-job" not in machine.read("engine.log"), "nothing was trained on it"


def test_a_gpu_without_ecc_counters_is_fine(machine: Machine) -> None:
    machine.tell("gpus", "580.95.05, [N/A], Not Active, Not Active, NVIDIA A10\n")
    machine.first_boot()
    assert machine.status()["reason"] == "complete"


def test_a_toolkit_that_is_not_the_pinned_one(machine: Machine, oracle: Oracle) -> None:
    oracle.objects["packages/nvidia-container-toolkit-base-1.18.0-1.x86_64.rpm"] = b"another package"
    machine.first_boot()
    assert oracle.terminated >= 1
    assert "not the one that was pinned" in machine.status()["reason"]
    assert ".rpm" not in machine.read("dnf.log")


def test_a_missing_spec(machine: Machine, oracle: Oracle) -> None:
    del oracle.objects[f"launches/{RUN_ID}/spec.yaml"]
    machine.first_boot()
    assert oracle.terminated >= 1
    assert machine.status()["reason"] == "boot failed in phase start"


def test_a_registry_that_refuses(machine: Machine, oracle: Oracle) -> None:
    oracle.fail["/20180419/docker/token"] = 403
    machine.first_boot()
    assert oracle.terminated >= 1
    assert machine.status()["reason"] == "boot failed in phase pull"


def test_a_second_boot_installs_nothing_again(machine: Machine, oracle: Oracle) -> None:
    machine.first_boot()
    installed = machine.read("dnf.log")
    shutil.rmtree(machine.root / "run/gpu-job")  # it is in memory
    machine.start("gpu-job-boot.service")
    machine.settle()
    assert machine.read("dnf.log") == installed
    assert machine.read("engine.log").count("--name gpu-job") == 2


def test_a_boot_that_hangs(machine: Machine, oracle: Oracle) -> None:
    assert machine.verb("arm") == 0
    machine.seen = len(machine.read("systemctl.log").splitlines())  # gpu-job-boot hangs
    machine.seconds_later(1790)
    machine.beat()
    assert oracle.terminated == 0
    machine.seconds_later(20)
    machine.beat()
    assert oracle.terminated == 1
    assert machine.status()["reason"] == "the job did not start within 1800 s; phase armed"


def test_a_first_step_that_does_not_come(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    machine.seconds_later(1790)
    machine.beat()
    assert oracle.terminated == 0
    machine.seconds_later(20)
    machine.beat()
    assert oracle.terminated == 1
    assert machine.status()["reason"] == "no training step within 1800 s of the start"


def test_a_first_step_that_came(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    machine.heartbeat(status="running", phase="train", step=1)
    machine.seconds_later(7000)
    machine.beat()
    assert oracle.terminated == 0


def test_a_wish_to_cancel(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    oracle.objects[f"launches/{RUN_ID}/cancel"] = b""
    machine.beat()
    assert machine.status()["reason"] == "cancelled"
    asked = machine.read("systemctl.log").splitlines()
    assert "stop gpu-job.service" in asked, "in order: the job saves before the machine goes"
    assert oracle.terminated == 1


@pytest.mark.parametrize("path", ["/n/", "/20200831/", "/v1/x509"], ids=["bucket", "log", "identity"])
def test_a_cloud_out_of_reach_ends_nothing(machine: Machine, oracle: Oracle, path: str) -> None:
    machine.begun()
    oracle.fail[path] = 503
    machine.beat()
    assert oracle.terminated == 0
    assert not (machine.root / "run/gpu-job/reason").exists()


def test_logs_that_cannot_be_shipped_do_not_keep_the_machine(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    oracle.fail.update({"/n/": 503, "/20200831/": 503, "/20181201/": 503})
    machine.start("gpu-job-end.service")
    assert oracle.terminated == 1


def test_the_deadline_needs_neither_engine_nor_job(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    for name in ("podman", "dnf", "nvidia-smi"):
        machine.fake(name, "exit 1")
    machine.start("gpu-job-deadline.service")
    assert oracle.terminated == 1
    assert machine.status()["reason"] == "max_duration of 7200 s is over"


def test_terminating_is_tried_until_it_is_done(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    oracle.fail["/20160918/"] = 500
    machine.start("gpu-job-end.service")
    assert sum(request.startswith("DELETE /20160918/") for request in oracle.requests) == 3, "the unit runs again"
    for name in ("gpu-job-end.service", "gpu-job-deadline.service"):
        unit = machine.unit(name)
        assert (unit["Service"]["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")


def test_an_installed_oci_is_the_second_way(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    oracle.fail["/20160918/"] = 500
    machine.fake("oci", 'echo "$*" >>"$ROOT/oci.log"')
    machine.fake("curl", f"echo {INSTANCE}")
    assert machine.verb("end") == 0
    assert f"--instance-id {INSTANCE}" in machine.read("oci.log")
    assert "--auth instance_principal --force --preserve-boot-volume false" in machine.read("oci.log")


def test_a_refused_session_is_made_anew(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    assert machine.verb("report") == 0
    oracle.sessions.clear()  # what the instance holds is known no longer
    assert machine.verb("report") == 0
    assert oracle.tokens == 2
    assert len(oracle.refused) == 1
    oracle.refused.clear()


def test_log_lines_are_sent_once_and_whole(machine: Machine, oracle: Oracle) -> None:
    machine.begun()
    log = machine.root / "var/log/gpu-job/job.log"
    log.write_text("one\ntwo\nthr")
    assert machine.verb("report") == 0
    log.write_text("one\ntwo\nthree\n")
    assert machine.verb("report") == 0
    assert [line for line in oracle.lines if "phase" not in line] == ["one", "two", "three"]


def test_state_is_not_readable_to_others(machine: Machine) -> None:
    machine.first_boot()
    state = machine.root / "run/gpu-job"
    assert state.stat().st_mode & 0o077 == 0
    assert (state / "leaf.key").stat().st_mode & 0o077 == 0


def test_the_stand_in_takes_the_sdk_as_well(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what it takes from the instance's script is what OCI's own client sends."""
    signers = pytest.importorskip("oci.auth.signers")
    monkeypatch.setenv("OCI_METADATA_BASE_URL", oracle.url + "/node-0/opc/v2")
    made = signers.InstancePrincipalsSecurityTokenSigner(federation_endpoint=oracle.url + "/v1/x509")
    from oci.object_storage import ObjectStorageClient

    client = ObjectStorageClient({}, signer=made, service_endpoint=oracle.url)
    assert client.get_object("example", "gpu-job", f"launches/{RUN_ID}/spec.yaml").data.content == b"name: demo\n"


def test_units_are_what_systemd_reads(machine: Machine) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    machine.verb("arm")
    timer = machine.unit("gpu-job-deadline.timer")["Timer"]["OnCalendar"]
    told = subprocess.run(["systemd-analyze", "calendar", timer], capture_output=True, text=True, check=True).stdout
    expected = datetime.now(UTC) + timedelta(seconds=7200)
    assert expected.strftime("%Y-%m-%d") in told
    units = machine.root / "etc/systemd/system"
    for path in units.iterdir():
        path.write_text(
            path.read_text().replace("/usr/local/sbin/gpu-job", str(machine.root / "usr/local/sbin/gpu-job"))
        )
    checked = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, units.iterdir()))], capture_output=True, text=True, check=False
    )
    ours = [line for line in checked.stderr.splitlines() if "gpu-job" in line]
    assert ours == []
