"""Makes the image's layers: no more than is needed, compiled, and the same each time.

    python3 docker/assemble.py environment    # /opt/venv → /layers/torch and /layers/rest
    python3 docker/assemble.py job            # /build/job → /layers/job

Each layer is a tree as it will lie in the image. torch has torch, CUDA's libraries and what torch alone asks for,
gigabytes that change seldom; rest the other packages; job the job. Runs in the build only, and needs nothing but
Python's own library and strip.
"""

import compileall
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from py_compile import PycInvalidationMode

FIXED_TIME = 1577836800  # 2020-01-01; every file gets it: times are part of a layer
TORCHS_OWN = re.compile(r"torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py).*")
TORCH_ALONE = {"filelock", "fsspec", "mpmath", "networkx", "setuptools", "sympy"}  # asks for these; a test looks
TRIMMED = ("PIL", "fontTools", "kiwisolver", "matplotlib", "networkx", "numpy", "sympy")
KEPT = (".py", ".yaml", ".json", ".npz")  # of the job, beside its templates
SOURCES = ("c", "cpp", "pxd", "pyi", "pyx")
# A service of OCI's SDK is a folder with models; these are kept of some 150, the job calls no other.
SERVICES = {
    *(
        "artifacts",
        "audit",
        "batch",
        "budget",
        "core",
        "data_science",
        "identity",
        "limits",
        "logging",
        "loggingingestion",
        "loggingsearch",
    ),
    *("monitoring", "object_storage", "ons", "secrets", "usage_api", "work_requests"),
}

BUILD, LAYERS = Path("/build"), Path("/layers")
ENVIRONMENT, JOB = Path("/opt/venv"), Path("/opt/job")


def environment() -> None:
    """Moves the installed environment into two layers."""
    packages = next(ENVIRONMENT.glob("lib/python3*/site-packages"))
    for needless in [*_needless(packages), *packages.rglob("__pycache__")]:
        shutil.rmtree(needless) if needless.is_dir() else needless.unlink(missing_ok=True)
    for library in (file for name in TRIMMED for file in (packages / name).rglob("*.so")):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)  # noqa: S607 - debugging symbols
    for item in _torchs_own(packages):
        item.rename(_placed("torch", item))
    ENVIRONMENT.rename(_placed("rest", ENVIRONMENT))
    finish(LAYERS / "torch")
    finish(LAYERS / "rest")


def job() -> None:
    """Lays out the job beside its lock, known to the environment by a .pth file and to importlib.metadata by name."""
    packages = next((LAYERS / "rest").glob("opt/venv/lib/python3*/site-packages")).relative_to(LAYERS / "rest")
    _placed("job", "/" / packages / "job.pth").write_text(f"{JOB}\n", encoding="utf-8")
    for source in sorted((BUILD / "job").rglob("*")):  # what else lies about in a checkout stays out
        if source.is_file() and (source.suffix in KEPT or source.parent.name == "templates"):
            shutil.copy(source, _placed("job", JOB / source.relative_to(BUILD)))
    shutil.copy(BUILD / "requirements.txt", _placed("job", JOB / "requirements.txt"))
    shutil.copy(BUILD / "healthcheck", _placed("job", JOB / "healthcheck"))
    project = tomllib.loads((BUILD / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    metadata = JOB / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info" / "METADATA"
    _placed("job", metadata).write_text(about, encoding="utf-8")
    work = _placed("job", Path("/work"))
    work.mkdir()
    work.chmod(0o1777)  # any user writes there
    finish(LAYERS / "job")


def _placed(layer: str, path: Path) -> Path:
    """Where `path` of the image lies in the layer; the folder it goes into is made."""
    place = LAYERS / layer / path.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def finish(layer: Path) -> None:
    """Bytecode that is valid without a look at the source's time, and one time on everything."""
    compiled = compileall.compile_dir(
        layer,
        maxlevels=50,
        quiet=2,
        stripdir=str(layer),
        prependdir="/",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        print(f"{layer}: some files are no valid Python and stay without bytecode", file=sys.stderr)  # noqa: T201
    for path in [layer, *layer.rglob("*")]:
        os.utime(path, (FIXED_TIME, FIXED_TIME), follow_symlinks=False)


def _needless(packages: Path) -> list[Path]:
    """Other projects' tests and what their libraries were compiled from; services of OCI's SDK that nobody calls."""
    folders = [
        folder
        for name in TRIMMED
        for kind in ("tests", "benchmarks")
        for folder in (packages / name).rglob(kind)
        if folder.parent.name not in ("tests", "benchmarks")
    ]
    sources = [file for name in TRIMMED for kind in SOURCES for file in (packages / name).rglob(f"*.{kind}")]
    services = [folder.parent for folder in (packages / "oci").glob("*/models") if folder.parent.name not in SERVICES]
    gone = [*folders, *services]
    return gone + [file for file in sources if not any(file.is_relative_to(folder) for folder in gone)]


def _torchs_own(packages: Path) -> list[Path]:
    """The top-level files and folders of torch, triton, CUDA's packages, and those that torch alone asks for."""
    found = set()
    for distribution in distributions(path=[str(packages)]):
        name = distribution.metadata["Name"].lower()
        if TORCHS_OWN.fullmatch(name) or name in TORCH_ALONE:
            found |= {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
    return sorted(packages / name for name in found if (packages / name).exists())


if __name__ == "__main__":
    {"environment": environment, "job": job}[sys.argv[1]]()
