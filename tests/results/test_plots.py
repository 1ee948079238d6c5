"""Pictures: the right ones for the data, drawn without a warning whatever the names, and right in their colours."""

import io
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from job.results import canvas, plots, schema
from job.results.metrics import Predictions, measure
from job.results.schema import Report, TestResult

Build = Callable[..., Report]
ALL = {"curves.png", "per_class.png", "confusion.png", "calibration.png"}


def test_pictures_there_is_data_for(build: Build, partial: Report) -> None:
    whole = build()
    assert set(plots.draw(whole)) == ALL
    assert set(plots.draw(build(history=(), running_loss=()))) == ALL - {"curves.png"}
    assert plots.draw(partial) == {}
    assert set(plots.draw(partial.model_copy(update={"history": whole.history}))) == {"curves.png"}


@pytest.mark.parametrize("classes", [2, 20, 21, 31, 300])
def test_any_number_of_classes(build: Build, classes: int) -> None:
    for name, png in plots.draw(build(names=[f"class {k}" for k in range(classes)])).items():
        with Image.open(io.BytesIO(png)) as image:
            assert image.width == round(canvas.WIDTH * canvas.DPI), name
            assert 100 < image.height < 1400, name


def test_hostile_names_are_drawn_without_a_warning(build: Build, hostile: tuple[str, ...]) -> None:
    assert set(plots.draw(build(names=hostile))) == ALL


def test_labels_are_one_short_line_that_the_font_has() -> None:
    names = ["cat", "two\nlines", "猫", "x" * 200, "\u202eright", "\x00", "$a$"]
    assert canvas.labels(names) == ["cat", "two lines", "class 2", "x" * 10 + "…" + "x" * 7, "right", "class 5", "$a$"]


def test_settings_of_this_machine_change_nothing(build: Build) -> None:
    report = build()
    before = plots.draw(report)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9}):
        assert plots.draw(report) == before
        assert mpl.rcParams["font.size"] == 30


def test_the_matrix_shows_truth_by_row(predictions: Callable[..., Predictions]) -> None:
    counts = np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]])
    with canvas.style():
        figure = plots.confusion(counts, ["a", "b", "c"])
    (axes,) = figure.axes
    colours = np.asarray(axes.images[0].get_array())
    assert colours[0, 2].tolist() == [1, 1, 1]  # nothing there: white
    assert colours[1, 1].tolist() == pytest.approx(canvas.rgb(canvas.BLUE).tolist())  # all of the row
    assert colours[0, 1, 0] > colours[0, 1, 2]  # a mistake: reddish
    assert colours[2, 2].tolist() == [1, 1, 1]  # a class without images
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"),
        ((1, 0), "2"),
        ((1, 1), "10"),
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "truth")


def test_bars_are_the_accuracies_and_whiskers_their_intervals(predictions: Callable[..., Predictions]) -> None:
    metrics = measure(predictions(3), ["a", "b", "c"])
    with canvas.style():
        figure = plots.per_class(TestResult.of(metrics), ["a", "b", "c"])
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([one.accuracy for one in metrics.per_class.values()])
    for bar, line in zip(widths, axes.lines, strict=False):
        low, high = np.asarray(line.get_xdata(), dtype=float)
        assert low < bar < high


def test_running_losses_stand_at_their_place_in_the_epoch(build: Build) -> None:
    """1,000 images in batches of 64 are 16 steps: step 8 of epoch 2 is at 1.5."""
    report = build(running_loss=(schema.Loss(epoch=2, step=8, loss=1.0),), history=())
    with canvas.style():
        figure = plots.curves(report)
    assert figure is not None
    assert np.asarray(figure.axes[0].lines[0].get_xdata()).tolist() == [1.5]


def test_losses_that_are_not_known_are_left_out(build: Build) -> None:
    report = build()
    gap = report.history[1].model_copy(update={"train_loss": None, "loss": None, "accuracy": None})
    with canvas.style():
        figure = plots.curves(build(history=(report.history[0], gap, report.history[2]), running_loss=()))
    assert figure is not None
    assert [_xs(axes) for axes in figure.axes] == [[[1.0, 3.0], [1.0, 3.0]], [[0.0, 1.0], [1.0, 3.0]]]


def test_without_evaluations_there_is_no_empty_panel(build: Build) -> None:
    unseen = [
        epoch.model_copy(update={"loss": None, "accuracy": None, "evaluated_on": None}) for epoch in build().history
    ]
    with canvas.style():
        figure = plots.curves(build(history=tuple(unseen)))
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss"]


def _xs(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_xdata(), dtype=float).tolist() for line in axes.lines]
