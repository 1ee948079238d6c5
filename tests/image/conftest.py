"""An image for the tests that need one: built once by the project's own script, run as a user would run it."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "docker/image.sh"
USER = 12345  # nobody in particular: neither the caller nor the image's own user
LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")


@dataclass(frozen=True)
class Image:
    """The engine that holds the image, and the image's name there."""

    engine: str
    name: str

    def __call__(self, *arguments: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
        """ENGINE ARGUMENTS, whatever comes of it; `given` is its standard input."""
        command = [self.engine, *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=600, check=False)

    def run(self, *arguments: str, flags: tuple[str, ...] = (), given: str | None = None) -> str:
        """What a container printed that is locked down as far as it goes; it must succeed."""
        locked = (*LOCKED, "--user", f"{USER}:{USER}")
        done = self("run", "--rm", "--interactive", *locked, *flags, self.name, *arguments, given=given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def about(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self("image", "inspect", self.name).stdout)[0]
        return found


def make(verb: str, image: Image, **variables: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of docker/image.sh VERB for a user who is not root, without a network."""
    flags = variables.pop("RUN_FLAGS", "")
    user = {"RUN_AS": f"{USER}:{USER}", "GPU": "none", "SHM": "1g", "RUN_FLAGS": f"--network none {flags}"}
    return [str(SCRIPT), verb], {**os.environ, "ENGINE": image.engine, "IMAGE": image.name, **user, **variables}


@pytest.fixture(scope="session")
def image() -> Image:
    """Built on $BASE_IMAGE, which with_engine.sh sets where NVIDIA's cannot be had."""
    engine = os.environ.get("ENGINE")
    if engine is None:
        pytest.skip(os.environ.get("ENGINE_MISSING", "needs a container engine: make test-image"))
    built = Image(engine, "gpu-job:test")
    command, environment = make("build", built)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return built


@pytest.fixture
def writable(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder that belongs to the user of the containers, as it would to a caller of `make run`."""

    def folder(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        if os.geteuid() == 0:
            os.chown(path, USER, USER)
        else:
            path.chmod(0o777)
        return path

    return folder
