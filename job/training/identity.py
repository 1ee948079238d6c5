"""What a checkpoint belongs to: its form, the spec, the data, and the versions that computed it."""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from job.data.dataset import Splits
from job.device import Device
from job.errors import UsageError
from job.spec.load import spec_hash
from job.spec.schema import Spec

ROUNDING = ("kind", "precision", "channels_last", "threads", "compile", "graphs")  # of the device: move the last bits
FORMAT = 2  # of the checkpoint's content; goes up when an older one can no longer be read


def of(spec: Spec, splits: Splits, device: Device) -> dict[str, Any]:
    """Plain values, kept in each checkpoint."""
    return {
        "format": FORMAT,
        "spec_sha256": spec_hash(spec),
        "data_sha256": splits.sha256,
        "images": len(splits.train.labels),
        "device": {name: getattr(device, name) for name in ROUNDING},
        "versions": {"gpu-job": version_of_job(), "torch": str(torch.__version__), "numpy": np.__version__},
    }


def compare(saved: dict[str, Any], now: dict[str, Any], path: str) -> list[str]:
    """UsageError where the run cannot go on from it; else what may make a difference, in words.

    The spec is compared key by key before, in `job.resuming`: its hash is kept as a record.
    """
    another = "use another --run-id"
    if saved.get("format") != now["format"]:
        raise UsageError(path, f"it has form {saved.get('format')}, this version writes {now['format']}", another)
    if (saved["data_sha256"], saved["images"]) != (now["data_sha256"], now["images"]):
        what = f"the data is not what this run began with ({saved['images']:,} training images, now {now['images']:,})"
        raise UsageError(path, what, f"put the data back, or {another}")
    changed = [
        f"{name} {saved[what].get(name)} → {found}"
        for what in ("device", "versions")
        for name, found in now[what].items()
        if saved[what].get(name) != found
    ]
    return [f"Not as when it was saved, rounding differs from here on: {', '.join(changed)}"] if changed else []


def version_of_job() -> str | None:
    try:
        return version("gpu-job")
    except ModuleNotFoundError:  # run from a checkout
        return None
