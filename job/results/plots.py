"""The four pictures of a report: curves, per_class, confusion, calibration, as PNG.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; what matters is also said in words or shape.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from job.results.canvas import (
    BLUE,
    DPI,
    INK,
    MUTED,
    ORANGE,
    WIDTH,
    label_width,
    labels,
    legend,
    percent,
    place,
    png,
    rgb,
    style,
)
from job.results.metrics import wilson
from job.results.schema import Report, TestResult

ANNOTATED = 20  # classes; with more, the numbers in a confusion matrix could not be read
NAMED = 30  # classes; with more, the bars carry no names


def draw(report: Report) -> dict[str, bytes]:
    """File name → PNG, for each picture there is data for."""
    pictures: dict[str, Callable[[], Figure | None]] = {"curves.png": lambda: curves(report)}
    if (test := report.test) is not None:
        names = labels(test.per_class)
        pictures["per_class.png"] = lambda: per_class(test, names)
        pictures["confusion.png"] = lambda: confusion(np.array(test.confusion), names)
        pictures["calibration.png"] = lambda: calibration(test)
    with style():
        figures = {name: make() for name, make in pictures.items()}
        return {name: png(figure) for name, figure in figures.items() if figure is not None}


def curves(report: Report) -> Figure | None:
    """Loss above, accuracy below where it was evaluated, by epoch. None before the first line of running loss."""
    losses = _losses(report)
    accuracies = [(float(e.epoch), e.accuracy) for e in report.history if e.accuracy is not None]
    if not losses:
        return None
    both = bool(accuracies)
    figure = Figure((WIDTH, 4.6 if both else 2.7))
    last = max(x for _, points, _ in losses for x, _ in points)
    upper = place(figure, left=0.8, bottom=2.6 if both else 0.6, height=1.7)
    for word, points, look in losses:
        upper.plot(*zip(*points, strict=True), label=word, **look)
    upper.set_ylabel("loss")
    legend(upper)
    bottom = upper
    if both:
        bottom = place(figure, left=0.8, bottom=0.55, height=1.65)
        upper.tick_params(labelbottom=False)
        _accuracy_curve(bottom, report, accuracies)
    for axes in {upper, bottom}:
        axes.set_xlim(0, last * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlabel("epoch")
    return figure


def per_class(test: TestResult, names: Sequence[str]) -> Figure:
    """A bar a class, with its interval; many classes become one sorted profile."""
    if len(names) > NAMED:
        return _profile(test)
    accuracies = [one.accuracy for one in test.per_class.values()]
    left = label_width(names) + 0.25
    figure = Figure((WIDTH, 0.75 + 0.27 * len(names)))
    axes = place(figure, left=left, bottom=0.55, right=0.65, height=0.1 + 0.27 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, [accuracy or 0 for accuracy in accuracies], height=0.68, color=BLUE, alpha=0.85)
    for row, one in enumerate(test.per_class.values()):
        if one.accuracy is None:
            axes.text(0.01, row, "no test image", va="center", color=MUTED, fontsize=8.5)
            continue
        axes.plot(wilson(one.correct, one.count), (row, row), color=INK, linewidth=1.1)
        axes.text(1.02, row, f"{one.accuracy:.1%}", va="center", fontsize=8.5)
    axes.axvline(test.accuracy, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(percent)
    axes.set_xlabel("accuracy (line: 95 % interval, dashes: all classes)")
    return figure


def confusion(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Truth by row. Hits in blue, mistakes in orange with a square-root scale, so that rare ones show."""
    classes = len(names)
    named = classes <= ANNOTATED
    left = label_width(names) + 0.35 if named else 0.75
    width = WIDTH - left - 0.25
    upright = not named or label_width(names) < 0.9 * width / classes  # labels that fit under their columns
    bottom = 0.55 if upright else left
    height = min(width, 0.8 + 0.5 * classes)
    figure = Figure((WIDTH, height + bottom + 0.1))
    axes = place(figure, left=left, bottom=bottom, height=height)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(_heat(share), interpolation="nearest" if classes <= height * DPI / 2 else "auto", aspect="auto")
    axes.grid(visible=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    for spine in axes.spines.values():
        spine.set_visible(True)
    if not named:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return figure
    ticks = np.arange(classes)
    axes.set_xticks(ticks, names, rotation=0 if upright else 90)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    digits = len(str(counts.max()))
    size = min(9.5, 100 * height / classes / max(digits, 2))  # points: a digit is about 0.64 of its height wide
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = share[row, column] > (0.6 if row == column else 0.35)
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    return figure


def calibration(test: TestResult) -> Figure:
    """How often it is right when it claims to be this sure; below, how often it claims so."""
    figure = Figure((WIDTH, 4.5))
    upper = place(figure, left=0.8, bottom=1.75, height=2.45)
    lower = place(figure, left=0.8, bottom=0.55, height=0.95)
    middles = [(part.low + part.high) / 2 for part in test.calibration]
    width = 0.92 / max(len(middles), 1)
    upper.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle="--", zorder=3, label="perfectly calibrated")
    filled = [(x, part) for x, part in zip(middles, test.calibration, strict=True) if part.accuracy is not None]
    upper.bar([x for x, _ in filled], [p.accuracy or 0 for _, p in filled], width, color=BLUE, alpha=0.85)
    for x, part in filled:
        upper.plot((x, x), wilson(round((part.accuracy or 0) * part.count), part.count), color=INK, linewidth=1.1)
    lower.bar(middles, [part.count / test.count for part in test.calibration], width, color=MUTED)
    upper.set_ylabel("accuracy")
    legend(upper)
    upper.tick_params(labelbottom=False)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence: the highest probability")
    lower.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
    upper.set_ylim(0, 1)
    return figure


def _losses(report: Report) -> list[tuple[str, list[tuple[float, float]], dict[str, Any]]]:
    """(word, points, look) of each line there is data for; x is in epochs."""
    steps = max((one.step for one in report.running_loss), default=1)
    if report.data is not None and report.loader is not None:
        steps = max(steps, -(-report.data.train // report.loader.settings.batch_size))
    running = [(o.epoch - 1 + o.step / max(steps, 1), o.loss) for o in report.running_loss if o.loss is not None]
    train = [(float(e.epoch), e.train_loss) for e in report.history if e.train_loss is not None]
    seen = [(float(e.epoch), e.loss) for e in report.history if e.loss is not None]
    lines: list[tuple[str, list[tuple[float, float]], dict[str, Any]]] = [
        ("training, running", running, {"color": BLUE, "alpha": 0.4, "linewidth": 1}),
        ("training, by epoch", train, {"color": BLUE, "marker": "o", "markersize": 3.5}),
        (_watched(report), seen, {"color": ORANGE, "marker": "s", "markersize": 3.5}),
    ]
    return [line for line in lines if line[1]]


def _watched(report: Report) -> str:
    return next((epoch.evaluated_on for epoch in report.history if epoch.evaluated_on), "evaluation")


def _accuracy_curve(axes: Axes, report: Report, accuracies: Sequence[tuple[float, float]]) -> None:
    if report.test is not None:
        axes.axhspan(*report.test.interval, color=MUTED, alpha=0.2, linewidth=0)
        axes.axhline(report.test.accuracy, color=INK, linewidth=1, linestyle="--", label="test, at the end")
    axes.plot(*zip(*accuracies, strict=True), "s-", color=ORANGE, markersize=3.5, label=_watched(report))
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(percent)
    axes.margins(y=0.12)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
    legend(axes)


def _profile(test: TestResult) -> Figure:
    """Accuracies of many classes, the best first."""
    known = [
        (one.accuracy, *wilson(one.correct, one.count)) for one in test.per_class.values() if one.accuracy is not None
    ]
    accuracy, low, high = np.array(sorted(known, reverse=True)).T
    ranks = np.arange(1, len(known) + 1)
    figure = Figure((WIDTH, 3.6))
    axes = place(figure, left=0.8, bottom=0.55, height=2.75)
    axes.fill_between(ranks, low, high, step="mid", color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.step(ranks, accuracy, where="mid", color=BLUE, label="one class")
    axes.axhline(test.accuracy, color=ORANGE, linewidth=1.2, linestyle="--", label="all classes")
    axes.set_xlim(1, max(len(known), 2))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(percent)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("classes, the best first")
    axes.set_ylabel("accuracy")
    legend(axes)
    return figure


def _heat(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, K, 3) colours: white to blue on the diagonal, white to orange off it."""
    strength = np.where(np.eye(len(share), dtype=bool), share, np.sqrt(share))[..., None]
    full = np.where(np.eye(len(share), dtype=bool)[..., None], rgb(BLUE), rgb(ORANGE))
    mixed: NDArray[np.float64] = 1 - strength * (1 - full)
    return mixed
