"""docker/image.sh and the healthcheck without an engine: a stand-in for it writes down how it was called."""

import json
import os
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, SCRIPT

ENGINE = """#!/bin/sh
case $1 in
  --version) echo "{kind} version {version}" ;;
  info) exit {answers} ;;
  buildx) exit {buildx} ;;
  image) echo sha256:0123 ;;
  history) printf '%s\\n' {history} ;;
  *) printf '%s\\n' "$@" >"{log}"; exit {code} ;;
esac
"""


class Desk:
    """A folder with stand-ins, a home, and a spec; `call` runs the script there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "called.txt"
        self.bin, self.home = folder / "bin", folder / "home"
        self.bin.mkdir()
        self.home.mkdir()
        (folder / "my spec.yaml").write_text("dataset: {name: digits}\n", encoding="utf-8")

    def tool(self, name: str, text: str = "#!/bin/sh\n") -> None:
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def engine(self, name: str = "docker", *, version: str = "20.10", answers: bool = True, code: int = 0) -> None:
        given = {"kind": name, "version": version, "answers": int(not answers), "code": code, "log": self.log}
        self.tool(name, ENGINE.format(**given, buildx=1, history="x"))

    def call(self, verb: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.bin}:/usr/bin:/bin"
        environment = {"PATH": path, "HOME": str(self.home), "ENGINE": "docker podman", "NVIDIA_PROC": "/nowhere"}
        return subprocess.run(
            [str(SCRIPT), verb],
            env={**environment, **variables},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    for name in ("docker", "podman"):  # whatever the machine has: here it does not answer
        made.engine(name, answers=False)
    return made


def after(words: list[str], flag: str) -> list[str]:
    """The values given with `flag`."""
    return [value for word, value in pairwise(words) if word == flag]


@pytest.mark.parametrize("verb", ["build", "run", "shell", "push", "scan", "size"])
def test_no_engine_is_one_line_with_the_cure(desk: Desk, verb: str) -> None:
    done = desk.call(verb)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no container engine answers (tried: docker podman); start Docker" in done.stderr


def test_run_is_locked_down_and_writes_where_it_may(desk: Desk) -> None:
    desk.engine()
    assert desk.call("run").returncode == 0
    words = desk.called()
    assert words[0] == "run"
    assert {"--rm", "--read-only"} <= set(words)
    assert after(words, "--cap-drop") == ["ALL"]
    assert after(words, "--security-opt") == ["no-new-privileges"]
    assert after(words, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert after(words, "--tmpfs") == ["/tmp:rw,exec,mode=1777", "/work:rw,mode=1777"]
    assert after(words, "--shm-size") == ["8g"]
    assert after(words, "--stop-timeout") == ["110"]
    assert after(words, "--volume") == [
        f"{ROOT}/job/spec/samples/digits.yaml:/work/digits.yaml:ro",
        f"{desk.folder}/data:/work/data",
        f"{desk.folder}/runs:/work/runs",
    ]
    assert words[-2:] == ["run", "digits.yaml"]
    assert (desk.folder / "runs").is_dir(), "made by the caller, not by the engine as root"


def test_spec_data_out_and_arguments_are_the_callers(desk: Desk) -> None:
    desk.engine()
    desk.call("run", SPEC="my spec.yaml", DATA="pictures", OUT="results", ARGS="--run-id x --set train.epochs=2")
    words = desk.called()
    assert after(words, "--volume") == [
        f"{desk.folder}/my spec.yaml:/work/my spec.yaml:ro",
        f"{desk.folder}/pictures:/work/data",
        f"{desk.folder}/results:/work/runs",
    ]
    assert words[-6:] == ["run", "my spec.yaml", "--run-id", "x", "--set", "train.epochs=2"]


def test_a_spec_that_is_not_there_is_named(desk: Desk) -> None:
    desk.engine()
    done = desk.call("run", SPEC="missing.yaml")
    assert done.returncode == 2
    assert done.stderr == "make: there is no spec missing.yaml; SPEC= names the file\n"


def test_exit_codes_come_through(desk: Desk) -> None:
    for code in (0, 1, 2, 3, 4, 75):
        desk.engine(code=code)
        assert desk.call("run").returncode == code


def test_no_terminal_is_asked_for_where_there_is_none(desk: Desk) -> None:
    desk.engine()
    desk.call("run")
    assert not {"--tty", "--interactive"} & set(desk.called())


def test_keys_are_mounted_read_only_and_values_stay_off_the_command_line(desk: Desk) -> None:
    desk.engine()
    (desk.home / ".oci").mkdir()
    desk.call("run", OCI_CLI_PROFILE="secret-profile", JOB_STORE_TOKEN="secret-token", OTHER="x", JOB_DATA_ROOT="/host")
    words = desk.called()
    assert f"{desk.home}/.oci:{desk.home}/.oci:ro" in after(words, "--volume")
    given = after(words, "--env")
    assert {"OCI_CLI_PROFILE", "JOB_STORE_TOKEN", f"HOME={desk.home}", "JOB_DATA_ROOT=/work/data"} <= set(given)
    assert "JOB_IMAGE_DIGEST=sha256:0123" in given
    assert not [word for word in words if "secret" in word or "OTHER" in word or word.endswith("/host")]


def test_without_a_driver_it_runs_on_cpu_and_says_so(desk: Desk) -> None:
    desk.engine()
    assert desk.call("run").stderr == "No NVIDIA driver here: running on CPU\n"
    assert "--gpus" not in desk.called()


def test_a_gpu_that_docker_cannot_hand_on_is_told(desk: Desk) -> None:
    desk.engine()
    assert "NVIDIA Container Toolkit is missing" in desk.call("run", NVIDIA_PROC="/proc/version").stderr
    assert "--gpus" not in desk.called()


def test_a_gpu_is_handed_on(desk: Desk) -> None:
    desk.engine()
    desk.tool("nvidia-container-runtime")
    assert desk.call("run", NVIDIA_PROC="/proc/version").stderr == ""
    assert after(desk.called(), "--gpus") == ["all"]
    desk.call("run", GPU="1")
    assert after(desk.called(), "--gpus") == ['"device=1"']
    desk.call("run", NVIDIA_PROC="/proc/version", GPU="none")
    assert "--gpus" not in desk.called()


def test_podman_stands_in_for_docker(desk: Desk) -> None:
    desk.engine("podman", version="4.9.3")
    desk.call("run", GPU="all", RUN_AS="1000:1000")
    words = desk.called()
    assert after(words, "--device") == ["nvidia.com/gpu=all"]
    assert "--gpus" not in words
    assert after(words, "--userns") == ([] if os.geteuid() == 0 else ["keep-id"])
    desk.call("build", BASE_IMAGE="base@sha256:4567")
    words = desk.called()
    assert after(words, "--format") == ["docker"]
    assert "--progress" not in words


def test_build_pins_its_base_and_says_what_it_is(desk: Desk) -> None:
    desk.engine()
    assert desk.call("build").returncode == 0
    words = desk.called()
    given = dict(word.split("=", 1) for word in after(words, "--build-arg"))
    assert given["BASE_IMAGE"].startswith("nvidia/cuda:13.0.")
    assert given["BASE_IMAGE"].endswith("@" + given["BASE_DIGEST"])
    assert len(given["BASE_DIGEST"]) == len("sha256:") + 64
    assert given["REQUIREMENTS"] == "requirements.txt"
    assert after(words, "--progress") == ["plain"]


def test_the_variant_for_older_gpus(desk: Desk) -> None:
    desk.engine()
    desk.call("build", VARIANT="cu12")
    words = desk.called()
    given = dict(word.split("=", 1) for word in after(words, "--build-arg"))
    assert given["BASE_IMAGE"].startswith("nvidia/cuda:12.6.")
    assert "@sha256:" in given["BASE_IMAGE"]
    lock = (ROOT / given["REQUIREMENTS"]).read_text(encoding="utf-8")
    assert "\ntorch==2.7.1 " in lock
    assert after(words, "--tag")[0].endswith("-cu12")


def test_a_variant_of_ones_own_needs_a_lock_and_a_base(desk: Desk) -> None:
    desk.engine()
    assert "REQUIREMENTS=LOCKFILE" in desk.call("build", VARIANT="cpu").stderr
    done = desk.call(
        "build", VARIANT="cpu", REQUIREMENTS="docker/requirements-cpu.txt", BASE_IMAGE="ubuntu@sha256:1", INDEX="i"
    )
    assert done.returncode == 0, done.stderr
    assert {"REQUIREMENTS=docker/requirements-cpu.txt", "INDEX=i"} <= set(after(desk.called(), "--build-arg"))


def test_a_docker_that_cannot_build_is_told(desk: Desk) -> None:
    desk.engine(version="28.2.2")
    done = desk.call("build")
    assert done.returncode == 2
    assert "has no buildx and cannot build; install docker-buildx-plugin" in done.stderr


def test_scanning_without_a_scanner_is_one_line(desk: Desk) -> None:
    desk.engine()
    done = desk.call("scan")
    assert done.returncode == 2
    assert done.stderr.startswith("make: scanning needs trivy, grype or syft on PATH")


def test_pushing_needs_an_address(desk: Desk) -> None:
    desk.engine()
    assert "TO=fra.ocir.io/NAMESPACE/gpu-job" in desk.call("push").stderr


@pytest.mark.parametrize(
    ("status", "age", "code"),
    [("running", 10, 0), ("running", 1000, 1), ("complete", 1000, 0), ("interrupted", 1000, 0)],
)
def test_the_healthcheck_reads_the_heartbeats_age(tmp_path: Path, status: str, age: float, code: int) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    fields = {"run_id": "one", "time": time.time() - age, "status": status, "phase": "train"}
    (tmp_path / "runs/one/status.json").write_text(json.dumps(fields), encoding="utf-8")
    done = subprocess.run([str(ROOT / "docker/healthcheck")], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.startswith(f"one: {status}, phase train, heartbeat ")


def test_the_healthcheck_waits_for_the_first_run(tmp_path: Path) -> None:
    done = subprocess.run([str(ROOT / "docker/healthcheck")], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no run has begun\n")
