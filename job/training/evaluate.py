"""Every image of a split once, exactly: class probabilities, in the split's own order."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from job.data.dataset import Split
from job.data.images import choose
from job.data.loader import Pixels, in_order
from job.device import Device
from job.results.metrics import Predictions
from job.training.distributed import ALONE, Ranks


def predict(
    module: nn.Module,
    split: Split,
    device: Device,
    pixels: Pixels,
    poll: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
    *,
    mirrored: bool = False,
) -> Predictions:
    """Softmax of the logits in float32. `poll` is called at each batch and may raise to leave early.

    `mirrored` averages the probabilities with those of each image's mirror image. Each rank looks at its part of the
    split, and all of them know what was found.
    """
    training = module.training
    module.eval()
    found: list[torch.Tensor] = []
    part = ranks.share(len(split.labels))
    mine = split
    if ranks.count > 1:  # chosen, not read: what is streamed would have to fit into memory
        mine = Split(choose(split.images, np.arange(part.start, part.stop)), split.labels[part])
    with torch.inference_mode(), device.autocast():
        for batch in in_order(mine, device, pixels):
            if poll is not None:
                poll()
            probabilities = module(batch.images).float().softmax(1)
            if mirrored:
                probabilities = (probabilities + module(batch.images.flip(3)).float().softmax(1)) / 2
            found.append(probabilities)
    module.train(training)
    rows = torch.cat(found).cpu().numpy().astype(np.float32, copy=False) if found else None
    return Predictions(ranks.together(rows), np.asarray(split.labels))
