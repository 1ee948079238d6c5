"""Choices of indices: together everything, apart nothing, each class in proportion, and always the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from job.data.split import shares, stratified

labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(lambda found: np.array(found, np.int64))
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**31)


@given(labels, fractions, seeds)
def test_disjoint_and_complete(found: NDArray[np.int64], fraction: float, seed: int) -> None:
    count = round(fraction * len(found))
    chosen, rest = stratified(found, count, seed)
    assert len(chosen) == count
    assert sorted([*chosen, *rest]) == list(range(len(found)))


@given(labels, fractions, seeds)
def test_each_class_in_proportion(found: NDArray[np.int64], fraction: float, seed: int) -> None:
    count = round(fraction * len(found))
    chosen, _ = stratified(found, count, seed)
    for label in range(7):
        exact = (found == label).sum() * count / len(found)
        assert abs((found[chosen] == label).sum() - exact) < 1


@given(labels, fractions, seeds)
def test_the_same_seed_the_same_choice(found: NDArray[np.int64], fraction: float, seed: int) -> None:
    count = round(fraction * len(found))
    assert np.array_equal(stratified(found, count, seed)[0], stratified(found.copy(), count, seed)[0])


@given(st.integers(1, 50), st.integers(1, 50), seeds)
def test_a_class_is_divided_whatever_lies_around_it(first: int, second: int, seed: int) -> None:
    """Grouped or interleaved, the k-th image of a class shares its fate."""
    grouped = np.array([0] * first + [1] * second, np.int64)
    order = np.random.default_rng(seed).permutation(len(grouped))
    mixed = grouped[order]
    count = len(grouped) // 2
    for label in (0, 1):
        where, elsewhere = np.flatnonzero(grouped == label), np.flatnonzero(mixed == label)
        one = np.isin(where, stratified(grouped, count, seed)[0])
        other = np.isin(elsewhere, stratified(mixed, count, seed)[0])
        assert np.array_equal(one, other)


def test_another_seed_another_choice() -> None:
    found = np.zeros(100, np.int64)
    assert not np.array_equal(stratified(found, 50, 0)[0], stratified(found, 50, 1)[0])


def test_shares_add_up() -> None:
    assert shares(np.array([10, 10, 10]), 10) == {0: 4, 1: 3, 2: 3}
    assert shares(np.array([1, 0, 99]), 50) == {0: 1, 2: 49}
