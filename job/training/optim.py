"""How weights move: the learning rate as a function of the step, the optimizers, and the moving average of weights."""

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from job.spec.schema import Optimizer, Schedule
from job.training.distributed import in_parts

ONECYCLE_WARMUP = 0.3  # of the run, where the spec names no warm-up
Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def learning_rate(step: float, steps_per_epoch: int, epochs: int, peak: float, schedule: Schedule) -> float:
    """The rate for the update after `step` mini-batches, counted from 0 over the whole run."""
    total = steps_per_epoch * epochs
    warmup = schedule.warmup_epochs * steps_per_epoch
    if schedule.name == "onecycle" and warmup == 0:
        warmup = ONECYCLE_WARMUP * total
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (total - warmup)  # 0 at the peak, 1 at the end
    match schedule.name:
        case "constant":
            return peak
        case "step":
            passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
            return float(peak * schedule.gamma**passed)
        case "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        case "onecycle":
            left = 1 - done
    return peak * (schedule.final_lr + (1 - schedule.final_lr) * left)


def make_optimizer(module: nn.Module, spec: Optimizer, device_type: str) -> torch.optim.Optimizer:
    """The optimizer of the spec. A group's rate is the schedule's times its `lr_ratio`.

    Weight decay is for all weights alike, biases and norms included, as in the tutorial and torch's own default.
    """
    fused = device_type in ("cpu", "cuda")  # one pass over the weights: 3 to 5 times faster, on the CPU too
    if spec.name == "adamw":
        groups = parameter_groups(module, spec, {})  # its steps do not grow with the gradient: no ratios
        return lean(torch.optim.AdamW)(groups, lr=spec.lr, betas=(spec.betas[0], spec.betas[1]), fused=fused)
    ratios = module.lr_ratios() if hasattr(module, "lr_ratios") else {}  # type: ignore[operator]  # untyped
    groups = parameter_groups(module, spec, ratios)
    if spec.name == "muon":
        from job.training.muon import make_muon

        return make_muon(module, groups, spec, fused)
    kernel = {"foreach": True} if in_parts(module) else {"fused": fused}  # the fused one takes no DTensor
    return lean(torch.optim.SGD)(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, **kernel)


def parameter_groups(module: nn.Module, spec: Optimizer, ratios: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by their learning rate's ratio; all shrink by the same part in a step."""
    by_ratio: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_ratio.setdefault(ratios.get(name, 1.0), []).append(parameter)
    return [
        {"params": members, "lr": spec.lr * ratio, "lr_ratio": ratio, "weight_decay": spec.weight_decay / ratio}
        for ratio, members in by_ratio.items()
    ]


def lean(kind: type[Kind]) -> type[Kind]:
    """The same optimizer without torch.compile's wrappers.

    They import the whole compiler, 900 modules in one to three seconds, to tell it not to trace these methods.
    Nothing here compiles an optimizer.
    """
    plain: dict[str, Any] = {
        name: inspect.unwrap(getattr(kind, name))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    }
    plain["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), plain)


class Ema:
    """Exponential moving average of the weights; buffers, such as the statistics of batch norm, are the network's own.

    The weights that training began with do not count: after n updates the weight of the i-th is
    decay ** (n - i) · (1 - decay) / (1 - decay ** n), which sums to one from the first update on.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        tensors = module.state_dict(keep_vars=True)
        self.weights = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        self.average = {name: tensor.detach().clone() for name, tensor in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now."""
        self.updates += 1
        part = (1 - self.decay) / (1 - self.decay**self.updates)
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), part)

    def averaged(self) -> dict[str, Tensor]:
        """A state_dict with the average in place of the weights."""
        return {**self.module.state_dict(), **self.average}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the average; afterwards its own weights again."""
        own = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(self.averaged())
        try:
            yield
        finally:
            self.module.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.updates = saved["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(saved["average"][name])
