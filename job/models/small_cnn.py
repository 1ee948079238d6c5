"""small_cnn: three convolutions with batch norm and a linear layer, for a first look in seconds.

About the tutorial network's arithmetic with a sixth of its weights. Batch norm lets it take large steps, so that one
epoch of CIFAR-10 in large batches brings it further than the tutorial's two in small ones.
"""

from torch import nn

from job.errors import UsageError

WIDTH = 8
SMALLEST = 8  # pixels: three halvings leave one


def build(shape: tuple[int, int, int], classes: int, width: int | None = None) -> nn.Module:
    """For images of `shape` (C, H, W); `width` is the channels of the first block, doubled in each of the next two."""
    channels, height, width_pixels = shape
    if min(height, width_pixels) < SMALLEST:
        what = f"images of {height}×{width_pixels} are too small; smallest is {SMALLEST}×{SMALLEST}"
        raise UsageError("small_cnn", what, f"set dataset.resize: {SMALLEST}, or use resnet9")
    first = WIDTH if width is None else width
    blocks: list[nn.Module] = []
    for wide in (first, 2 * first, 4 * first):
        # pooled before batch norm and ReLU, so that those touch a quarter of the values
        convolution = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
        blocks += [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        channels = wide
    features = channels * (height // 8) * (width_pixels // 8)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, classes))
