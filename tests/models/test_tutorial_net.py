"""tutorial_net is the tutorial's own network: its names, its weights, its formula for the first linear layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import UsageError
from job.models.tutorial_net import SMALLEST, build, side_left


class Net(nn.Module):
    """The network as the tutorial's reader has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        out: Tensor = self.fc3(x)
        return out


def test_the_labs_net_loads_our_weights_and_answers_the_same() -> None:
    ours, theirs = build((3, 32, 32), 10, None), Net()
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(theirs(images), ours(images))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs(images), ours(images))
    assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]


def test_the_same_seed_gives_the_labs_weights() -> None:
    torch.manual_seed(3)
    theirs = Net().state_dict()
    torch.manual_seed(3)
    ours = build((3, 32, 32), 10, None).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sum(tensor.numel() for tensor in ours.values()) == 62_006


@given(st.integers(SMALLEST, 70), st.integers(SMALLEST, 70), st.sampled_from([1, 3]), st.integers(2, 12))
def test_any_size_from_the_smallest_on(height: int, width: int, channels: int, classes: int) -> None:
    logits = build((channels, height, width), classes, None)(torch.zeros(2, channels, height, width))
    assert logits.shape == (2, classes)


@pytest.mark.parametrize(("side", "left"), [(32, 5), (28, 4), (16, 1), (15, 0), (17, 1), (224, 53)])
def test_the_labs_formula(side: int, left: int) -> None:
    assert side_left(side) == left


@pytest.mark.parametrize("shape", [(3, 15, 32), (1, 40, 8)])
def test_images_too_small_are_refused_by_name(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError) as refusal:
        build(shape, 10, None)
    size = f"{shape[1]}×{shape[2]}"
    assert str(refusal.value) == (
        f"tutorial_net: images of {size} are too small, the smallest are 16×16; set dataset.resize to 16 or more"
    )


def test_a_width_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^model.width: tutorial_net has one width only; remove it, or use another network$"
    ):
        build((3, 32, 32), 10, 8)
