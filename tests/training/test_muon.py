"""Muon: updates whose directions weigh alike, filters of a fixed length, and which weights it leaves to SGD."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from job.models.airbench import BIAS_LR_RATIO, build
from job.spec.schema import Optimizer
from job.training.muon import REST_RATIO, orthogonal
from job.training.optim import make_optimizer


@given(st.integers(2, 24), st.integers(2, 60), st.floats(1e-4, 1e4), st.integers(0, 50))
def test_orthogonal_keeps_directions_and_evens_their_sizes(rows: int, columns: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator))
    sizes = torch.linspace(0.05, 1, min(rows, columns))
    found = orthogonal(u * sizes * scale @ v.T)
    assert found.shape == (rows, columns)
    evened = u.T @ found @ v  # diagonal: the singular vectors are the same
    assert float(evened.diag().min()) > 0.65
    assert float(evened.diag().max()) < 1.25
    assert torch.allclose(evened, torch.diag(evened.diag()), atol=0.02)


def test_nothing_to_follow_is_no_step() -> None:
    assert not orthogonal(torch.zeros(4, 9)).any()


def make(module: nn.Module, **keys: object) -> torch.optim.Optimizer:
    return make_optimizer(module, Optimizer.model_validate({"name": "muon", "lr": 0.2, **keys}), "cpu")


def learn(module: nn.Module) -> None:
    module(torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))).square().mean().backward()


def test_filters_go_to_muon_and_the_rest_to_sgd_at_its_own_rates() -> None:
    module = build((3, 12, 12), 5, 4)
    groups = make(module, weight_decay=0.01).param_groups
    assert [group["lr_ratio"] for group in groups] == [1.0, REST_RATIO, REST_RATIO * BIAS_LR_RATIO]
    assert [group["lr"] for group in groups] == pytest.approx([0.2 * group["lr_ratio"] for group in groups])
    filters, rest, biases = (group["params"] for group in groups)
    assert len(filters) == 6
    assert all(p.ndim == 4 and p.requires_grad for p in filters), "the frozen first layer is nobody's"
    assert [p.shape for p in rest] == [(24,), (5, 16)]
    assert len(biases) == 6
    shrink = [group["weight_decay"] * group["lr_ratio"] for group in groups[1:]]
    assert shrink == pytest.approx([0.01, 0.01]), "all weights shrink alike"


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("filters", [4, 40])  # 40 is more than the 27 numbers of a filter: a tall matrix
def test_two_steps_by_hand(normed: bool, filters: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, filters, 3, bias=False), nn.BatchNorm2d(filters) if normed else nn.ReLU())
    weight = module.get_parameter("0.weight")
    expected, momentum = weight.detach().flatten(1), torch.zeros(filters, 27)
    optimizer = make(module, momentum=0.6, weight_decay=0.1)
    for number in range(2):
        gradient = torch.randn(filters, 27, generator=torch.Generator().manual_seed(number))
        momentum = 0.6 * momentum + gradient
        if normed:
            expected = expected * filters**0.5 / expected.norm()
        stretch = max(1.0, filters / 27) ** 0.5
        expected = (1 - 0.2 * 0.1) * expected - 0.2 * stretch * orthogonal(gradient + 0.6 * momentum)
        weight.grad = gradient.view_as(weight).clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach().flatten(1), expected)


def test_the_memory_layout_makes_no_difference() -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = build((3, 12, 12), 5, 4).to(memory_format=layout)
        optimizer = make(module)
        learn(module)
        optimizer.step()
        found.append([p.detach() for p in optimizer.param_groups[0]["params"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_overflow_of_fp16_does_not_reach_the_momentum() -> None:
    module = build((3, 12, 12), 5, 4)
    optimizer, scaler = make(module), torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in module.parameters()]
    learn(module)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(float("inf"))
    scaler.scale(torch.zeros(()))  # begins the scaler, as the loss does
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
