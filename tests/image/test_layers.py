"""What lies in the image's layers, and that it is the same each time."""

import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.image.conftest import ROOT, Image, make

SECRET = "planted-" + "4f1d7c2e9b"
LEAVINGS = re.compile(
    r"var/lib/apt/lists/.+|var/cache/(apt|pip|debconf|ldconfig)/.+|var/log/.+|tmp/.+|root/.+|build/.+|.*/\.cache/.+|"
    r".*/\.git/.+|.*\.env|.*/id_(rsa|ed25519)|opt/venv/bin/pip.*|.*/site-packages/pip/.*"
)
# Certificates of public authorities, which are for everyone.
KNOWN_PEM = re.compile(r"etc/ssl/.*|usr/.*|opt/venv/lib/python3[.0-9]+/site-packages/(certifi|pip|oci)/.*cacert\.pem")


@pytest.fixture(scope="module")
def assemble() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "docker/assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", ["requirements.txt", "docker/requirements-cu12.txt"])
def test_what_goes_into_torchs_layer_is_asked_for_by_torch_alone(assemble: ModuleType, lock: str) -> None:
    stanzas = re.split(r"^(?=[a-z0-9])", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)
    asking = {
        stanza.partition("==")[0]: set(
            re.findall(r"^    # (?:via |  )([a-z0-9][a-z0-9-]*)", stanza, flags=re.MULTILINE)
        )
        for stanza in stanzas
    }
    for name in assemble.TORCH_ALONE & set(asking):
        others = {by for by in asking[name] if not assemble.TORCHS_OWN.fullmatch(by)} - assemble.TORCH_ALONE
        assert others == set(), name


def test_every_service_of_ocis_sdk_that_the_job_names_is_kept(assemble: ModuleType) -> None:
    oci = pytest.importorskip("oci")
    services = {path.parent.name for path in Path(oci.__file__).parent.glob("*/models")}
    assert services > assemble.SERVICES, "each name is one of the SDK's"
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "job").rglob("*.py"))
    named = set(re.findall(r"\boci(?:\.|\s+import\s+)([a-z_]+)", source)) & services
    assert named <= assemble.SERVICES


def planted(image: Image, folder: Path) -> Image:
    """The same image built from a checkout full of secrets, in an environment with another."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "data"))
    for name in (
        ".env",
        "key.pem",
        "job/.env",
        "job/key.pem",
        "job/data/secret.txt",
        "docker/key.pem",
        "job/.oci/config",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(SECRET, encoding="utf-8")
    (folder / "job/__pycache__").mkdir(exist_ok=True)
    (folder / "job/__pycache__/left.cpython-311.pyc").write_text(SECRET, encoding="utf-8")
    again = Image(image.engine, "gpu-job:planted")
    _, environment = make("build", again)
    command = [str(folder / "docker/image.sh"), "build"]
    done = subprocess.run(
        command, env={**environment, "OCI_KEY": SECRET}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return again


def members(image: Image) -> Iterator[tuple[str, int, bytes]]:
    """Name, size and content (up to a megabyte) of every file of the image, without writing it anywhere."""
    base = len(layers(Image(image.engine, str(labels(image)["org.opencontainers.image.base.name"]))))
    with subprocess.Popen([image.engine, "save", image.name], stdout=subprocess.PIPE) as saving:
        found: dict[str, list[tuple[str, int, bytes]]] = {}
        order: list[str] = []
        with tarfile.open(fileobj=saving.stdout, mode="r|") as outer:
            for part in outer:
                stream = outer.extractfile(part)
                if stream is None:
                    continue
                if part.name.endswith("layer.tar") or part.name.startswith("blobs/"):
                    found[part.name] = list(contents(stream))
                elif part.name == "manifest.json":
                    order = json.load(stream)[0]["Layers"]
        for layer in order[base:]:
            yield from found[layer]


def contents(stream: object) -> Iterator[tuple[str, int, bytes]]:
    try:
        with tarfile.open(fileobj=stream, mode="r|") as inner:  # type: ignore[call-overload]
            for member in inner:
                file = inner.extractfile(member) if member.isfile() else None
                small = file is not None and member.size < 1_000_000 and not member.name.startswith("usr/include")
                yield member.name, member.size, file.read() if small and file is not None else b""
    except tarfile.ReadError:
        return  # a blob that is no layer: the configuration


def labels(image: Image) -> dict[str, str]:
    config = image.about["Config"]
    assert isinstance(config, dict)
    found: dict[str, str] = config["Labels"]
    return found


def layers(image: Image) -> list[str]:
    root = image.about["RootFS"]
    assert isinstance(root, dict)
    found: list[str] = root["Layers"]
    return found


@pytest.mark.engine
def test_no_secret_and_no_leavings_in_any_layer(image: Image, tmp_path: Path) -> None:
    """Looks through the layers themselves, where a file deleted later would still lie."""
    again = planted(image, tmp_path / "checkout")
    assert layers(again) == layers(image), "nothing of it came into the build"
    assert SECRET not in again("history", "--no-trunc", again.name).stdout + json.dumps(again.about)
    names, bad = set(), []
    for name, size, content in members(again):
        names.add(name)
        pem = name.endswith((".pem", ".key")) and not KNOWN_PEM.fullmatch(name)
        if (LEAVINGS.fullmatch(name) and size > 0) or pem or SECRET.encode() in content:
            bad.append(name)
        if name.endswith(".pyc") and content and content[4:8] != b"\x01\0\0\0":
            bad.append(f"{name}: not valid by itself")
    assert "opt/job/job/pipeline.py" in names, "the layers were read"
    assert any(re.fullmatch(r"opt/job/job/__pycache__/pipeline\.cpython-3\d+\.pyc", name) for name in names)
    assert bad == []
    again("image", "rm", again.name)


@pytest.mark.engine
def test_two_builds_are_the_same(image: Image, tmp_path: Path) -> None:
    """From nothing, twice, with a few packages instead of all: the same steps in a tenth of the time."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "data"))
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    stanzas = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)
    few = [text for text in stanzas if text.startswith(("mpmath==", "numpy==", "pyyaml==", "sympy=="))]
    assert len(few) == 4
    (checkout / "docker/requirements-few.txt").write_text("".join(few), encoding="utf-8")
    built = []
    for name in ("gpu-job:once", "gpu-job:twice"):
        one = Image(image.engine, name)
        _, environment = make("build", one, NO_CACHE="1", REQUIREMENTS="docker/requirements-few.txt")
        command = [str(checkout / "docker/image.sh"), "build"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        built.append(layers(one))
        one("image", "rm", name)
    assert built[0] == built[1]
