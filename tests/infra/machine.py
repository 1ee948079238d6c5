"""An instance without a machine: the files that cloud-init lays down, run by bash with stand-ins for what it calls.

The scripts are the real ones out of rendered user data. PATH holds the stand-ins and a few tools of
the system. systemd is played here by what the unit files say: ExecStart, ExecStopPost, OnFailure, Restart.
"""

import base64
import configparser
import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.infra.oracle import Oracle, instance

TOOLS = (
    *("bash", "cat", "tee", "mkdir", "chmod", "grep", "awk", "wc", "tail"),
    *("sha256sum", "rm", "timeout", "openssl", "mktemp", "touch", "mv", "sed"),
)
FAKES = {
    "date": 'if [ "$*" = +%s ]; then echo $(($(DATE +%s) + $(cat "$ROOT/later"))); else exec DATE "$@"; fi',
    "sleep": ":",
    "chown": ":",
    "firewall-cmd": 'echo "$*" >>"$ROOT/firewall.log"',
    # disks, by the files below dev/, and what is known of each
    "lsblk": 'for disk; do :; done; cat "$ROOT/lsblk/${disk##*/}"',
    "blkid": 'case $1 in -L) cat "$ROOT/ours" 2>/dev/null || exit 2 ;; '
    '-p) exit "$(cat "$ROOT/blkid/${2##*/}")" ;; esac',
    "mkfs.xfs": 'for disk; do :; done; echo "$*" >>"$ROOT/mkfs.log"; cat "$ROOT/mkfs.code" | grep -qx 0 || exit 1; '
    'echo "$disk" >"$ROOT/ours"',
    "mount": 'echo "$*" >>"$ROOT/mount.log"; touch "$ROOT/mounted"',
    "mountpoint": '[ -e "$ROOT/mounted" ]',
    "systemctl": 'echo "$*" >>"$ROOT/systemctl.log"',
    "nvidia-smi": 'cat "$ROOT/gpus"; exit "$(cat "$ROOT/nvidia-smi.code")"',
    "dnf": 'echo "$*" >>"$ROOT/dnf.log"; case "$*" in *podman) mv "$ROOT/podman" "$ROOT/bin/" ;; '
    '*.rpm) mv "$ROOT/nvidia-ctk" "$ROOT/bin/" ;; esac',
}
LATER_FAKES = {  # come with dnf
    "podman": """echo "$*" >>"$ROOT/engine.log"
case "$*" in
  login*) cat >"$ROOT/password"; [ -d "$DOCKER_CONFIG" ] || exit 9
          [ "$REGISTRY_AUTH_FILE" = "$DOCKER_CONFIG/auth.json" ] || exit 9
          echo "$DOCKER_CONFIG" >"$ROOT/login-place" ;;
  pull*) exit "$(cat "$ROOT/pull.code")" ;;
  *"--entrypoint nvidia-smi"*) exit "$(cat "$ROOT/gate.code")" ;;
  "image inspect"*) echo 10001:10001 ;;
  *"--name gpu-job"*) echo "the job speaks"; read -r code <"$ROOT/exits"; tail -n +2 "$ROOT/exits" >"$ROOT/rest"
          cat "$ROOT/rest" >"$ROOT/exits"; exit "${code:-0}" ;;
esac""",
    "nvidia-ctk": 'echo "nvidia-ctk $*" >>"$ROOT/engine.log"',
}
PLACES = {  # where the script finds what is elsewhere on a real machine
    "GPU_JOB_ETC": "etc/gpu-job",
    "GPU_JOB_STATE": "run/gpu-job",
    "GPU_JOB_KEEP": "var/lib/gpu-job",
    "GPU_JOB_LOG": "var/log/gpu-job",
    "GPU_JOB_LIB": "usr/local/lib/gpu-job",
    "GPU_JOB_UNITS": "etc/systemd/system",
}
HEALTHY = "580.95.05, 0, Not Active, Not Active, NVIDIA A10\n"


class Machine:
    def __init__(self, root: Path, oracle: Oracle, user_data: str, node: int = 0) -> None:
        self.root, self.oracle, self.node = root, oracle, node
        root.mkdir(parents=True, exist_ok=True)
        self.config: dict[str, Any] = yaml.safe_load(user_data)
        for entry in self.config["write_files"]:
            path = root / entry["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(entry))
            path.chmod(int(entry.get("permissions", "0644"), 8))
        (root / "bin").mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (root / "bin" / name).symlink_to(Path(found).resolve())  # not by way of /etc/alternatives
        for name, body in FAKES.items():
            self.fake(name, body.replace("DATE", shutil.which("date") or "date"))
        for name, body in LATER_FAKES.items():
            self.fake(name, body, "")
        self.fake("python3", f'exec {sys.executable} "$@"')
        for name in ("later", "nvidia-smi.code", "pull.code", "gate.code", "mkfs.code"):
            self.tell(name, "0")
        self.tell("gpus", HEALTHY)
        self.tell("exits", "0\n")
        self.seen = self.repeats = 0
        self.container: list[str] = []  # a command that runs another one in a container

    def contain(self, namespaces: list[str]) -> None:
        """From here on all runs in a container, where the files are at their own places."""
        new = self.root.with_name(f"{self.root.name}-container")
        for folder in (new, *(self.root / name for name in ("run", "var", "usr/local/sbin", "tmp"))):
            folder.mkdir(parents=True, exist_ok=True)
        script = str(Path(__file__).with_name("contain.sh"))
        unshare = [shutil.which("unshare") or "unshare", *namespaces, "--", shutil.which("bash") or "bash", script]
        self.container = [*unshare, str(new), str(self.root), sys.prefix, sys.base_prefix, "--"]

    def fake(self, name: str, body: str, folder: str = "bin") -> None:
        path = self.root / folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def containers_run(self, place: str) -> None:
        """What stands for the run's container is the job itself; its nodes meet at HOST:PORT."""
        job = f'exec {sys.executable} {Path(__file__).with_name("container.py")} "$ROOT" {place} "$@" ;;'
        body = LATER_FAKES["podman"]
        start = body.index('  *"--name gpu-job"*)')
        self.fake("podman", f'{body[:start]}  *"--name gpu-job"*) {job}\nesac', "")

    def tell(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def read(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""

    def verb(self, *words: str, **extra: str) -> int:
        """Run the script as systemd or cloud-init would; its exit code."""
        root = self.root
        env = {
            "PATH": str(root / "bin"),
            "ROOT": str(root),
            "TMPDIR": str(root / "tmp"),
            "GPU_JOB_DEV": str(root / "dev"),
            "GPU_JOB_ENDPOINT": self.oracle.url,
            "OCI_METADATA_BASE_URL": f"{self.oracle.url}/node-{self.node}/opc/v2",
            **extra,
        }
        (root / "tmp").mkdir(exist_ok=True)
        if self.container:
            command = [*self.container, "/usr/local/sbin/gpu-job"]
        else:
            command = [str(root / "usr/local/sbin/gpu-job")]
            env = {name: str(root / place) for name, place in PLACES.items()} | env
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, check=False, timeout=300)
        self.output = done.stdout + done.stderr
        return done.returncode

    def unit(self, name: str) -> dict[str, dict[str, str]]:
        parser = configparser.ConfigParser(strict=True, interpolation=None)
        parser.optionxform = str  # type: ignore[method-assign, assignment]
        parser.read(self.root / "etc/systemd/system" / name)
        return {section: dict(parser[section]) for section in parser.sections()}

    def first_boot(self) -> None:
        """What cloud-init's runcmd does, and all that follows from it."""
        for command in self.config["runcmd"]:
            assert command[0] == "/usr/local/sbin/gpu-job"
            assert self.verb(*command[1:]) == 0, self.output
        self.settle()

    def settle(self) -> None:
        """Start what systemctl was asked to start, until nothing is left."""
        while len(asked := self.read("systemctl.log").splitlines()) > self.seen:
            words = asked[self.seen].split()
            self.seen += 1
            if words[0] == "start":
                self.start(words[-1])

    def start(self, name: str) -> None:
        unit = self.unit(name)
        service = unit["Service"]
        code = self.verb(*service["ExecStart"].split()[1:])
        if "ExecStopPost" in service:
            self.verb(*service["ExecStopPost"].split()[1:], EXIT_STATUS=str(code))
            self.settle()
            stopped = "stop gpu-job.service" in self.read("systemctl.log").splitlines()
            if service.get("RestartForceExitStatus") == str(code) and not stopped:
                self.start(name)
        if code != 0 and "OnFailure" in unit["Unit"]:
            self.start(unit["Unit"]["OnFailure"])
        if service.get("Restart") == "always" and instance(self.node) not in self.oracle.ended:
            self.repeats += 1
            if self.repeats < 3:
                self.start(name)

    def seconds_later(self, seconds: int) -> None:
        self.tell("later", str(int(self.read("later")) + seconds))

    def status(self) -> dict[str, Any]:
        """What the bucket says of the instance."""
        name = f"launches/demo-20261124-1a2b3c/node-{self.node}/status.json"
        found: dict[str, Any] = yaml.safe_load(self.oracle.objects[name])
        return found

    def begun(self) -> None:
        """As if the job were running."""
        assert self.verb("arm") == 0
        state = self.root / "run/gpu-job"
        for name in ("booted", "started"):
            (state / name).write_text(str(int(time.time())))
        (state / "phase").write_text("running\n")
        self.seen = len(self.read("systemctl.log").splitlines())

    def heartbeat(self, **fields: Any) -> None:
        """What the job writes into its folder."""
        path = self.root / "var/lib/gpu-job/work/runs/demo-20261124-1a2b3c/status.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields))

    def beat(self) -> None:
        """Half a minute passes."""
        self.start("gpu-job-beat.service")
        self.settle()


def content(entry: dict[str, Any]) -> bytes:
    """A file of cloud-init's write_files, decoded as cloud-init does."""
    match entry.get("encoding"):
        case "gz+b64":
            return gzip.decompress(base64.b64decode(entry["content"]))
        case "b64":
            return base64.b64decode(entry["content"])
        case None:
            return str(entry["content"]).encode()
    raise AssertionError(entry["encoding"])
