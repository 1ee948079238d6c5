"""Several processes that train one network: who is one of how many, and what they tell each other.

    ranks = distributed.join()          started by torchrun; a process by itself is `ALONE`

Each rank takes its share of every batch. DDP averages the gradients; a rank's loss is weighted by its share, so that
the average is that of the whole batch also where shares differ. Losses and evaluations are put together exactly. Rank
0 alone writes, and alone decides when to stop or save. Tensors on the CPU travel through gloo, on GPUs through NCCL.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.data.loader import Settings
from job.device import Device
from job.errors import Interrupted, JobError, UsageError
from job.training.nodes import is_first_machine

PATIENCE = timedelta(days=1)  # others wait while rank 0 reads data; a rank that dies is noticed by its connection
CHUNK = 16 * 2**20  # bytes of a file that travel at once
MEETING = 60  # seconds in which all ranks are there: they are started together


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    machines: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training: its gradients become the average over all ranks."""
        if self.count == 1 or in_parts(module):  # FSDP sees to it by itself
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module)

    def share_statistics(self, module: nn.Module, device: str) -> None:
        """Batch norm over the images of all ranks, in place: the parameters stay who they are."""
        if self.count == 1:
            return
        if device != "cuda":
            raise UsageError("train.sync_batch_norm", "torch has it for GPUs only", "set it to false")
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm):
                    setattr(parent, name, _synced(child))

    def waiting(self, module: nn.Module, network: nn.Module, whole: bool) -> AbstractContextManager[Any]:
        """Around forward and backward: gradients that are added up first are exchanged with the last of them only."""
        if self.count > 1 and in_parts(network):
            network.set_requires_gradient_sync(whole)  # type: ignore[operator]  # FSDP's
        if self.count == 1 or whole or in_parts(network):
            return contextlib.nullcontext()
        wait: AbstractContextManager[Any] = module.no_sync()  # type: ignore[operator]  # DDP's
        return wait

    def weighted(self, loss: Tensor, mine: int, whole: int) -> Tensor:
        """The mean over this rank's images, so that the ranks' average is the mean over the whole batch."""
        return loss if self.count == 1 else loss * (mine * self.count / whole)

    def mean(self, weighted: Tensor) -> Tensor:
        """Of all ranks; on the device, without waiting for it."""
        if self.count == 1:
            return weighted
        total = weighted.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def decide(self, wish: bool) -> bool:
        """Rank 0's answer, everywhere. All ranks ask at the same places."""
        if self.count == 1:
            return wish
        answer = torch.tensor([wish], dtype=torch.uint8)
        torch.distributed.broadcast(answer, 0)
        return bool(answer)

    def any(self, wish: bool, group: Any = None) -> bool:
        """Whether one of the ranks says so. All ranks ask at the same places."""
        if self.count == 1:
            return wish
        answer = torch.tensor([wish], dtype=torch.uint8)
        torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX, group)
        return bool(answer)

    def share_buffers(self, module: nn.Module) -> None:
        """Rank 0's statistics of batch norm on all ranks: they are those that are saved."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if self.count == 1 or not buffers:
            return
        together = torch.cat([buffer.flatten() for buffer in buffers])
        torch.distributed.broadcast(together, 0)
        for buffer, part in zip(buffers, torch.split(together, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def share(self, images: int) -> slice:
        """This rank's part of so many images in their order: sizes differ by one at most."""
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def refuse_empty_shares(self, images: int, batch_size: int) -> None:
        """Every step needs an image for each rank: a mean over none is no number."""
        smallest = min(batch_size, images % batch_size or batch_size)
        if smallest < self.count:
            what = f"a batch of {smallest} cannot be shared by {self.count} processes"
            raise UsageError("loader.batch_size", what, "choose another one, or fewer resources.processes")

    def together(self, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Every rank's rows, in the order of the ranks, on every rank; None where a rank has none."""
        if self.count == 1:
            assert rows is not None
            return rows
        shape = (0, 0) if rows is None else rows.shape
        shapes = [torch.zeros(2, dtype=torch.int64) for _ in range(self.count)]
        torch.distributed.all_gather(shapes, torch.tensor(shape))
        longest, columns = torch.stack(shapes).amax(0).tolist()
        padded = torch.zeros(longest, columns)
        if rows is not None:
            padded[: len(rows)] = torch.from_numpy(rows)
        found = [torch.empty_like(padded) for _ in range(self.count)]
        torch.distributed.all_gather(found, padded)
        return np.concatenate([part[: int(size[0])].numpy() for part, size in zip(found, shapes, strict=True)])

    def settle(self, problem: JobError | None) -> None:
        """All ranks say what stands against beginning. Rank 0 raises the first of it, the others leave."""
        if self.count == 1:
            return
        found: list[JobError | None] = [None] * self.count
        torch.distributed.all_gather_object(found, problem)
        first = next((one for one in found if one is not None), None)
        if first is not None:
            raise first if self.leads else Interrupted("run", str(first), "rank 0 tells it")

    def hand_out(self, path: Path, folder: Path) -> Path:
        """A file of rank 0's, which ranks on its own machine read where it is, those of others from `folder`."""
        if self.machines == 1:
            return path
        here, writes = is_first_machine(), os.environ["LOCAL_RANK"] == "0"
        copy = path if here else folder / path.name
        size = torch.tensor([path.stat().st_size if self.leads else 0])
        torch.distributed.broadcast(size, 0)
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(path.open("rb")) if self.leads else None
            target = stack.enter_context(copy.open("wb")) if writes and not here else None
            for start in range(0, int(size), CHUNK):
                part = torch.empty(min(CHUNK, int(size) - start), dtype=torch.uint8)
                if source is not None:
                    part = torch.frombuffer(bytearray(source.read(len(part))), dtype=torch.uint8)
                torch.distributed.broadcast(part, 0)
                if target is not None:
                    target.write(part.numpy().tobytes())
        torch.distributed.barrier()
        return copy

    def tell(self, value: object) -> None:
        """From rank 0 to all that `listen`."""
        if self.count > 1:
            torch.distributed.broadcast_object_list([value], 0, device=torch.device("cpu"))

    def listen(self) -> Any:
        found: list[Any] = [None]
        torch.distributed.broadcast_object_list(found, 0, device=torch.device("cpu"))
        return found[0]


ALONE = Ranks()


def _synced(layer: nn.Module) -> nn.Module:
    made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
    return made


def in_parts(module: nn.Module) -> bool:
    """Whether FSDP has sharded it; asked without loading FSDP."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


@dataclass(frozen=True)
class Brief:
    """What rank 0 has settled and the others need."""

    settings: Settings
    device: Device
    data: str  # SHA-256


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """Meets the others, as torchrun's environment says. RuntimeError of torch where one of them is lost."""
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    signal.alarm(MEETING)  # whoever waits for one that never comes is ended, and told of as lost
    backend, place = "cpu:gloo,cuda:nccl" if gpus else "gloo", _place()
    torch.distributed.init_process_group(backend, **place, timeout=PATIENCE)
    signal.alarm(0)
    try:
        machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), machines)
    finally:
        torch.distributed.destroy_process_group()


def _place() -> dict[str, Any]:
    """Where the ranks meet, as init_process_group takes it; by itself it reads torchrun's environment.

    torchrun serves one store for all its restarts. Gloo finds in it, under the same keys, where the ranks before these
    listened: whichever rank comes first then waits there for ever. So each start has a part of its own. With several
    torchruns their counts of restarts differ, and `job.ranks` lets each start once.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ["GROUP_WORLD_SIZE"] != "1":
        return {}
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(address, port, count, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]  # C++
    own = torch.distributed.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)  # type: ignore[attr-defined]
    return {"store": own, "rank": rank, "world_size": count}
