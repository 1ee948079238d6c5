"""What all tests share: one thread, repeatable examples, and reasons to skip. Sockets reach the loopback only.

The socket rule and warnings-as-errors are in pyproject.toml.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch, numpy or matplotlib is imported: many small tests on few cores, and no window.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)  # no clock, and the same each time
settings.load_profile("house")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu or engine skip where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
    if item.get_closest_marker("engine") is not None and not (shutil.which("docker") or shutil.which("podman")):
        pytest.skip("needs docker or podman")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has kept, and none writes to the home folder."""
    monkeypatch.setenv("JOB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_arithmetic() -> Iterator[None]:
    """A run makes its processor flush denormal numbers to zero; the next test begins with IEEE's arithmetic again."""
    _keep_denormals()
    yield
    _keep_denormals()


def _keep_denormals() -> None:
    if "torch" in sys.modules:  # not imported for its own sake: light tests stay light
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds CIFAR-10 as torchvision lays it out, from JOB_DATA_ROOT."""
    root = Path(os.environ.get("JOB_DATA_ROOT", ""))
    if "JOB_DATA_ROOT" not in os.environ or not (root / "cifar-10-batches-py/test_batch").is_file():
        pytest.skip("needs CIFAR-10 in JOB_DATA_ROOT")
    return root
