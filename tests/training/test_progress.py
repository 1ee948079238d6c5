"""Losses are read in groups and name the step that broke; selection looks at one number only."""

import math

import pytest
import torch
from torch import nn

from job.errors import JobError
from job.spec.schema import Stop
from job.training.progress import Losses, Selection, refuse_broken
from job.training.trainer import StepDone


def step(number: int, loss: float) -> StepDone:
    return StepDone(epoch=1, step=number, loss=torch.tensor(loss), lr=0.1, images=4, whole=True)


def test_means_over_the_window_and_the_epoch() -> None:
    losses = Losses()
    for number, value in enumerate([1.0, 2.0, 3.0, 6.0], 1):
        losses.add(step(number, value))
        losses.read()
        if number == 2:
            assert losses.take_window() == 1.5
    assert losses.take_window() == 4.5
    assert losses.epoch_mean() == 3.0
    losses.next_epoch()
    assert losses.epoch == losses.window == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_step_is_named(value: float) -> None:
    losses = Losses()
    for number, loss in enumerate([1.0, 2.0, value, math.nan], 1):
        losses.add(step(number, loss))
    with pytest.raises(JobError) as caught:
        losses.read()
    assert str(caught.value) == (
        f"epoch 2, step 3, learning rate 0.1: the loss is {value} (last good checkpoint: none); "
        "lower optimizer.lr, add schedule.warmup_epochs or set train.clip_grad_norm"
    )


def test_broken_weights_are_not_saved() -> None:
    layer = nn.Linear(2, 2)
    refuse_broken(layer.parameters(), 0, 1, 0.1, "a.pt")
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    with pytest.raises(JobError, match=r"the weights are not finite \(last good checkpoint: a\.pt\)"):
        refuse_broken(layer.parameters(), 0, 1, 0.1, "a.pt")


def test_losses_survive_a_checkpoint() -> None:
    losses, again = Losses(), Losses()
    losses.add(step(1, 2.0))
    losses.read()
    again.restore(losses.to_dict())
    again.add(step(2, 4.0))
    again.read()
    assert again.epoch_mean() == 3.0


def test_patience_counts_evaluations_without_a_real_fall() -> None:
    selection = Selection(Stop(patience=2, min_delta=0.1))
    assert selection.improved(1.0, 1)
    assert selection.improved(0.95, 2)  # the best so far, yet no fall worth counting
    assert selection.why_stop is None
    assert not selection.improved(0.97, 3)
    assert (selection.loss, selection.epoch) == (0.95, 2)
    assert selection.why_stop is not None
    assert "2 evaluations" in selection.why_stop


def test_small_falls_add_up() -> None:
    selection = Selection(Stop(patience=2, min_delta=0.1))
    for loss in (1.0, 0.94, 0.88, 0.82, 0.76):
        selection.improved(loss, 1)
    assert selection.why_stop is None


def test_an_improvement_resets_patience() -> None:
    selection = Selection(Stop(patience=2))
    for loss in (1.0, 1.1, 0.9, 1.0):
        selection.improved(loss, 1)
    assert selection.why_stop is None
    restored = Selection(Stop(patience=2))
    restored.restore(selection.to_dict())
    restored.improved(1.0, 2)
    assert restored.why_stop is not None
