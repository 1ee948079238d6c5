"""Terraform as submit uses it: infra/run copied once a run, then an apply of its own and a state of its own each try.

    launches/RUN in the cache: module/ (infra/run and the table of shapes, as they were), try-N/{vars,tfstate,log}

The copy is what is applied, so a checkout that changes meanwhile changes no run. A lock on the try's folder is handed
down to the terraform process: when submit is killed and terraform lives on, the next submit here waits for it instead
of launching beside it.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from job.cloud.causes import Cause, classify
from job.errors import JobError, UsageError
from job.runfolder import write_json

ROOT = Path(__file__).resolve().parents[2]
SHAPES = Path(__file__).with_name("shapes.yaml")
BINARY = "JOB_TERRAFORM"  # the environment may name another than the one on PATH
STATE, VARS, LOG = "terraform.tfstate", "run.tfvars.json", "terraform.log"
IDENTIFIERS = "instance_ids"  # infra/run's output


@dataclass(frozen=True)
class Workdir:
    """One run's copy of infra/run. `root` is made by `prepare`."""

    root: Path

    @property
    def module(self) -> Path:
        return self.root / "module" / "infra" / "run"

    def attempt(self, number: int) -> Path:
        return self.root / f"try-{number}"

    def state(self, number: int) -> Path:
        return self.attempt(number) / STATE


def cache() -> Path:
    """Where launches keep what need not outlive them."""
    home = os.environ.get("JOB_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "gpu-job"


def prepare(workdir: Workdir) -> None:
    """Copies the module and runs `terraform init`, unless both are done. JobError with Terraform's words."""
    done = workdir.root / "initialised"
    if done.exists():
        return
    source = Path(os.environ.get("JOB_INFRA") or ROOT / "infra") / "run"
    if not (source / "instance.tf").is_file():
        raise UsageError(
            str(source), "infra/run is not there", "submit from a checkout, or name its infra in JOB_INFRA"
        )
    shutil.rmtree(workdir.root / "module", ignore_errors=True)
    workdir.module.parent.mkdir(parents=True, exist_ok=True)
    skip = shutil.ignore_patterns(".terraform*", "tests", "*.tfvars", "*.tfstate*")
    shutil.copytree(source, workdir.module, ignore=skip)
    shutil.copy(SHAPES, workdir.module / SHAPES.name)
    with (workdir.root / "lock").open("a") as lock:
        code, said = _terraform(workdir, workdir.root / LOG, lock.fileno(), "init")
    if code != 0:
        cause = classify(said)
        raise JobError("terraform init", cause.said, f"{cause.cure}; all it said is in {workdir.root / LOG}")
    done.touch()


def apply(
    workdir: Workdir, number: int, variables: Mapping[str, Any], lock: int, say: Callable[[str], None]
) -> tuple[list[str], Cause | None]:
    """One try. The ids of the instances, or why there are none. After a Ctrl-C: KeyboardInterrupt, once all is written.

    A signal must not end submit between the start of Terraform and the moment it is known here, so the handler only
    notes it and hands it on; a second one kills Terraform, and the tag finds what it had made.
    """
    folder = workdir.attempt(number)
    write_json(folder / VARS, dict(variables))
    with _Interrupts(say) as interrupts:
        code, said = _terraform(
            workdir, folder / LOG, lock, "apply", *_options(folder), "-auto-approve", interrupts=interrupts
        )
    if interrupts.count:
        raise KeyboardInterrupt
    if code != 0:
        return [], classify(said)
    return identifiers(workdir, number), None


def destroy(workdir: Workdir, number: int, lock: int) -> bool:
    """Undoes what the state of a try names; True where nothing is left of it."""
    folder = workdir.attempt(number)
    if not workdir.state(number).exists() or not (folder / VARS).exists():
        return True
    code, _ = _terraform(workdir, folder / LOG, lock, "destroy", *_options(folder), "-auto-approve")
    return code == 0


def identifiers(workdir: Workdir, number: int) -> list[str]:
    """Instances that the state of a try names; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads(workdir.state(number).read_text(encoding="utf-8"))
        return [str(value) for value in state["outputs"][IDENTIFIERS]["value"]]
    return []


@contextlib.contextmanager
def locked(workdir: Workdir, number: int) -> Iterator[int]:
    """The lock of a try's folder, as a descriptor to hand down. Waits for a terraform that outlived its submit."""
    folder = workdir.attempt(number)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _options(folder: Path) -> list[str]:
    return [f"-state={folder / STATE}", f"-var-file={folder / VARS}"]


class _Interrupts:
    """Ctrl-C while Terraform works: handed on, and raised afterwards by whoever started it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.count = say, 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Interrupts":
        self.before = signal.signal(signal.SIGINT, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def started(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        if self.count:
            process.send_signal(signal.SIGINT)

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self.say("Stopping: Terraform writes down what it has made; Ctrl-C again does not wait for that.")
        if self.process is not None:
            self.process.send_signal(signal.SIGINT if self.count == 1 else signal.SIGKILL)


def _terraform(
    workdir: Workdir, log: Path, lock: int, verb: str, *options: str, interrupts: _Interrupts | None = None
) -> tuple[int, str]:
    """Exit code and the first error."""
    plugins = cache() / "terraform-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    environment = {"TF_PLUGIN_CACHE_DIR": str(plugins), **os.environ, "TF_IN_AUTOMATION": "1", "TF_INPUT": "0"}
    binary = os.environ.get(BINARY) or "terraform"
    command = [binary, f"-chdir={workdir.module}", verb, "-input=false", "-no-color", *options]
    if verb != "init":
        command.append("-json")
    log.parent.mkdir(parents=True, exist_ok=True)
    # Into a file, not a pipe: a terraform that outlives submit must not die of a reader that has gone.
    with log.open("a+", encoding="utf-8", errors="replace") as told:
        told.write(f"$ terraform {verb}\n")
        told.flush()
        start = told.tell()
        process = _start(command, environment, told, lock)
        if interrupts is not None:
            interrupts.started(process)
        code = process.wait()
        told.seek(start)
        return code, _first_error(told.read())


def _start(command: list[str], environment: dict[str, str], told: IO[str], lock: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C at the terminal reaches submit alone
        )
    except OSError as error:
        cure = f"install Terraform 1.9 or later, or name it in {BINARY}"
        raise UsageError(command[0], "Terraform cannot be started", cure) from error


def _first_error(output: str) -> str:
    """Summary and detail of the first error that Terraform reports; else the end of what it said."""
    for line in output.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)["diagnostic"]
            if told["severity"] == "error":
                return f"{told['summary']} {told.get('detail', '')}"
    lines = [line.lstrip("│╷╵ ") for line in output.splitlines()]
    errors = [line for line in lines if line.startswith("Error: ")]
    return errors[0].removeprefix("Error: ") if errors else " ".join(lines[-5:])
