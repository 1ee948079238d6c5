"""The sentence about what holds a run back, for figures as they occur."""

from typing import Any

import pytest

from job.results.limits import Figures, limit

GOOD = {"wait": 1.0, "copy": 0.0, "prepare": 5.0, "compute": 90.0, "evaluate": 3.0, "save": 0.5, "other": 0.5}


def figures(changes: dict[str, float] | None = None, **rest: Any) -> Figures:
    given = {"steps": 1000, "on_gpu": False, "resident": False, "num_workers": 2, **rest}
    return Figures(split={**GOOD, **(changes or {})}, **given)


@pytest.mark.parametrize(
    ("made", "begins", "names"),
    [
        (figures(), "The network's own arithmetic limits this run (90% of the time)", "or a GPU"),
        (figures(on_gpu=True, mfu=0.4, utilization=0.97), "The network's own arithmetic", "or a faster GPU"),
        (figures({"wait": 100.0}), "Loading limits this run: 50% of the time", "loader.resident: true"),
        (figures({"wait": 100.0}, num_workers=0), "Loading limits this run: 50%", "loader.num_workers: auto"),
        (figures({"wait": 100.0}, resident=True, num_workers=0), "Loading limits this run", "loader.batch_size"),
        (figures({"copy": 30.0}), "Loading limits this run: 24%", "loader.resident"),
        (figures({"copy": 30.0}, on_gpu=True, utilization=0.9), "The network's own arithmetic", "faster GPU"),
        (figures({"prepare": 60.0}), "Augmentation limits this run", "augment.cutout"),
        (figures({"save": 30.0}), "Saving limits this run", "checkpoint.every"),
        (figures({"evaluate": 60.0}), "Evaluation limits this run", "train.evaluate_every"),
        (figures({"other": 40.0}), "The steps are too small", "loader.batch_size"),
        (figures(steps=100_000), "The batches are too small: a step takes 0.9 ms", "loader.batch_size"),
        (figures(on_gpu=True, utilization=0.3), "The batches are too small for this GPU", "train.compile"),
        (figures(on_gpu=True, mfu=0.02, steps=10_000), "The batches are too small for this GPU", "9.0 ms"),
        (figures(steps=0), "Too little was trained", "to tell"),
    ],
)
def test_the_sentence_names_the_loss_and_what_to_change(made: Figures, begins: str, names: str) -> None:
    said = limit(made)
    assert said.startswith(begins), said
    assert names in said


def test_of_two_losses_the_larger_is_told() -> None:
    assert limit(figures({"save": 30.0, "wait": 50.0})).startswith("Loading")
    assert limit(figures({"save": 50.0, "wait": 30.0})).startswith("Saving")
