"""From spec and data to a network on its device: seeded, built, initialised, placed. The same call for run and plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.data.dataset import Split, Splits
from job.data.draws import stream
from job.data.loader import Pixels
from job.device import Device, choose
from job.models.build import ModelFacts, build, fill, initialise, load_weights, model_facts
from job.results.metrics import Predictions
from job.spec.schema import Model, Spec, Train
from job.training import generators
from job.training.checkpoint import read
from job.training.evaluate import predict

WHITENING_IMAGES = 5000  # as many as arXiv 2404.00498 takes for its first layer's statistics


@dataclass(frozen=True)
class Prepared:
    """A network ready to train, and what its batches are made with."""

    module: nn.Module
    device: Device
    pixels: Pixels
    facts: ModelFacts


def prepare(spec: Spec, splits: Splits, settled: Device | None = None) -> Prepared:
    """Settles the device and builds the network; equal specs and data give equal weights.

    `settled` is what another process of the same run has found out about the device.
    """
    generators.seed(stream(spec.train.seed, 0) >> 31)
    height, width, channels = splits.train.images.shape[1:]
    shape = (channels, height, width)
    module = build(spec.model, shape, len(splits.classes))
    if spec.model.weights is not None:
        load_weights(module, spec.model.weights)
    device = choose(spec.train, batch_norm=has_batch_norm(module))
    if settled is not None:
        device = settled.on_threads(settled.threads)
    pixels = Pixels.on(device, splits.mean, splits.std)
    if spec.model.weights is None:
        initialise(module, lambda: pixels(device.tensor(splits.train.images[:WHITENING_IMAGES])).cpu())
    return Prepared(device.place(module), device, pixels, model_facts(module, shape))


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


@dataclass(frozen=True)
class Saved:
    """Weights read back, ready to classify."""

    module: nn.Module
    device: Device
    pixels: Pixels
    shape: tuple[int, int, int]  # (C, H, W)
    classes: tuple[str, ...]
    mirrored: bool  # train.mirror_test of the run they are from

    def predict(self, split: Split) -> Predictions:
        return predict(self.module, split, self.device, self.pixels, mirrored=self.mirrored)


def restore(description: dict[str, Any], weights: Path) -> Saved:
    """From model.json's content and a file of weights or a checkpoint."""
    channels, height, width = description["shape"]
    model = Model(name=description["name"], width=description["width"])
    module = build(model, (channels, height, width), len(description["classes"]))
    state = read(weights)
    fill(module, state.get("module", state), str(weights))
    device = choose(Train(), batch_norm=has_batch_norm(module))
    pixels = Pixels.on(device, tuple(description["mean"]), tuple(description["std"]))
    shape, classes = (channels, height, width), tuple(description["classes"])
    return Saved(device.place(module), device, pixels, shape, classes, description.get("mirror_test", False))
