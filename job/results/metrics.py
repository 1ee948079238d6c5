"""What predictions are worth: accuracy with its interval, by class, loss, calibration. numpy only.

The formulas are short and each names its source; the tests hold them against scipy and against plain loops.
`scipy.stats` would give Wilson's interval too, but its import takes longer than all of this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from job.errors import JobError

CONFIDENCE = 0.95  # of every interval
BINS = 15  # of the calibration, as in Guo et al. 2017
TOP = 5
MORE_THAN = 10  # classes; with fewer, being among the first five says little
SMALLEST = float(np.finfo(np.float32).tiny)  # a softmax in float32 underflows to 0, whose logarithm is no number


@dataclass(frozen=True)
class Predictions:
    """A split as the network sees it, in the split's own order."""

    probabilities: NDArray[np.float32]  # (N, K), rows sum to 1
    labels: NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class ClassMetrics:
    """One class. Without an image of it there is nothing to tell: accuracy is None."""

    accuracy: float | None
    count: int
    correct: int


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in (low, high]; the means are None where there are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """A split summed up. Every image counts once."""

    count: int
    correct: int
    accuracy: float
    interval: tuple[float, float]  # Wilson, 95 %
    per_class: dict[str, ClassMetrics]  # in the order of the classes
    top5: float | None  # only for more than ten classes
    loss: float  # mean cross-entropy, in nats
    ece: float  # expected calibration error, 0–1
    confusion: NDArray[np.int64]  # (K, K), rows: truth, columns: prediction
    calibration: tuple[Bin, ...]


def measure(predictions: Predictions, classes: Sequence[str]) -> Metrics:
    """Everything that is told about a split. JobError when the network answers with what is no number."""
    probabilities, labels = predictions.probabilities, predictions.labels
    assert len(set(classes)) == len(classes), "class names are distinct"
    assert probabilities.shape == (len(labels), len(classes)), (probabilities.shape, len(labels), len(classes))
    assert len(labels) > 0
    _refuse_broken(probabilities)
    confusion = _confusion(labels, probabilities.argmax(1), len(classes))
    correct = int(confusion.trace())
    bins = calibration(predictions)
    return Metrics(
        count=len(labels),
        correct=correct,
        accuracy=correct / len(labels),
        interval=wilson(correct, len(labels)),
        per_class=_per_class(confusion, classes),
        top5=_top(predictions, TOP) if len(classes) > MORE_THAN else None,
        loss=_cross_entropy(predictions),
        ece=expected_calibration_error(bins),
        confusion=confusion,
        calibration=bins,
    )


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The score interval of a proportion: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209–212.

    Unlike p ± 1.96 σ it stays within 0–1 and does not shrink to a point at 0 or 100 %.
    """
    assert 0 <= correct <= count
    assert count > 0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, pull = correct / count, z * z / count
    middle = (share + pull / 2) / (1 + pull)
    half = z / (1 + pull) * math.sqrt(share * (1 - share) / count + pull / (4 * count))
    # at the ends the formula gives exactly 0 or 1, but for rounding
    return (0.0 if correct == 0 else middle - half, 1.0 if correct == count else middle + half)


def calibration(predictions: Predictions) -> tuple[Bin, ...]:
    """How often the network is right when it claims to be this sure, in bins of equal width."""
    confidence = predictions.probabilities.max(1).astype(np.float64)
    right = predictions.probabilities.argmax(1) == predictions.labels
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")  # (low, high], as in the paper
    counts = np.bincount(place, minlength=BINS)
    sure = np.bincount(place, weights=confidence, minlength=BINS)
    hits = np.bincount(place, weights=right, minlength=BINS)
    return tuple(
        Bin(
            low=float(edges[k]),
            high=float(edges[k + 1]),
            count=int(counts[k]),
            confidence=float(sure[k] / counts[k]) if counts[k] else None,
            accuracy=float(hits[k] / counts[k]) if counts[k] else None,
        )
        for k in range(BINS)
    )


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ (bin's images / all) · |accuracy − confidence|: C. Guo et al., ICML 2017, arXiv 1706.04599, equation 3."""
    total = sum(part.count for part in bins)
    gaps = ((part.count, part.accuracy, part.confidence) for part in bins)
    return sum(n * abs(right - sure) for n, right, sure in gaps if right is not None and sure is not None) / total


def most_confident_mistakes(predictions: Predictions, n: int = 16) -> list[int]:
    """Places of the images the network was surest about and wrong, the surest first; equals in their own order."""
    wrong = np.flatnonzero(predictions.probabilities.argmax(1) != predictions.labels)
    order = np.argsort(-predictions.probabilities[wrong].max(1), kind="stable")
    return [int(index) for index in wrong[order[:n]]]


def _refuse_broken(probabilities: NDArray[np.float32]) -> None:
    broken = int(np.count_nonzero(~np.isfinite(probabilities).all(1)))
    if broken:
        what = f"the network's answer to {broken:,} of {len(probabilities):,} images is not a number"
        raise JobError("evaluation", what, "set train.precision: fp32 or bf16, or lower optimizer.lr")


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _per_class(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, ClassMetrics]:
    found = {}
    for name, count, correct in zip(classes, confusion.sum(1).tolist(), confusion.diagonal().tolist(), strict=True):
        found[name] = ClassMetrics(correct / count if count else None, count, correct)
    return found


def _top(predictions: Predictions, places: int) -> float:
    """Share of images whose truth is among the first `places`; of equals the first counts, as in argmax."""
    probabilities, labels = predictions.probabilities, predictions.labels
    of_truth = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = ((probabilities > of_truth) | ((probabilities == of_truth) & earlier)).sum(1)
    return float((rank < places).mean())


def _cross_entropy(predictions: Predictions) -> float:
    chosen = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels].astype(np.float64)
    return float(-np.log(np.clip(chosen, SMALLEST, 1)).mean())
