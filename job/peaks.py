"""Model FLOPs utilisation: the arithmetic a network needs, over what the GPU could do at most in that number format.

The peaks are a table with sources, peaks.yaml. CPUs are not in it: their peak moves with clock, instructions and load,
and a figure that nobody published is no yardstick; for them only the FLOP/s are told.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PASSES = 3  # the backward pass takes twice the forward's arithmetic, to inputs and to weights


@dataclass(frozen=True)
class Peak:
    """Dense peak of a GPU in one number format."""

    flops: float  # FLOP/s
    source: str


def peak(gpu: str, precision: str) -> Peak | None:
    """By the name the driver gives, such as NVIDIA A100-SXM4-80GB; None where the table does not tell."""
    fits = [row for row in _table() if re.search(rf"(?<![A-Za-z0-9]){re.escape(row['name'])}(?![A-Za-z0-9])", gpu)]
    if not fits:
        return None
    row = max(fits, key=lambda row: len(row["name"]))
    return Peak(row[precision] * 1e12, row["source"]) if precision in row else None


def training_flops(images_per_second: float, flops_per_image: float) -> float:
    """FLOP/s of training; `flops_per_image` is that of a forward pass."""
    return PASSES * flops_per_image * images_per_second


@cache
def _table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "peaks.yaml").read_text("utf-8"))["gpus"]
    return rows
