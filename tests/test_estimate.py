"""The time of a run, by hand."""

import pytest

from job.estimate import REPORT, SAVE, SAVE_RATE, Figures, evaluations, parts

FIGURES = Figures(
    spent=5.0,
    epochs=10,
    train_images=45_000,
    train_rate=3_000.0,
    watched_images=5_000,
    evaluations=10,
    final_images=17_000,
    evaluate_rate=10_000.0,
    checkpoints=10,
    checkpoint_bytes=int(SAVE_RATE),
)


def test_each_phase_is_work_over_rate() -> None:
    found = parts(FIGURES)
    assert found == {
        "start": 5.0,
        "train": 150.0,
        "evaluate": pytest.approx(6.7),
        "save": pytest.approx(10 * (SAVE + 1)),
        "report": REPORT,
    }


@pytest.mark.parametrize(("epochs", "every", "count"), [(10, 1, 10), (10, 3, 4), (9, 3, 3), (2, 5, 1)])
def test_an_evaluation_after_every_few_epochs_and_the_last(epochs: int, every: int, count: int) -> None:
    assert evaluations(epochs, every) == count
