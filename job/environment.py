"""Where a run happened: versions, machine, commit, GPU and driver. Facts for the manifest; never an error."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from job.device import available_memory, cpu_count, cpu_name
from job.runfolder import sha256

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "gpu-job")
HERE = Path(__file__).resolve().parent.parent


def facts() -> dict[str, str | None]:
    """Word → value, None where it cannot be told."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": str(cpu_count()),
        "memory_available": f"{available_memory() / 2**30:.1f} GiB",
        "commit": commit(),
        "lock_sha256": _lock(),
        "image_digest": os.environ.get("JOB_IMAGE_DIGEST"),
        "data_science_job_run": os.environ.get("JOB_RUN_OCID"),
        "batch_job": os.environ.get("OCI_BATCH_JOB_ID"),
        **gpu(),
    }


def process_seconds(proc: Path = Path("/proc")) -> float:
    """Seconds since this process began, before Python's own start; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        began = int((proc / "self/stat").read_text().rpartition(")")[2].split()[19])  # field 22: ticks since boot
        return max(0.0, float((proc / "uptime").read_text().split()[0]) - began / os.sysconf("SC_CLK_TCK"))
    return 0.0


def commit(folder: Path = HERE) -> str | None:
    """The commit of the checkout this runs from, with '-dirty' when files differ; $JOB_COMMIT inside an image."""
    if "JOB_COMMIT" in os.environ:
        return os.environ["JOB_COMMIT"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--match="],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return answer.stdout.strip() or None
    return None


def gpu() -> dict[str, str | None]:
    """Name and driver of the first NVIDIA GPU through NVML; None without one."""
    unknown: dict[str, str | None] = {"gpu": None, "driver": None}
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no rights: all mean that there is nothing to tell
        return unknown
    try:
        return {
            "gpu": str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))),
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        }
    except Exception:
        return unknown
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lock() -> str | None:
    lock = HERE / "requirements.txt"
    return sha256(lock) if lock.is_file() else None
