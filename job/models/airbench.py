"""The speed net of arXiv 2404.00498, written from the paper: 94 % on CIFAR-10 in seconds on one GPU.

What makes it learn fast, by the paper's sections: the first layer is set by the data and frozen (it whitens 2×2
patches), the convolutions begin as the identity on their inputs, batch norm has no scale, and its biases learn 64
times faster than the rest. 1.97 million weights at width 64.
"""

import torch
from torch import Tensor, nn

from job.errors import UsageError

WIDTH = 64
SMALLEST = 9  # pixels: 8 after the first layer, then halved three times
PATCH = 2  # side of the patches that are whitened
WHITENING_EPS = 5e-4  # added to the variances, so that directions of mere noise are not blown up
STATISTICS_PART = 500  # images whose patches are in memory at a time
NORM_MOMENTUM = 0.4  # of the new batch; the paper's 0.6 is the part that is kept
NORM_EPS = 1e-12
BIAS_LR_RATIO = 64.0  # of batch norm's biases against all other weights
LOGIT_SCALE = 1 / 9


class Airbench(nn.Module):
    """Whitening, then three groups of two 3×3 convolutions, a maximum over what is left, and one linear layer."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        whitened = 2 * channels * PATCH**2  # every direction and its negative
        self.whiten = nn.Conv2d(channels, whitened, PATCH)
        self.whiten.weight.requires_grad_(False)
        self.groups = nn.Sequential(_Group(whitened, width), _Group(width, 4 * width), _Group(4 * width, 4 * width))
        self.head = nn.Linear(4 * width, classes, bias=False)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        x = self.groups(self.activation(self.whiten(x)))
        x = x.amax((2, 3))  # all that is left: 3×3 for images of 32×32, as in the paper
        logits: Tensor = self.head(x) * LOGIT_SCALE
        return logits

    def initialise_from_data(self, images: Tensor) -> None:
        """Sets the first layer so that its outputs are uncorrelated and of variance one on these images."""
        with torch.no_grad():
            directions = whitening(images)
            self.whiten.weight.copy_(torch.cat((directions, -directions)))
            self.whiten.bias.zero_()  # type: ignore[union-attr]  # Conv2d with a bias

    def lr_ratios(self) -> dict[str, float]:
        """Learning rates relative to the spec's, by name of the parameter; those not named have 1."""
        norms = [name for name, layer in self.named_modules() if isinstance(layer, nn.BatchNorm2d)]
        return {f"{name}.bias": BIAS_LR_RATIO for name in norms}


class _Group(nn.Module):
    """Convolution, 2×2 maximum, norm, GELU; convolution, norm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(inputs, outputs),
            nn.MaxPool2d(2),
            _norm(outputs),
            nn.GELU(),
            _convolution(outputs, outputs),
            _norm(outputs),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def build(shape: tuple[int, int, int], classes: int, width: int | None) -> Airbench:
    if min(shape[1:]) < SMALLEST:
        raise UsageError(
            "airbench",
            f"images of {shape[1]}×{shape[2]} are too small, the smallest are {SMALLEST}×{SMALLEST}",
            "set dataset.resize, for example to 32",
        )
    return Airbench(shape[0], classes, WIDTH if width is None else width)


def whitening(images: Tensor) -> Tensor:
    """Filters (4C, C, 2, 2) that whiten the patches of `images` (N, C, H, W): eigenvectors over standard deviations."""
    size = images.shape[1] * PATCH**2
    count, total, products = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), STATISTICS_PART):
        part = images[start : start + STATISTICS_PART]
        patches = nn.functional.unfold(part, PATCH).transpose(1, 2).reshape(-1, size)
        count += len(patches)
        total += patches.sum(0, dtype=torch.float64).cpu()
        products += (patches.T @ patches).double().cpu()
    mean = total / count
    variances, directions = torch.linalg.eigh(products / count - mean.outer(mean))  # one direction a column
    scaled: Tensor = directions / (variances.clamp(min=0) + WHITENING_EPS).sqrt()
    return scaled.T.reshape(size, images.shape[1], PATCH, PATCH).to(images.dtype)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """The first filters pass their inputs on unchanged; the others begin at random."""
    layer = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    layer.weight.requires_grad_(False)
    return layer
