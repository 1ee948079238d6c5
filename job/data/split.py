"""Who goes where: stratified, seeded choices of indices. Pure functions of labels, fraction and seed."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def stratified(labels: NDArray[np.int64], count: int, seed: int | None) -> tuple[Indices, Indices]:
    """`count` of the N places, each class in proportion (within one), and the rest; both sorted, together all.

    Within a class the choice follows from (seed, class, size of the class) alone; without a seed the first are taken.
    """
    assert 0 <= count <= len(labels)
    taken = []
    for label, quota in shares(np.bincount(labels), count).items():
        members = np.flatnonzero(labels == label)
        if seed is not None:
            members = members[np.random.Generator(np.random.PCG64([seed, label])).permutation(len(members))]
        taken.append(members[:quota])
    chosen = np.sort(np.concatenate([np.empty(0, np.int64), *taken]))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)


def shares(sizes: NDArray[np.int64], count: int) -> dict[int, int]:
    """How many of each class: its exact share rounded down, then one more where the remainder is largest."""
    exact = sizes * (count / max(sizes.sum(), 1))
    quota = np.floor(exact + 1e-9).astype(np.int64)
    remainder = exact - quota
    for label in np.argsort(-remainder, kind="stable")[: count - int(quota.sum())]:
        quota[label] += 1
    return {label: int(amount) for label, amount in enumerate(quota) if sizes[label]}
