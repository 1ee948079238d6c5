"""Networks by name: our own from a lazy table, any torchvision classifier, and the weights to start them from.

torchvision is imported only for its own networks. Nothing is ever downloaded.
"""

import difflib
import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.errors import JobError, SpecError, UsageError
from job.spec.schema import Model
from job.storage.store import open_store

BUILDERS = {  # name → module with build(shape, classes, width), imported on use
    "tutorial_net": "job.models.tutorial_net",
    "small_cnn": "job.models.small_cnn",
    "resnet9": "job.models.resnet",
    "airbench": "job.models.airbench",
}
OPTIONS: dict[str, dict[str, object]] = {  # torchvision's networks that return one tensor only when asked to
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
COUNTED = (nn.Conv2d, nn.Linear)  # a multiplication and an addition for each weight and place
UNCOUNTED = (_BatchNorm,)  # little work, which FlopCounterMode leaves out as well
SHOWN = 3  # tensors named in an error before the rest is only counted


@dataclass(frozen=True)
class ModelFacts:
    """Size and work of a network."""

    parameters: int
    flops_per_image: int  # of a forward pass; a multiply-add counts as two
    bytes: int  # of parameters and buffers


def build(model: Model, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network for images of `shape` (C, H, W), with random weights. UsageError if they do not go together."""
    if model.name not in BUILDERS:
        return _torchvision(model, shape, classes)
    module: nn.Module = importlib.import_module(BUILDERS[model.name]).build(shape, classes, model.width)
    return module


def initialise(module: nn.Module, images: Callable[[], Tensor]) -> None:
    """For networks whose first weights come from the training images; for the others none are asked for."""
    if hasattr(module, "initialise_from_data"):
        module.initialise_from_data(images())  # type: ignore[operator]  # nn.Module's attributes have no types


def load_weights(module: nn.Module, weights: str) -> None:
    """Fills `module` from a file or SCHEME://…/FILE that torch.save made of a state_dict."""
    if "://" not in weights:
        fill(module, _read(Path(weights), weights), weights)
        return
    place, _, name = weights.rpartition("/")
    if place.endswith("/") or not name:
        raise UsageError(weights, "it names no file in a store", "use oci://BUCKET@NAMESPACE/PREFIX/FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        open_store(place).get(name, path)
        fill(module, _read(path, weights), weights)


def fill(module: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Loads `state` if it fits exactly. SpecError with a line for each kind of mismatch; `where` is its file."""
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        keys = ", ".join(map(str, list(state)[:SHOWN]))
        what = f"it holds {keys or 'nothing'}, not a state_dict"
        raise UsageError(where, what, "save net.state_dict() alone; of a run, take model/model.pt")
    if all(name.startswith("module.") for name in state):  # as DistributedDataParallel names them
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = module.state_dict()
    shapes = [
        f"{name} {_shape(tensor)}, not {_shape(own[name])}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    found = {
        "lacks tensors of the network": [name for name in own if name not in state],
        "holds tensors that the network has not": [name for name in state if name not in own],
        "holds tensors of another shape": shapes,
    }
    cure = "take weights of this very network, or change model.name or model.width"
    problems = [JobError(where, f"{what}: {_some(names)}", cure) for what, names in found.items() if names]
    if problems:
        raise SpecError(problems)
    module.load_state_dict(state)


def model_facts(module: nn.Module, shape: tuple[int, int, int]) -> ModelFacts:
    """Parameters, memory and FLOPs, from one forward pass of an empty image; the network stays as it is."""
    tensors = [*module.parameters(), *module.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return ModelFacts(sum(p.numel() for p in module.parameters()), _flops(module, shape), size)


def _torchvision(model: Model, shape: tuple[int, int, int], classes: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if model.name not in names:
        near = difflib.get_close_matches(model.name.lower(), [*BUILDERS, *names], 1)
        known = f"use {', '.join(BUILDERS)} or a torchvision classifier such as resnet18"
        raise UsageError(
            "model.name", f"no network is called {model.name}", f"did you mean {near[0]}?" if near else known
        )
    if model.width is not None:
        raise UsageError("model.width", f"{model.name} has one width only", "remove it, or use one of our own networks")
    module: nn.Module = models.get_model(model.name, weights=None, num_classes=classes, **OPTIONS.get(model.name, {}))
    if shape[0] != 3:  # noqa: PLR2004 - red, green and blue
        _take_channels(module, shape[0])
    try:
        _forward(module, shape)
    except Exception as error:  # each network has its own way to say that an image is too small
        reason = str(error).partition("\n")[0].rstrip(". ")
        what = f"images of {shape[1]}×{shape[2]} do not fit ({reason})"
        raise UsageError(model.name, what, "set dataset.resize, for example to 224") from error
    return module


def _take_channels(module: nn.Module, channels: int) -> None:
    """Gives the first convolution another count of input channels, each weighed as red, green and blue together.

    A grey image then has the effect it would have as a colour image with three equal channels.
    """
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels)
    first.in_channels = channels


def _read(path: Path, name: str) -> dict[str, Any]:
    """What torch.save wrote, without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(name, "there is no such file", "check model.weights") from None
    except Exception as error:  # torch raises many kinds for a file that is not its own
        what = "it is damaged, or no state_dict that torch.save wrote"
        raise UsageError(name, what, "write it with torch.save(net.state_dict(), FILE)") from error
    if not isinstance(state, dict):
        raise UsageError(name, f"it holds a {type(state).__name__}, not a state_dict", "save net.state_dict() alone")
    return state


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _flops(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Exact by our own count where only convolutions and linear layers have weights, else by torch's counter.

    torch's counter imports the whole compiler, which takes a second or two: too much for a small network's run.
    """
    owners = [layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None]
    if not all(isinstance(layer, COUNTED + UNCOUNTED) for layer in owners):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention, like its CPU kernel, is not counted
        try:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                _forward(module, shape)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return int(counter.get_total_flops())
    counts = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, COUNTED)
        counts.append(2 * output.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in owners if isinstance(layer, COUNTED)]
    try:
        _forward(module, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _forward(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """One empty image, in evaluation mode: no statistics and no random numbers move."""
    modes = {layer: layer.training for layer in module.modules()}
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(1, *shape, device=device))
    finally:
        for layer, training in modes.items():
            layer.training = training
