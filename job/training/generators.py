"""The generators of random numbers of this process, as plain values: torch's on CPU and GPUs, numpy's, Python's.

The job itself draws nothing from the last two; a network of somebody else's may.
"""

import random
from typing import Any

import numpy as np
import torch


def seed(value: int) -> None:
    """All of them at a place that follows from `value`."""
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the global one is what others draw from


def generators() -> dict[str, Any]:
    """Where each of them stands, in tensors, numbers and words alone: weights_only loading takes it."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is what others draw from
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def set_generators(saved: dict[str, Any]) -> None:
    """Puts them back there. Without as many GPUs as there were, theirs stay as they are."""
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(saved["cuda"]):
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
