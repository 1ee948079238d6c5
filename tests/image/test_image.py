"""The image as its users meet it: each container here has a read-only root, no rights, no network, a strange user."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, USER, Image, make

pytestmark = pytest.mark.engine

COMPILE = """
import torch
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten())
images = torch.randn(4, 3, 8, 8)
compiled = torch.compile(network, fullgraph=True)
loss = compiled(images).square().mean()
loss.backward()
torch.testing.assert_close(loss, network(images).square().mean())
from torch._inductor.utils import fresh_inductor_cache
from torch._inductor.codecache import PyCodeCache
print("compiled into", PyCodeCache.modules[0].__file__)
"""
LAUNCHER = r"""
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *no) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "launcher", 0, -1, methods};
PyMODINIT_FUNC PyInit_launcher(void) { return PyModule_Create(&module); }
"""
BUILD = f"""
import tempfile
from triton.runtime.build import compile_module_from_src
print("triton's C compiler:", compile_module_from_src({LAUNCHER!r}, "launcher").answer())
"""


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest(runs: Path) -> dict[str, object]:
    """The heartbeat of the one run there; empty before it has begun."""
    found = list(runs.glob("*/status.json"))
    status: dict[str, object] = json.loads(found[0].read_text(encoding="utf-8")) if found else {}
    return status


def wait_for(runs: Path, process: "subprocess.Popen[str]") -> None:
    """Returns when the run has trained an epoch and so has something to save; a container starts when it starts."""
    for _ in range(1200):
        epoch = newest(runs).get("epoch", 0)
        if isinstance(epoch, int) and epoch >= 2:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"no training after two minutes: {newest(runs)}")


@contextmanager
def begun(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive the test, whatever becomes of the test."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


def test_the_demo_needs_no_mount_no_network_no_rights(image: Image) -> None:
    said = image.run()
    accuracy = re.search(r"test accuracy ([0-9.]+)%", said)
    assert accuracy, said
    assert float(accuracy[1]) > 95


def test_results_belong_to_the_caller(image: Image, writable: Callable[[str], Path], cifar10_root: Path) -> None:
    out = writable("out")
    spec = ROOT / "job/spec/samples/cifar10-ci.yaml"
    command, environment = make("run", image, SPEC=str(spec), DATA=str(cifar10_root), OUT=str(out))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on CPU" in done.stderr + done.stdout
    files = files_of(out)
    assert {"report.html", "manifest.json", "model.pt"} <= {path.name for path in files}
    if os.geteuid() == 0:
        assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {(USER, USER)}
    manifest = json.loads(next(out.glob("*/manifest.json")).read_text(encoding="utf-8"))
    told = json.dumps(manifest)
    assert str(image.about["Id"]) in told, "the image's digest"
    assert labels(image)["org.opencontainers.image.revision"] in told, "the commit it was built from"


def test_interrupted_and_resumed_in_another_container(image: Image, writable: Callable[[str], Path]) -> None:
    out, data = writable("out"), writable("data")
    folders = {"OUT": str(out), "DATA": str(data)}
    endless = "--run-id again --set train.epochs=5000 --set stop.patience=null"

    # Ctrl-C, as a terminal sends it to whatever runs in it
    with begun(*make("run", image, **folders, ARGS=endless)) as first:
        wait_for(out, first)
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=120)
    assert first.returncode == 75, said
    saved = files_of(out / "again/checkpoints")
    assert saved, said

    # SIGTERM, as `docker stop` and the end of an instance send it
    name = f"gpu-job-test-{os.getpid()}"
    (out / "again/status.json").unlink()
    with begun(*make("run", image, **folders, ARGS=endless, RUN_FLAGS=f"--name {name}")) as second:
        wait_for(out, second)
        health = image("exec", name, "/opt/job/healthcheck")
        assert health.returncode == 0, health.stdout + health.stderr
        assert re.search("again: running, phase (train|evaluate)", health.stdout), health.stdout
        image("stop", name)
        said, _ = second.communicate(timeout=120)
    assert second.returncode == 75, said
    assert "Resumed from" in said

    status = json.loads((out / "again/status.json").read_text(encoding="utf-8"))
    assert status["status"] == "interrupted"
    reached = int(re.findall(r"Epoch (\d+)/5000", said)[-1]) if "Epoch" in said else 1
    last = f"--run-id again --set train.epochs={reached + 2} --set stop.patience=null"
    command, environment = make("run", image, **folders, ARGS=last)
    third = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "Resumed from" in third.stdout


def test_a_wrong_spec_is_a_line_and_exit_code_2(image: Image, writable: Callable[[str], Path], tmp_path: Path) -> None:
    spec = tmp_path / "wrong.yaml"
    spec.write_text("dataset: {name: digits}\nmodel: {name: tutorial_net}\ntrain: {epochs: 0}\n", encoding="utf-8")
    command, environment = make("run", image, SPEC=str(spec), OUT=str(writable("out")), DATA=str(writable("data")))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"^wrong\.yaml:3:\d+: train\.epochs: .*too small", done.stderr, flags=re.MULTILINE), done.stderr


def test_torch_compiles_inside(image: Image) -> None:
    """Inductor's C++ and Triton's C, into a temporary file system."""
    flags = ("--entrypoint", "python", "--tmpfs", "/tmp:exec")
    assert "compiled into /tmp/inductor/" in image.run("-", flags=flags, given=COMPILE)
    assert "triton's C compiler: 42" in image.run("-", flags=flags, given=BUILD)


def test_doctor_finds_nothing_wrong(image: Image) -> None:
    said = image.run("doctor", flags=("--shm-size", "2g"))
    assert "!!" not in said, said


def test_the_init_reaps_what_others_leave(image: Image) -> None:
    """A grandchild whose parent is gone becomes the init's, and does not stay as a zombie."""
    code = (
        "import os, pathlib, subprocess, time\n"
        "subprocess.run(['sh', '-c', 'sleep 0.2 & exit'])\n"
        "time.sleep(1)\n"
        "states = [p.read_text().rpartition(')')[2].split()[0] for p in pathlib.Path('/proc').glob('[0-9]*/stat')]\n"
        "print(os.getpid() != 1, 'Z' not in states)\n"
    )
    assert image.run("-s", "--", "python", "-c", code, flags=("--entrypoint", "tini")) == "True True\n"


def labels(image: Image) -> dict[str, str]:
    config = image.about["Config"]
    assert isinstance(config, dict)
    found: dict[str, str] = config["Labels"]
    return found


def test_the_image_says_where_it_comes_from(image: Image) -> None:
    said = {key.removeprefix("org.opencontainers.image."): value for key, value in labels(image).items()}
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert said["revision"].startswith(head.stdout.strip())
    assert said["licenses"] == "Apache-2.0"
    assert said["base.name"] == os.environ.get("BASE_IMAGE", said["base.name"])
    assert {"source", "version", "created", "base.digest"} <= set(said)
    config = image.about["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "-s", "--", "python", "-m", "job"]


def test_what_it_adds_to_its_base(image: Image) -> None:
    command, environment = make("size", image)
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout
    added = re.search(r"([0-9.]+) MiB  added to the base", said)
    assert added, said
    assert float(added[1]) <= 400, said
