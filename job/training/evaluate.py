"""Every image of a split once, exactly: class probabilities, in the split's own order."""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from job.data.dataset import Split
from job.data.images import choose
from job.data.loader import EVALUATION_BATCH, Pixels, Waiting, in_order
from job.device import Device
from job.results.metrics import Predictions
from job.training.distributed import ALONE, Ranks, in_parts


def predict(
    module: nn.Module,
    split: Split,
    device: Device,
    pixels: Pixels,
    poll: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
    *,
    mirrored: bool = False,
    waiting: Waiting = contextlib.nullcontext,
) -> Predictions:
    """Softmax of the logits in float32. `poll` is called at each batch and may raise to leave early.

    `mirrored` averages the probabilities with those of each image's mirror image. Each rank looks at its part of the
    split, in as many batches as the others, and all of them know what was found.
    """
    training = module.training
    module.eval()
    found: list[torch.Tensor] = []
    part = ranks.share(len(split.labels))
    mine = split
    if ranks.count > 1:  # chosen, not read: what is streamed would have to fit into memory
        mine = Split(choose(split.images, np.arange(part.start, part.stop)), split.labels[part])
    sharded, batches = ranks.count > 1 and in_parts(module), in_order(mine, device, pixels, waiting=waiting)
    ranks.share_buffers(module)
    with torch.no_grad() if sharded else torch.inference_mode(), device.autocast():
        for _ in range(math.ceil(math.ceil(len(split.labels) / ranks.count) / EVALUATION_BATCH)):
            if poll is not None:
                poll()
            batch = next(batches, None)
            if batch is not None:
                found.append(_classify(module, batch.images, mirrored))
            elif sharded:  # the others gather their layers: this rank has a part of them
                _classify(module, pixels(device.tensor(choose(split.images, np.arange(1))[:1])), mirrored)
    module.train(training)
    rows = torch.cat(found).cpu().numpy().astype(np.float32, copy=False) if found else None
    return Predictions(ranks.together(rows), np.asarray(split.labels))


def _classify(module: nn.Module, images: torch.Tensor, mirrored: bool) -> torch.Tensor:
    probabilities: torch.Tensor = module(images).float().softmax(1)
    return (probabilities + module(images.flip(3)).float().softmax(1)) / 2 if mirrored else probabilities
