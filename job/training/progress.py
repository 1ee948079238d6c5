"""What is watched while training: losses without waiting for the device at each step, and which weights are best."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from job.errors import JobError
from job.spec.schema import Stop
from job.training.trainer import StepDone

SELECTION_STATE = ("loss", "epoch", "reference", "without_improvement")
CHECK_EVERY = 100  # steps between two looks at the losses: each look waits for the device


class Losses:
    """Collects losses on the device and reads them in groups. A loss that is no number ends the run."""

    def __init__(self) -> None:
        self.waiting: list[StepDone] = []
        self.epoch: list[float] = []  # of this epoch, as far as read
        self.window: list[float] = []  # since the last line of running loss
        self.kept = "none"  # the last good checkpoint, for the message of a run that breaks

    def add(self, done: StepDone) -> None:
        self.waiting.append(done)

    def read(self) -> None:
        """Brings the waiting losses to the host. JobError names the first step whose loss is not finite."""
        if not self.waiting:
            return
        values = torch.stack([done.loss for done in self.waiting]).float().tolist()
        for done, value in zip(self.waiting, values, strict=True):
            if not math.isfinite(value):
                raise diverged(done.epoch, done.step, done.lr, f"the loss is {value}", self.kept)
        self.waiting = []
        self.epoch += values
        self.window += values

    def take_window(self) -> float:
        """Mean since the last call."""
        mean, self.window = sum(self.window) / len(self.window), []
        return mean

    def epoch_mean(self) -> float:
        return sum(self.epoch) / len(self.epoch)

    def next_epoch(self) -> None:
        self.epoch, self.window = [], []

    def to_dict(self) -> dict[str, Any]:
        assert not self.waiting
        return {"epoch": self.epoch, "window": self.window}

    def restore(self, saved: dict[str, Any]) -> None:
        self.epoch, self.window = list(saved["epoch"]), list(saved["window"])


def diverged(epoch: int, step: int, lr: float, what: str, kept: str) -> JobError:
    cure = "lower optimizer.lr, add schedule.warmup_epochs or set train.clip_grad_norm"
    where = f"epoch {epoch + 1}, step {step}, learning rate {lr:.4g}"
    return JobError(where, f"{what} (last good checkpoint: {kept})", cure)


def refuse_broken(
    weights: Iterable[Tensor], epoch: int, step: int, lr: float, kept: str, agreed: Callable[[bool], bool] = bool
) -> None:
    """Weights that are no numbers are never saved over good ones. `agreed` asks those who have other parts of them."""
    if agreed(not all(map(_is_finite, weights))):
        raise diverged(epoch, step, lr, "the weights are not finite", kept)


def _is_finite(tensor: Tensor) -> bool:
    """In NumPy, on one thread: it runs beside the training, and a second team of OpenMP threads slows the first.

    libgomp counts the threads of all teams. Once they are more than the CPUs, each waits 100 turns instead of thousands
    before it sleeps, for as long as the thread that made the second team lives: steps then take a quarter longer.
    """
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        return bool(torch.isfinite(tensor).all())
    return bool(np.isfinite(tensor.numpy(force=True)).all())


@dataclass
class Selection:
    """Best weights and early stopping, by the loss on the validation part alone."""

    rule: Stop
    loss: float = math.inf  # the lowest seen, and its epoch
    epoch: int | None = None
    reference: float = math.inf  # the loss of the last improvement that counted
    without_improvement: int = 0

    def improved(self, loss: float, epoch: int) -> bool:
        """Takes in an evaluation; True when these are the best weights so far."""
        if loss < self.reference - self.rule.min_delta:
            self.reference, self.without_improvement = loss, 0
        else:
            self.without_improvement += 1
        if loss < self.loss:
            self.loss, self.epoch = loss, epoch
            return True
        return False

    @property
    def why_stop(self) -> str | None:
        """In words, once patience is used up."""
        if self.rule.patience is None or self.without_improvement < self.rule.patience:
            return None
        return (
            f"the validation loss has not fallen by more than {self.rule.min_delta:g} "
            f"in {self.without_improvement} evaluations (stop.patience)"
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SELECTION_STATE}

    def restore(self, saved: dict[str, Any]) -> None:
        for name in SELECTION_STATE:
            setattr(self, name, saved[name])


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
