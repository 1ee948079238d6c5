"""FSDP2: each rank keeps its rows of every weight, gradient and average; a layer is whole only while it computes.

    sharding.shard(module, device, count)      in place, before the optimizer is made: its state comes in parts, too

Numbers are those of DDP: weights, gradients and sums are float32, and autocast chooses the format of each operation as
it does without. What is in parts is a DTensor; everything else (statistics of batch norm, counters) is on every rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from job.device import Device
from job.errors import UsageError

SMALLEST = 2**16  # weights that are gathered by themselves: smaller layers go along with the whole network's


def shard(module: nn.Module, device: Device, count: int) -> DeviceMesh:
    """Keeps this rank's part of the network."""
    from torch.distributed.fsdp import fully_shard

    if device.precision == "fp16":
        what = "the loss scaling of fp16 is not exact over parts of gradients"
        raise UsageError("resources.parallel", what, "set train.precision to bf16 or fp32, or resources.parallel: ddp")
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # rows have to lie together; the images' layout stays
    mesh = init_device_mesh(device.kind, (count,))
    for layer in _layers(module):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return mesh


def local(tensor: Tensor) -> Tensor:
    """This rank's part of it, or all of what every rank has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor, on every rank; all ranks ask at the same place."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def like(value: Any, pattern: Tensor) -> Any:
    """`value`, cut to this rank's part where `pattern` is one of its shape. Nothing travels."""
    if not isinstance(pattern, DTensor) or not isinstance(value, Tensor) or value.shape != pattern.shape:
        return value
    if isinstance(value, DTensor):  # in parts already, but in main memory
        return in_buffer(value, value.to_local().to(pattern.device), pattern.device_mesh)
    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def fitted(saved: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A checkpoint's weights, average and optimizer in parts as these are, whatever it was saved from."""
    patterns = module.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        number: {name: like(value, parameters[number]) for name, value in state.items()}
        for number, state in saved["optimizer"]["state"].items()
    }
    found = {**saved, "module": {name: like(value, patterns[name]) for name, value in saved["module"].items()}}
    found["optimizer"] = {**saved["optimizer"], "state": states}
    if saved["ema"] is not None:
        average = {name: like(value, patterns[name]) for name, value in saved["ema"]["average"].items()}
        found["ema"] = {**saved["ema"], "average": average}
    return found


def fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """load_state_dict for whole weights, into parts where the network is in parts."""
    patterns = module.state_dict()
    module.load_state_dict({name: like(value, patterns[name]) for name, value in weights.items()})


def empty(size: torch.Size, dtype: torch.dtype, mesh: DeviceMesh | None) -> Tensor:
    """Room for a tensor on the host: this rank's rows of it, or all of it."""
    if mesh is None:
        return torch.empty(size, dtype=dtype)
    from torch.distributed.tensor import empty as part

    found: Tensor = part(size, dtype=dtype, device_mesh=on_host(mesh), placements=[Shard(0)])
    return found


def on_host(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks for tensors in main memory."""
    return mesh if mesh.device_type == "cpu" else init_device_mesh("cpu", (mesh.size(),))


def in_buffer(value: Tensor, buffer: Tensor, mesh: DeviceMesh) -> DTensor:
    """The same part of the same tensor, held by `buffer`."""
    assert isinstance(value, DTensor)
    return DTensor.from_local(buffer, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered by itself: the network's children, of a sequence or list its members."""
    for child in module.children():
        if isinstance(child, nn.Sequential) or type(child) in {nn.ModuleList, nn.ModuleDict}:
            yield from _layers(child)
        elif sum(parameter.numel() for parameter in child.parameters()) >= SMALLEST:
            yield child
