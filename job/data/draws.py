"""Random numbers by counter: a pure function of (seed, epoch, index, purpose), one for each image.

Nothing is drawn in turn, so neither the size of a batch, nor the step a run goes on at, nor workers, nor ranks can
change them. They are made with numpy on the host, so a GPU sees the numbers that a CPU sees; a whole epoch of 50,000
takes about 1 ms for each purpose.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shift and factor of splitmix64's mixing steps
GOLDEN = 0x9E3779B97F4A7C15  # its increment: 2**64 divided by the golden ratio


def stream(*position: int | str) -> int:
    """A seed of its own for each position, such as (seed, epoch)."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # 63 bits: what torch.Generator takes without a sign


def bits(indices: NDArray[np.int64], *position: int | str) -> NDArray[np.uint64]:
    """64 random bits for each index: the index-th number of the splitmix64 stream that `position` names."""
    mixed = indices.astype(np.uint64)
    mixed *= np.uint64(GOLDEN)
    mixed += np.uint64(stream(*position))
    for shift, factor in STEPS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def below(bound: int, indices: NDArray[np.int64], *position: int | str) -> NDArray[np.int64]:
    """A number from 0 to bound − 1 for each index; even to within bound / 2**32."""
    high = bits(indices, *position) >> np.uint64(32)
    return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
