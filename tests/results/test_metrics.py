"""Metrics against numbers worked out by hand, against scipy, and against plain loops."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from job.errors import JobError
from job.results.metrics import (
    BINS,
    Predictions,
    calibration,
    expected_calibration_error,
    measure,
    most_confident_mistakes,
    wilson,
)

BY_HAND = Predictions(
    np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3]], dtype=np.float32), np.array([0, 1, 2])
)


def test_a_case_worked_out_by_hand() -> None:
    found = measure(BY_HAND, ["a", "b", "c"])
    assert (found.count, found.correct) == (3, 2)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]  # rows: truth
    assert {name: (one.accuracy, one.count, one.correct) for name, one in found.per_class.items()} == {
        "a": (1.0, 1, 1),
        "b": (1.0, 1, 1),
        "c": (0.0, 1, 0),
    }
    assert found.loss == pytest.approx(-(math.log(0.7) + math.log(0.8) + math.log(0.3)) / 3, rel=1e-6)
    assert found.ece == pytest.approx((0.3 + 0.2 + 0.4) / 3, rel=1e-6)
    assert found.top5 is None


def test_a_class_without_images_has_no_accuracy() -> None:
    found = measure(Predictions(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 1])), ["a", "b", "empty"])
    assert found.per_class["empty"].accuracy is None
    assert found.per_class["empty"].count == 0


@given(st.integers(1, 20000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_is_that_of_scipy(case: tuple[int, int]) -> None:
    correct, count = case
    expected = binomtest(correct, count).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "count"), [(0, 7), (7, 7), (1, 1), (3, 10)])
def test_the_interval_holds_the_share_and_stays_within_bounds(correct: int, count: int) -> None:
    low, high = wilson(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    assert low < high


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 60))
def test_calibration_error_is_that_of_plain_loops(seed: int, classes: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.full(classes, 0.4), count).astype(np.float32)
    predictions = Predictions(probabilities, draw.integers(0, classes, count))
    error = expected_calibration_error(calibration(predictions))
    assert error == pytest.approx(_plain_error(predictions), abs=1e-9)
    assert 0 <= error <= 1


def test_bins_hold_their_upper_edge_and_every_image() -> None:
    for k in range(1, BINS + 1):
        edge = np.linspace(0, 1, BINS + 1)[k]
        bins = calibration(Predictions(np.array([[edge, 0.0]]), np.array([0])))  # float64: the edge itself
        assert [part.count for part in bins].index(1) == k - 1
    bins = calibration(Predictions(np.array([[1 + 1e-7, 0.0]], dtype=np.float32), np.array([0])))
    assert bins[-1].count == 1  # a softmax may add up to a little more than 1
    assert bins[0].confidence is None
    assert bins[0].accuracy is None


def test_top_five_counts_from_eleven_classes_on() -> None:
    names = [f"c{k}" for k in range(11)]
    probabilities = np.tile(np.linspace(0.2, 0.01, 11, dtype=np.float32), (2, 1))  # falling: ranks are the labels
    assert measure(Predictions(probabilities, np.array([4, 5])), names).top5 == 0.5
    assert measure(Predictions(probabilities[:, :10], np.array([4, 5])), names[:10]).top5 is None


def test_a_network_that_knows_nothing_is_not_flattered() -> None:
    """All classes equal: only the first five labels are among the first five."""
    probabilities = np.full((11, 11), 1 / 11, dtype=np.float32)
    found = measure(Predictions(probabilities, np.arange(11)), [f"c{k}" for k in range(11)])
    assert found.top5 == pytest.approx(5 / 11)
    assert found.correct == 1


def test_no_probability_at_all_costs_much_but_is_a_number() -> None:
    found = measure(Predictions(np.array([[1, 0]], dtype=np.float32), np.array([1])), ["a", "b"])
    assert 80 < found.loss < 100


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_one_line(bad: float) -> None:
    probabilities = np.full((3, 2), 0.5, dtype=np.float32)
    probabilities[1, 0] = bad
    with pytest.raises(JobError, match=r"1 of 3 images is not a number; set train\.precision") as caught:
        measure(Predictions(probabilities, np.array([0, 1, 0])), ["a", "b"])
    assert "\n" not in str(caught.value)


def test_mistakes_come_surest_first_and_equals_in_their_own_order() -> None:
    sure = [0.6, 0.9, 0.7, 0.9, 0.99]
    probabilities = np.array([[p, 1 - p] for p in sure], dtype=np.float32)
    predictions = Predictions(probabilities, np.array([1, 1, 1, 1, 0]))
    assert most_confident_mistakes(predictions) == [1, 3, 2, 0]
    assert most_confident_mistakes(predictions, 2) == [1, 3]
    two = np.array([[0.6, 0.4], [0.7, 0.3]], dtype=np.float32)
    many = Predictions(np.tile(two, (500, 1)), np.ones(1000, dtype=np.int64))
    assert most_confident_mistakes(many, 600) == [*range(1, 1000, 2), *range(0, 200, 2)]


def test_no_mistakes_are_an_empty_list() -> None:
    assert most_confident_mistakes(Predictions(np.eye(2, dtype=np.float32), np.arange(2))) == []


def test_counts_agree_with_each_other(predictions: Callable[..., Predictions]) -> None:
    found = measure(predictions(7, count=500), list("abcdefg"))
    assert found.confusion.sum() == found.count == sum(one.count for one in found.per_class.values()) == 500
    assert found.correct == sum(one.correct for one in found.per_class.values()) == np.trace(found.confusion)
    assert sum(part.count for part in found.calibration) == 500
    right = sum(part.count * part.accuracy for part in found.calibration if part.accuracy is not None)
    assert right == pytest.approx(found.correct)


def _plain_error(predictions: Predictions) -> float:
    """Guo et al.'s definition, read off the paper: bins (m−1)/15 < confidence ≤ m/15."""
    edges: NDArray[np.float64] = np.linspace(0, 1, BINS + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = []
        for row, label in zip(predictions.probabilities, predictions.labels, strict=True):
            confidence = float(row.max())
            if low < confidence <= high or (high == 1 and confidence > 1):
                inside.append((confidence, float(row.argmax() == label)))
        if inside:
            gap = sum(sure for sure, _ in inside) - sum(right for _, right in inside)
            total += abs(gap)
    return total / len(predictions.labels)
