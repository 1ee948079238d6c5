"""The network of PyTorch's classifier tutorial, for images of any size and channel count.

Layers have the tutorial's names, order and initialisation: its own `Net` loads our state_dict, and the same seed
gives the same weights. 62,006 of them for CIFAR-10.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import UsageError

SMALLEST = 16  # pixels: after two convolutions and two poolings one is left


class TutorialNet(nn.Module):
    """conv → pool → conv → pool → three linear layers."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side_left(height) * side_left(width), 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def build(shape: tuple[int, int, int], classes: int, width: int | None) -> TutorialNet:
    if width is not None:
        raise UsageError("model.width", "tutorial_net has one width only", "remove it, or use another network")
    if min(shape[1:]) < SMALLEST:
        raise UsageError(
            "tutorial_net",
            f"images of {shape[1]}×{shape[2]} are too small, the smallest are {SMALLEST}×{SMALLEST}",
            f"set dataset.resize to {SMALLEST} or more",
        )
    return TutorialNet(shape, classes)


def side_left(side: int) -> int:
    """Pixels of a side after both convolutions (5×5, no padding) and poolings (2×2): 32 → 5."""
    return ((side - 4) // 2 - 4) // 2
