"""The training loop, as a generator: the caller decides when to print, evaluate, save and stop.

`train` yields StepDone after each mini-batch and EpochDone after each epoch. At every yield that says `whole` the
State is complete: saved there and restored, the remaining steps are the same as if nothing had happened.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from job.data.draws import stream
from job.data.loader import TrainingBatches
from job.device import Device
from job.spec.schema import Spec
from job.training.distributed import ALONE, Ranks, in_parts
from job.training.forward import forward_for
from job.training.generators import generators, seed, set_generators
from job.training.optim import Ema, learning_rate, make_optimizer


@dataclass(frozen=True)
class StepDone:
    """One mini-batch. `loss` stays on the device, so that reading it is the caller's choice."""

    epoch: int  # from 0
    step: int  # mini-batches done in this epoch, from 1
    loss: Tensor
    lr: float
    images: int
    whole: bool  # no gradients are waiting: the state can be saved here
    waited: float = 0.0  # seconds until its images were there


@dataclass(frozen=True)
class EpochDone:
    """One pass over the training split. Images and seconds count those before an interruption, too."""

    epoch: int
    lr: float
    images: int
    seconds: float


class State:
    """What training changes: weights, optimizer, average, scaler, and the place in the run."""

    def __init__(self, module: nn.Module, spec: Spec, device: Device) -> None:
        self.module = module
        self.optimizer = make_optimizer(module, spec.optimizer, device.kind)
        self.ema = None if spec.train.ema is None else Ema(module, spec.train.ema)
        self.scaler = device.scaler()
        self.epoch = 0  # epochs done
        self.step = 0  # mini-batches done in the epoch under way
        self.images, self.seconds = 0, 0.0  # of the epoch under way
        self.seen = b""  # a chain of hashes over the places of all images so far, in their order

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that weights_only loading takes it."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "seen": self.seen.hex(),
            "random": generators(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        if in_parts(self.module):
            from job.training import sharding

            saved = sharding.fitted(saved, self.module, self.optimizer)
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.images, self.seconds = saved["images"], saved["seconds"]
        self.seen = bytes.fromhex(saved["seen"])
        set_generators(saved["random"])

    def see(self, indices: NDArray[np.int64]) -> None:
        """Takes the places of a mini-batch's images into the chain: equal chains are equal streams of samples."""
        self.seen = hashlib.blake2b(self.seen + indices.tobytes(), digest_size=16).digest()


def train(
    state: State, batches: TrainingBatches, spec: Spec, device: Device, ranks: Ranks = ALONE
) -> Iterator[StepDone | EpochDone]:
    """From where the state stands to the last epoch of the spec. Losses and images are those of all ranks."""
    if spec.train.sync_batch_norm:
        ranks.share_statistics(state.module, device.kind)
    forward = ranks.wrap(forward_for(state.module, device, batches.full))
    criterion = nn.CrossEntropyLoss(label_smoothing=spec.train.label_smoothing)
    steps, together, clock = len(batches), spec.train.accumulate, batches.clock

    def rate(step: int) -> float:
        at = state.epoch * steps + step
        return learning_rate(at, steps, spec.train.epochs, spec.optimizer.lr, spec.schedule)

    while state.epoch < spec.train.epochs:
        began = time.monotonic() - state.seconds
        state.module.train()
        asked = time.monotonic()
        for batch in clock.each("wait", batches.epoch(state.epoch, state.step)):
            waited = time.monotonic() - asked
            if not ranks.leads:  # its random numbers are its own, and the same after an interruption
                seed(stream(spec.train.seed, state.epoch, state.step, ranks.rank))
            lr = rate(state.step)
            whole = (state.step + 1) % together == 0 or state.step + 1 == steps
            with clock("compute"):
                with ranks.waiting(forward, state.module, whole):
                    with device.autocast():
                        loss = criterion(forward(batch.images), batch.labels)
                    loss = ranks.weighted(loss, len(batch.labels), len(batch.indices))
                    group = _group_size(state.step, steps, together)
                    state.scaler.scale(loss if group == 1 else loss / group).backward()  # type: ignore[no-untyped-call]
                state.step += 1
                if whole:
                    update(state, lr, spec.train.clip_grad_norm)
            state.see(batch.indices)
            images = len(batch.indices)
            state.images, state.seconds = state.images + images, time.monotonic() - began
            yield StepDone(state.epoch, state.step, ranks.mean(loss.detach()), lr, images, whole, waited)
            asked = time.monotonic()
        device.wait()
        done = EpochDone(state.epoch, rate(steps - 1), state.images, time.monotonic() - began)
        state.epoch, state.step, state.images, state.seconds = state.epoch + 1, 0, 0, 0.0
        yield done


def update(state: State, lr: float, longest: float | None) -> None:
    """Moves the weights by the gradients that have come together."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
    if longest is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.module.parameters(), longest)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update()


def _group_size(step: int, steps: int, accumulate: int) -> int:
    """Mini-batches in this step's group: the last group of an epoch may be short."""
    first = step - step % accumulate
    return min(accumulate, steps - first)
