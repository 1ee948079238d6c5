"""The loop: its order, its numbers against a plain loop, and what a State carries."""

from collections.abc import Generator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from job.data.dataset import Split
from job.data.loader import Pixels, Settings, TrainingBatches
from job.device import Device
from job.spec.schema import Augment, Spec
from job.training.optim import learning_rate
from job.training.trainer import EpochDone, State, StepDone, train

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)


def spec(**sections: dict[str, Any]) -> Spec:
    given = {"train": {"epochs": 2}, "optimizer": {"lr": 0.1, "momentum": 0.9}, **sections}
    return Spec.model_validate({"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, **given})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 3, 16), nn.Tanh(), nn.Linear(16, 3))


def batches(batch_size: int = 4, seed: int = 0, settings: Settings | None = None) -> TrainingBatches:
    generator = np.random.default_rng(1)
    split = Split(generator.integers(0, 256, (22, 4, 4, 3), dtype=np.uint8), generator.integers(0, 3, 22))
    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    return TrainingBatches(split, settings or Settings(batch_size, resident=True), CPU, pixels, Augment(), seed)


def trained(wanted: Spec, batch_size: int = 4) -> tuple[State, list[StepDone | EpochDone]]:
    state = State(network(), wanted, CPU)
    return state, list(train(state, batches(batch_size), wanted, CPU))


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_is_the_plain_loop() -> None:
    """The same numbers as the loop everyone writes."""
    wanted = spec(schedule={"name": "onecycle", "warmup_epochs": 1})
    state, events = trained(wanted)
    plain, data = network(), batches()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(2):
        for step, batch in enumerate(data.epoch(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * len(data) + step, len(data), 2, 0.1, wanted.schedule)
            loss = F.cross_entropy(plain(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
    assert [float(event.loss) for event in events if isinstance(event, StepDone)] == pytest.approx(losses, rel=1e-5)
    for a, b in zip(state.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_events() -> None:
    _, events = trained(spec())
    places = [(event.epoch, event.step) if isinstance(event, StepDone) else event.epoch for event in events]
    assert places == [*((0, step) for step in range(1, 7)), 0, *((1, step) for step in range(1, 7)), 1]
    assert [event.images for event in events] == [4, 4, 4, 4, 4, 2, 22] * 2


@pytest.mark.parametrize("stop_after", range(1, 14))
def test_a_state_restored_goes_on_bit_for_bit(stop_after: int) -> None:
    wanted = spec(train={"epochs": 2, "ema": 0.8, "clip_grad_norm": 1.0}, schedule={"name": "cosine"})
    through, _ = trained(wanted)
    first = State(network(), wanted, CPU)
    for _, _ in zip(range(stop_after), train(first, batches(), wanted, CPU), strict=False):
        pass
    saved = first.to_dict()
    torch.manual_seed(99)  # another process
    second = State(nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3)), wanted, CPU)
    second.restore(saved)
    list(train(second, batches(), wanted, CPU))
    assert equal(second.module, through.module)
    assert second.ema is not None
    assert through.ema is not None
    for name, tensor in through.ema.averaged().items():
        assert torch.equal(tensor, second.ema.averaged()[name])


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_random_layers_go_on_with_their_numbers(workers: int | None) -> None:
    """Dropout draws from the process's own generator, which the loader must leave alone."""

    def dropping() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    def brought() -> TrainingBatches:
        return batches(settings=None if workers is None else Settings(4, False, workers, False, 2 if workers else None))

    torch.manual_seed(0)
    through, wanted = State(dropping(), spec(), CPU), spec()
    list(train(through, batches(), wanted, CPU))
    torch.manual_seed(0)
    first = State(dropping(), wanted, CPU)
    for _, _ in zip(range(9), train(first, brought(), wanted, CPU), strict=False):
        pass
    saved = first.to_dict()
    torch.manual_seed(99)
    second = State(dropping(), wanted, CPU)
    second.restore(saved)
    list(train(second, brought(), wanted, CPU))
    assert equal(second.module, through.module)
    assert torch.equal(second.to_dict()["random"]["cpu"], through.to_dict()["random"]["cpu"])
    assert second.seen == through.seen


def test_the_samples_seen_tell_another_stream() -> None:
    first, other = (State(network(), spec(), CPU) for _ in range(2))
    list(train(first, batches(seed=0), spec(), CPU))
    list(train(other, batches(seed=1), spec(), CPU))
    assert first.seen != other.seen


def test_an_epoch_resumed_counts_what_came_before() -> None:
    wanted = spec()
    first = State(network(), wanted, CPU)
    for _, _ in zip(range(4), train(first, batches(), wanted, CPU), strict=False):
        pass
    first.seconds = 100.0
    second = State(network(), wanted, CPU)
    second.restore(first.to_dict())
    done = next(event for event in train(second, batches(), wanted, CPU) if isinstance(event, EpochDone))
    assert done.images == 22
    assert done.seconds > 100


def test_an_epoch_whose_steps_are_done_only_ends() -> None:
    """As it is saved when its evaluation is interrupted."""
    wanted = spec(schedule={"name": "cosine"})
    through, events = trained(wanted)
    state = State(network(), wanted, CPU)
    for _, _ in zip(range(6), train(state, batches(), wanted, CPU), strict=False):
        pass
    again = State(network(), wanted, CPU)
    again.restore(state.to_dict())
    first, *_ = train(again, batches(), wanted, CPU)
    assert isinstance(first, EpochDone)
    ended = next(event for event in events if isinstance(event, EpochDone))
    assert (first.epoch, first.lr, first.images) == (ended.epoch, ended.lr, ended.images)
    assert equal(again.module, through.module)


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    large, _ = trained(spec(), batch_size=4)
    small, events = trained(spec(train={"epochs": 2, "accumulate": 2}), batch_size=2)
    for a, b in zip(large.module.parameters(), small.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    wholes = [event.whole for event in events if isinstance(event, StepDone)]
    assert wholes == [False, True] * 5 + [True] + [False, True] * 5 + [True]


def test_clipping_bounds_the_step() -> None:
    state, _ = trained(spec(train={"epochs": 1, "clip_grad_norm": 1e-6}, optimizer={"lr": 1.0, "momentum": 0.0}))
    moved = [
        float((a - b).detach().norm()) for a, b in zip(state.module.parameters(), network().parameters(), strict=True)
    ]
    assert max(moved) <= 6 * 1e-6 * 1.01


def test_the_rate_is_that_of_the_schedule() -> None:
    _, events = trained(spec(schedule={"name": "onecycle", "warmup_epochs": 1}))
    rates = [event.lr for event in events if isinstance(event, StepDone)]
    assert rates[0] == 0.0
    assert max(rates) == rates[6] == 0.1
    assert all(a > b for a, b in pairwise(rates[6:]))


def test_nothing_in_a_saved_state_needs_code_to_load() -> None:
    import io

    wanted = spec(train={"epochs": 1, "ema": 0.5})
    state, _ = trained(wanted)
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["epoch"] == 1


def test_leaving_the_loop_early_is_silent() -> None:
    state = State(network(), spec(), CPU)
    steps = train(state, batches(), spec(), CPU)
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    assert (state.epoch, state.step) == (0, 1)
