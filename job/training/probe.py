"""A few real steps on a copy, before training: how fast this machine trains and evaluates this network.

Whole steps, with loss, backward pass, optimizer and moving average, so that the time told from them is true. The
network, its statistics and the random numbers of the run stay as they are.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from job.data.dataset import Split
from job.data.loader import Batch, TrainingBatches
from job.device import Device, settle_threads
from job.errors import JobError
from job.spec.schema import Spec
from job.training.forward import first_line, forward_for, why_not
from job.training.setup import Prepared
from job.training.trainer import State, update

BUDGET = 0.15  # seconds for each rate
LONGEST = 200  # steps of a rate


@dataclass(frozen=True)
class Rates:
    """Images/s on a batch that is already on the device."""

    train: float
    evaluate: float


def measure(network: Prepared, split: Split, spec: Spec) -> tuple[Prepared, Rates]:
    """The network's rates, and the network on the number of threads that is best here."""
    device, batch = network.device, _first(network, split, spec)
    with trial(network, spec) as learn:
        device, train = settle_threads(device, spec.train, lambda: rate(_forever(batch), learn, device, BUDGET))

    def look(batch: Batch) -> None:
        with torch.inference_mode(), device.autocast():
            network.module(batch.images)

    network.module.eval()
    evaluate = rate(_forever(batch), look, device, BUDGET / 3)
    network.module.train()
    return replace(network, device=device), Rates(train, evaluate)


def settle_graphs(network: Prepared, split: Split, spec: Spec, *, pinned: bool) -> Prepared:
    """Whether full batches are replayed as CUDA graphs: tried on a copy, as not every network can be captured."""
    wish, device = spec.train.cuda_graphs, network.device
    found = None if wish is False else _no_graphs(device, spec, pinned)
    if wish is not False and found is None:
        found = _capture_fails(replace(network, device=replace(device, graphs=True)), split, spec)
    if wish is True and found is not None:
        raise JobError("train.cuda_graphs", found, "set it to auto or false")
    why = "as the spec says" if wish != "auto" else found or "each batch is one launch instead of hundreds"
    graphs = wish is not False and found is None
    return replace(network, device=replace(device, graphs=graphs, reasons={**device.reasons, "graphs": why}))


def _no_graphs(device: Device, spec: Spec, pinned: bool) -> str | None:
    processes = torch.cuda.device_count() if spec.processes == "gpus" else spec.processes
    if torch.distributed.is_initialized():  # started by the user's own torchrun
        processes = torch.distributed.get_world_size()
    return why_not(device, accumulate=spec.train.accumulate, pinned=pinned, processes=processes)


def _capture_fails(network: Prepared, split: Split, spec: Spec) -> str | None:
    """Why, if it does: an operation that waits for the host, or too little memory."""
    try:
        with trial(network, spec) as learn:
            learn(_first(network, split, spec))
            network.device.wait()
    except RuntimeError as error:
        return f"a capture fails: {first_line(error)}"
    return None


def end_to_end(network: Prepared, batches: TrainingBatches, spec: Spec, budget: float) -> float:
    """Images/s of training as it will be: batches brought, changed and learned from."""
    with trial(network, spec) as learn:
        return rate(_epochs(batches), learn, network.device, budget)


def rate(batches: Iterator[Batch], work: Callable[[Batch], None], device: Device, budget: float) -> float:
    """Images/s of `work` over about `budget` seconds, after one batch that is not counted."""
    work(next(batches))
    device.wait()
    began, images, steps = time.perf_counter(), 0, 0
    while steps == 0 or (steps < LONGEST and time.perf_counter() - began < budget):
        batch = next(batches)
        work(batch)
        images += len(batch.labels)
        steps += 1
        if device.kind == "cuda" and steps % 4 == 0:
            device.wait()  # the clock would else see steps queued, not done
    device.wait()
    return images / (time.perf_counter() - began)


@contextlib.contextmanager
def trial(network: Prepared, spec: Spec) -> Iterator[Callable[[Batch], None]]:
    """A step on a copy of the network."""
    device = network.device
    state = State(copy.deepcopy(network.module).train(), spec, device)
    criterion = nn.CrossEntropyLoss(label_smoothing=spec.train.label_smoothing)
    uncompiled = replace(device, compile=False)  # compiling would take longer than what is measured
    forward = forward_for(state.module, uncompiled, spec.loader.batch_size)

    def learn(batch: Batch) -> None:
        with device.autocast():
            loss = criterion(forward(batch.images), batch.labels)
        state.scaler.scale(loss).backward()
        update(state, spec.optimizer.lr, spec.train.clip_grad_norm)

    gpus = [torch.cuda.current_device()] if device.kind == "cuda" else []
    with torch.random.fork_rng(gpus):  # dropout draws numbers; the run's own stream must not move
        yield learn


def _first(network: Prepared, split: Split, spec: Spec) -> Batch:
    """As many images as a batch has, on the device."""
    part, device = slice(0, spec.loader.batch_size), network.device
    return Batch(network.pixels(device.tensor(split.images[part])), device.tensor(split.labels[part]))


def _forever(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def _epochs(batches: TrainingBatches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
