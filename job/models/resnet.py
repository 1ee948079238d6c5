"""resnet9: a residual network of nine layers for small images, made to learn much in little time, also on a CPU.

Eight convolutions and a linear layer, in the order of David Page's DAWNBench network. Unlike it, the image is halved
right after the first convolution: at 32×32 pixels that costs a quarter of the arithmetic, and the time saved buys more
epochs than the detail was worth. Each convolution is followed by pooling before batch norm and ReLU, so that those two
touch a quarter of the values.
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16
SMALLEST = 4  # a feature map is not halved below this many pixels, so that 8×8 digits keep some of their shape
LOGIT_SCALE = 0.125  # keeps the first logits small: with batch norm before it, the last layer would start too sure


def build(shape: tuple[int, int, int], classes: int, width: int | None = None) -> nn.Module:
    """For images of `shape` (C, H, W), any size and channel count; `width` is the channels of the first block."""
    return ResNet9(shape, classes, WIDTH if width is None else width)


class ResNet9(nn.Module):
    """Width, and twice, four and eight times it after each halving, with residual blocks after the second and last."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        side = min(height, width_pixels)
        halvings = [side // 2**step >= 2 * SMALLEST for step in range(3)]
        self.stem = ConvBlock(channels, width, pool=halvings[0])
        self.conv1 = ConvBlock(width, 2 * width, pool=halvings[1])
        self.residual1 = Residual(2 * width)
        self.conv2 = ConvBlock(2 * width, 4 * width, pool=halvings[2])
        self.conv3 = ConvBlock(4 * width, 8 * width, pool=halvings[2])
        self.residual2 = Residual(8 * width)
        self.head = nn.Linear(8 * width, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.residual1(self.conv1(self.stem(images)))
        features = self.residual2(self.conv3(self.conv2(features)))
        pooled = F.adaptive_max_pool2d(features, 1).flatten(1)  # (N, 8 × width)
        logits: Tensor = self.head(pooled) * LOGIT_SCALE
        return logits


class ConvBlock(nn.Module):
    """3×3 convolution → (max pool) → batch norm → ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.pool:
            x = F.max_pool2d(x, 2)
        return F.relu(self.norm(x), inplace=True)


class Residual(nn.Module):
    """x + two convolution blocks of the same width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(channels, channels), ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out
