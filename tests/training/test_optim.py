"""Schedules at their corners, optimizers against torch's own, the moving average against its formula."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from job.models.airbench import build
from job.spec.schema import Optimizer, Schedule
from job.training.optim import Ema, learning_rate, make_optimizer

STEPS, EPOCHS = 10, 10


def rate(step: float, **keys: object) -> float:
    return learning_rate(step, STEPS, EPOCHS, 0.5, Schedule.model_validate(keys))


@pytest.mark.parametrize(
    ("keys", "points"),
    [
        ({"name": "constant"}, {0: 0.5, 50: 0.5, 99: 0.5}),
        ({"name": "constant", "warmup_epochs": 2}, {0: 0.0, 10: 0.25, 20: 0.5, 99: 0.5}),
        ({"name": "cosine"}, {0: 0.5, 50: 0.25, 100: 0.0}),
        ({"name": "cosine", "final_lr": 0.1}, {0: 0.5, 100: 0.05}),
        ({"name": "onecycle", "warmup_epochs": 2}, {0: 0.0, 10: 0.25, 20: 0.5, 60: 0.25, 100: 0.0}),
        ({"name": "onecycle"}, {0: 0.0, 30: 0.5, 65: 0.25, 100: 0.0}),
        ({"name": "onecycle", "warmup_epochs": 1, "final_lr": 0.2}, {10: 0.5, 100: 0.1}),
        ({"name": "step", "milestones": [3, 6]}, {0: 0.5, 29: 0.5, 30: 0.05, 60: 0.005}),
    ],
)
def test_the_rate_at_its_corners(keys: dict[str, object], points: dict[int, float]) -> None:
    for step, expected in points.items():
        assert rate(step, **keys) == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "cosine", "onecycle", "step"]),
    st.floats(0, 9.5),
    st.floats(0, 1),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
def test_the_rate_rises_to_the_peak_then_never_again(
    name: str, warmup: float, final: float, milestones: list[int]
) -> None:
    keys = {"name": name, "warmup_epochs": warmup, "final_lr": final, "milestones": milestones}
    rates = [rate(step, **keys) for step in range(STEPS * EPOCHS + 1)]
    top = STEPS * (warmup or (3.0 if name == "onecycle" else 0.0))  # steps of warm-up
    rising = [value for step, value in enumerate(rates) if step < top]
    assert rising == sorted(rising)
    assert rates[len(rising) :] == sorted(rates[len(rising) :], reverse=True)
    assert all(0 <= value <= 0.5 for value in rates)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for number in range(count):
        torch.manual_seed(number)
        loss = nn.functional.cross_entropy(module(torch.randn(16, 3, 8, 8)), torch.randint(4, (16,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def close(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_sgd_is_torchs() -> None:
    ours, theirs = network(), network()
    spec = Optimizer(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    step(ours, make_optimizer(ours, spec, "cpu"))
    step(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3))
    close(ours, theirs)


def test_adamw_is_torchs() -> None:
    ours, theirs = network(), network()
    step(ours, make_optimizer(ours, Optimizer(name="adamw", lr=0.01, weight_decay=0.1), "cpu"))
    step(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1))
    close(ours, theirs)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_an_optimizer_does_not_load_the_compiler(name: str) -> None:
    code = (
        "import sys, torch\n"
        "from job.spec.schema import Optimizer\n"
        "from job.training.optim import make_optimizer\n"
        "module = torch.nn.Conv2d(3, 4, 3)\n"
        f"optimizer = make_optimizer(module, Optimizer(name={name!r}), 'cpu')\n"
        "module(torch.zeros(1, 3, 4, 4)).sum().backward()\n"
        "optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "a second or more of imports"


def test_rates_and_decay_follow_what_the_network_says() -> None:
    module = build((3, 12, 12), 5, 4)
    spec = Optimizer(name="sgd", lr=0.1, weight_decay=0.64)
    usual, biases = make_optimizer(module, spec, "cpu").param_groups
    assert [(group["lr_ratio"], group["weight_decay"]) for group in (usual, biases)] == [(1.0, 0.64), (64.0, 0.01)]
    assert len(biases["params"]) == 6
    owned = {id(p) for group in (usual, biases) for p in group["params"]}
    assert owned == {id(p) for p in module.parameters() if p.requires_grad}
    adamw = make_optimizer(module, Optimizer(name="adamw"), "cpu").param_groups
    assert [group["lr_ratio"] for group in adamw] == [1.0], "its steps do not grow with the gradient"


def test_muon_turns_filters_in_all_directions_alike() -> None:
    module = network()
    filters = module.get_parameter("0.weight")
    before = filters.detach().clone()
    before *= len(before) ** 0.5 / before.norm()  # the step begins by giving them their length
    step(module, make_optimizer(module, Optimizer(name="muon", lr=0.1, momentum=0.0), "cpu"), count=1)
    values = torch.linalg.svdvals((filters.detach() - before).flatten(1))
    assert float(values.max() / values.min()) < 2.0
    plain = network()
    step(plain, torch.optim.SGD(plain.parameters(), lr=0.1), count=1)
    moved = torch.linalg.svdvals(
        (plain.get_parameter("0.weight").detach() - network().get_parameter("0.weight").detach()).flatten(1)
    )
    assert float(moved.max() / moved.min()) > 2.0


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_saved_optimizer_goes_on(name: str) -> None:
    spec = Optimizer.model_validate({"name": name, "lr": 0.05})
    through, first = network(), network()
    step(through, make_optimizer(through, spec, "cpu"), count=3)
    saved = make_optimizer(first, spec, "cpu")
    step(first, saved, count=2)
    second = network()
    second.load_state_dict(first.state_dict())
    restored = make_optimizer(second, spec, "cpu")
    restored.load_state_dict(saved.state_dict())
    torch.manual_seed(2)
    loss = nn.functional.cross_entropy(second(torch.randn(16, 3, 8, 8)), torch.randint(4, (16,)))
    loss.backward()  # type: ignore[no-untyped-call]
    restored.step()
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), through.parameters(), strict=True))


def test_the_average_forgets_by_its_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, 0.5)
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            module.weight.fill_(value)
        ema.update()
    expected = (0.25 * 1 + 0.5 * 2 + 1 * 4) / 1.75
    assert float(ema.averaged()["weight"]) == pytest.approx(expected)
    with ema.applied():
        assert float(module.weight.detach()) == pytest.approx(expected)
    assert float(module.weight.detach()) == 4.0
    again = Ema(nn.Linear(1, 1, bias=False), 0.5)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.averaged()["weight"], ema.averaged()["weight"])


def test_the_average_has_the_networks_own_statistics() -> None:
    module = network()
    ema = Ema(module, 0.9)
    for _ in range(2):
        module(torch.randn(16, 3, 8, 8))
        ema.update()
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    averaged = ema.averaged()
    assert list(averaged) == list(own)
    assert own["1.running_mean"].any()
    assert torch.equal(averaged["1.running_mean"], own["1.running_mean"])
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items()), "put back in any case"
