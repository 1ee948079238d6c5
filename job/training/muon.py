"""Muon: momentum whose direction is made orthogonal, for convolution filters; SGD with Nesterov for the rest.

An update of a filter bank, seen as a matrix with a row for each filter, is replaced by the nearest matrix with
orthogonal rows or columns, so that no direction in it drowns the others. torch.optim.Muon takes matrices only, and
always in bfloat16, which most CPUs compute slowly: hence our own. The method: kellerjordan.github.io/posts/muon
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.spec.schema import Optimizer
from job.training.optim import lean

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial a·s + b·s³ + c·s⁵, steepest at 0, from the method
ITERATIONS = 5  # singular values from 0.003 of the norm on end between 0.68 and 1.21
EPS = 1e-7
REST_RATIO = 18.0  # learning rate of the rest against the filters', whose steps have a fixed length
FILTER_DIMENSIONS = 4


def make_muon(module: nn.Module, groups: list[dict[str, Any]], spec: Optimizer, fused: bool) -> "Muon":
    """Moves the filters out of SGD's groups into their own.

    Filters followed by batch norm only count by their direction: they are kept at a length of one a filter, so that
    the learning rate is the part of it by which they turn in a step.
    """
    filters = [p for group in groups for p in group["params"] if p.ndim == FILTER_DIMENSIONS]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.ndim != FILTER_DIMENSIONS]
        group["weight_decay"] /= REST_RATIO
        group["lr_ratio"] *= REST_RATIO
        group["lr"] *= REST_RATIO
    normed = any(isinstance(layer, _BatchNorm) for layer in module.modules())
    kept: dict[str, Any] = {"params": filters, "lr_ratio": 1.0, "inertia": spec.momentum, "normed": normed}
    # for torch's step these groups are plain SGD: the update stands where the gradient was
    kept |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay": spec.weight_decay}
    present = [group for group in [kept, *groups] if group["params"]]
    return Muon(present, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=fused)


class Muon(lean(torch.optim.SGD)):  # type: ignore[misc]  # a class made at run time
    """SGD that first puts an orthogonal update in place of each filter's gradient."""

    def __init__(self, groups: list[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, **defaults)
        self._step_supports_amp_scaling = False  # a scaled or overflown gradient must not reach the momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if "inertia" in group:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._put_update(weight, group)
        super().step(closure)

    def _put_update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, inertia = weight.grad, group["inertia"]
        assert gradient is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].mul_(inertia).add_(gradient)
        ahead = gradient.add(momentum, alpha=inertia)  # Nesterov
        if group["normed"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=EPS))
        weight.mul_(1 - group["lr"] * group["decay"])
        rows = ahead.flatten(1)
        stretch = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5  # tall matrices have fewer directions to move in
        gradient.copy_(orthogonal(rows).view(weight.shape).mul_(stretch))


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix with orthogonal rows (or columns, if there are fewer): singular values near 1.

    Newton–Schulz: an odd polynomial of a matrix is that of its singular values, and needs products only.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix  # the polynomial forgives coarse numbers
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + EPS)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)
