"""How training calls the network: full batches through compiled code or a CUDA graph, the smaller last one plainly.

Both hold for one shape of batch: for another one the compiler would begin anew in the middle of the run, and a graph
would compute with what the last batch left. Evaluation always calls the network itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from job.device import Device

Forward = Callable[[Tensor], Tensor]


def forward_for(module: nn.Module, device: Device, full: int) -> nn.Module:
    """The network as it is called in training; `full` is the size of all batches but the last one of an epoch."""
    if not (device.compile or device.graphs):
        return module
    return _BySize(module, _compiled(module, device) if device.compile else Captured(module, device), full)


class _BySize(nn.Module):
    """Full batches the quick way. Its parameters are the network's, so that it can be wrapped like it."""

    def __init__(self, module: nn.Module, quick: Forward, full: int) -> None:
        super().__init__()
        self.module, self.full = module, full
        self.quick = (quick,)  # in a tuple: compiled code is a module, too, of the same parameters

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = (self.quick[0] if len(images) == self.full else self.module)(images)
        return found


def _compiled(module: nn.Module, device: Device) -> Forward:
    """Its `reduce-overhead` is compiled code replayed as CUDA graphs."""
    mode = "reduce-overhead" if device.graphs else None
    return torch.compile(module, dynamic=False, mode=mode)


class Captured:
    """The network's forward and backward pass as CUDA graphs, captured at the first batch and then replayed.

    A graph computes at fixed addresses: weights and statistics are changed in place only (by the optimizer, a
    checkpoint's restoring, the moving average), and gradients are read before the next batch. Loss, scaling, clipping
    and the optimizer stay outside, so that the learning rate is a plain number.
    """

    def __init__(self, module: nn.Module, device: Device) -> None:
        self.module, self.device = module, device
        self.replay: Forward | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if self.replay is None:
            self.replay = self._capture(images)
        return self.replay(images)

    def _capture(self, images: Tensor) -> Forward:
        """Some passes go before a capture; they move neither statistics nor the stream of random numbers."""
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        gpus = [images.get_device()] if images.is_cuda else []
        with torch.random.fork_rng(gpus), self.device.autocast(cached=False):
            inner = _Inner(self.module)  # what is captured gets another `forward`: the network keeps its own
            replay: Forward = torch.cuda.make_graphed_callables(inner, (images.clone(),))  # type: ignore[assignment]
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        return replay


class _Inner(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.module(images)
        return found


def why_not(device: Device, *, accumulate: int, pinned: bool, processes: int) -> str | None:
    """What stands against CUDA graphs, before a capture is tried."""
    if device.kind != "cuda":
        return "only a GPU replays graphs"
    if accumulate > 1:
        return "a replay would overwrite the gradients that train.accumulate gathers"
    if processes > 1:
        return "several processes exchange gradients while they compute them"
    return "pinning memory beside it can break a capture" if pinned else None


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
