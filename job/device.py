"""The one seam to the accelerator: which device, which number format, how many threads, and why.

Everything below the spec that differs between CPU and CUDA is decided or wrapped here, so that the training
step is the same lines on both. torch is imported inside the functions: this module is a leaf.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from job.errors import JobError

if TYPE_CHECKING:
    import torch

    from job.spec.schema import Train

    Pair = tuple[torch.Tensor, torch.Tensor]  # images and labels

SPIN = "3000"  # turns, some tens of µs
FEWER_THREADS_PAY = 1.25  # gain from which fewer threads are worth other last bits

T = TypeVar("T")
Timed = Callable[[], contextlib.AbstractContextManager[Any]]
COMPILE_PAYS_AFTER = 600.0  # seconds of training; compiling costs about a minute and saves some tenths of the rest


@dataclass(frozen=True)
class Device:
    """Where and how tensors are computed. `reasons` says for each choice why, in a few words."""

    kind: str  # cpu or cuda
    name: str
    precision: str  # fp32, tf32, bf16 or fp16
    compile: bool
    channels_last: bool
    threads: int
    reasons: dict[str, str] = field(default_factory=dict)
    graphs: bool = False  # full batches are replayed as CUDA graphs

    def on_threads(self, count: int) -> "Device":
        """The same device, computing on so many CPU threads from now on."""
        import torch

        torch.set_num_threads(count)
        return replace(self, threads=count)

    def tensor(self, value: Any) -> "torch.Tensor":
        """`value` (array or tensor) on the device."""
        import torch

        return torch.as_tensor(value).to(self.kind)

    def ahead(self, batches: "Iterator[Pair]", timed: Timed = contextlib.nullcontext) -> "Iterator[Pair]":
        """Each batch on the device. On CUDA the next is copied, on a stream of its own, while one is computed with.

        `timed()` is entered around each copy, on its stream.
        """
        return batches if self.kind == "cpu" else one_ahead(batches, _CopyStream(self.kind, timed))

    def place(self, module: "torch.nn.Module") -> "torch.nn.Module":
        """The module on the device, in the chosen memory layout."""
        import torch

        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        placed: torch.nn.Module = module.to(self.kind, memory_format=layout)  # type: ignore[call-overload]
        return placed

    def autocast(self, *, cached: bool = True) -> "contextlib.AbstractContextManager[Any]":
        """Around forward and loss: chooses each operation's number format. `cached`: weights are converted once."""
        import torch

        formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.precision not in formats:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=formats[self.precision], cache_enabled=cached)

    def scaler(self) -> "torch.amp.GradScaler":
        """Loss scaling for fp16; does nothing in the other formats."""
        import torch

        return torch.amp.GradScaler(self.kind, enabled=self.precision == "fp16")

    def wait(self) -> None:
        """Returns when all queued work is done, so that a clock tells the truth."""
        import torch

        if self.kind == "cuda":
            torch.cuda.synchronize()

    def mark(self) -> object:
        """A point in the device's own stream of work, for `between`."""
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds from mark to mark, once both are reached."""
        return float(begin.elapsed_time(end)) / 1000

    def uuid(self) -> str:
        """Of the GPU, as NVML knows it, whatever number it has here."""
        import torch

        return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"

    def free_memory(self) -> int:
        """Bytes that can still be taken on the device."""
        import torch

        return int(torch.cuda.mem_get_info()[0]) if self.kind == "cuda" else available_memory()


def calm_waiting() -> None:
    """For the OpenMP runtime that comes with torch (libgomp), before torch is imported: wait briefly, then sleep.

    By default a thread that waits for the others spins for milliseconds. Where another process has one of the cores,
    every operation then waits for it. Measured so, with two threads: 272 images/s by default, 3,400 to 4,400 with this
    setting; one thread 7,824, which is why `settle_threads` measures fewer.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)


class Copies(Protocol[T]):
    """A way to copy that goes on by itself: `start` returns at once, `finish` gives what the next kernels may read."""

    def start(self, batch: T) -> Any: ...

    def finish(self, copying: Any) -> T: ...


def one_ahead(batches: Iterator[T], copies: Copies[T]) -> Iterator[T]:
    """The batches, each copied while the one before it is in use: at any time one copy is under way."""
    copying: Any = None
    for batch in batches:
        earlier, copying = copying, copies.start(batch)
        if earlier is not None:
            yield copies.finish(earlier)
    if copying is not None:
        yield copies.finish(copying)


class _CopyStream:
    """Host to device beside the computing stream; from pinned memory the host does not wait either."""

    def __init__(self, kind: str, timed: Timed) -> None:
        import torch

        self.timed = timed
        self.kind, self.stream = kind, torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def start(self, batch: "Pair") -> "tuple[Pair, torch.cuda.Event]":
        import torch

        with torch.cuda.stream(self.stream):
            with self.timed():
                images, labels = (part.to(self.kind, non_blocking=True) for part in batch)
            return (images, labels), self.stream.record_event()

    def finish(self, copying: "tuple[Pair, torch.cuda.Event]") -> "Pair":
        import torch

        batch, copied = copying
        computing = torch.cuda.current_stream()
        computing.wait_event(copied)
        for part in batch:
            part.record_stream(computing)  # its memory is not given to the next copy while it is computed with
        return batch


def hold_memory() -> None:
    """Has glibc keep what is freed for the next tensor. By default blocks from 128 KiB to 32 MiB on go back to the
    kernel, which hands out zeroed pages again: normalising 256×256 images took 320 to 800 µs each instead of 67 to 100.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: larger blocks only are mapped one by one
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def choose(train: "Train", *, batch_norm: bool) -> Device:
    """Settles every `auto` of the spec's train section that does not need a measurement, and configures torch."""
    import torch

    kind, why = _kind(train.device)
    threads, by = most_threads(train.threads)
    torch.set_num_threads(threads)
    reasons = {"device": why, "threads": by}
    channels_last = (kind == "cuda" or batch_norm) if train.channels_last == "auto" else train.channels_last
    if kind == "cuda":
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        refuse_unsupported(name, capability, torch.cuda.get_arch_list())
        precision, reasons["precision"] = _cuda_precision(train.precision, capability)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.benchmark = not train.deterministic  # picks the fastest kernel for the fixed batch shape
    else:
        name = cpu_name()
        precision, reasons["precision"] = _cpu_precision(train, channels_last, native_bf16())
        hold_memory()
        torch.set_flush_denormal(True)  # denormal numbers are slow on x86 and mean nothing to a network
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler: 1.5 s
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
        torch.use_deterministic_algorithms(train.deterministic)
    given = train.channels_last != "auto"
    reasons["channels_last"] = "as the spec says" if given else "convolutions with batch norm run faster in this layout"
    compiling = train.compile is True
    reasons["compile"] = "as the spec says" if train.compile != "auto" else "decided by the estimated run length"
    return Device(kind, name, precision, compiling, channels_last, threads, reasons)


def gpu_count() -> int:
    """GPUs torch may use, without touching them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def most_threads(wish: "int | str") -> tuple[int, str]:
    """CPU threads before anything is measured, and why."""
    if wish != "auto":
        return int(wish), "as the spec says"
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked), "as OMP_NUM_THREADS says"
    return cpu_count(), "the CPUs this process may use, by affinity and cgroup"


def settle_threads(device: Device, train: "Train", rate: Callable[[], float]) -> tuple[Device, float]:
    """Fewer threads where they are clearly faster, as when other processes have the cores; and the best rate.

    `rate` measures images/s at the count that torch is set to. The count changes the last bits of sums, so it stays
    as it is unless the gain is large, and for `deterministic`.
    """
    import torch

    found = {device.threads: rate()}
    fixed = train.threads != "auto" or train.deterministic or "OMP_NUM_THREADS" in os.environ
    if fixed or device.kind != "cpu":
        return device, found[device.threads]
    count = device.threads
    while count > 1:
        torch.set_num_threads(count := count // 2)
        found[count] = rate()
        if found[count] < max(found.values()):
            break
    best = max(found, key=lambda threads: found[threads])
    if found[best] < FEWER_THREADS_PAY * found[device.threads]:
        best = device.threads
    torch.set_num_threads(best)
    table = ", ".join(f"{threads}: {speed:,.0f}" for threads, speed in sorted(found.items()))
    why = f"measured images/s by threads: {table}" if len(found) > 1 else device.reasons["threads"]
    return replace(device, threads=best, reasons={**device.reasons, "threads": why}), found[best]


def settle_compile(device: Device, wish: "bool | str", seconds: float) -> Device:
    """Compiles by itself only on CUDA, and only when the estimated training time earns it back."""
    if wish != "auto":
        return device
    pays = device.kind == "cuda" and seconds >= COMPILE_PAYS_AFTER
    why = f"about {seconds:.0f} s of training {'earn' if pays else 'do not earn'} back the compilation"
    if device.kind != "cuda":
        why = "on CPU the compiler's time is rarely earned back"
    return replace(device, compile=pays, reasons={**device.reasons, "compile": why})


def require(train: "Train") -> None:
    """JobError for a device that cannot be used, before data is fetched or anything else takes time."""
    import torch

    if _kind(train.device)[0] == "cuda":
        refuse_unsupported(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_arch_list())


def refuse_unsupported(name: str, capability: tuple[int, int], built_for: list[str]) -> None:
    """JobError when this torch build has no code for the GPU; sm_86 code runs on 8.6 to 8.9, PTX on all later."""
    versions = [(arch.split("_")[0], int("".join(filter(str.isdigit, arch.split("_")[1])))) for arch in built_for]
    mine = capability[0] * 10 + capability[1]
    runs = any(
        (kind == "sm" and version // 10 == capability[0] and version <= mine) or (kind == "compute" and version <= mine)
        for kind, version in versions
    )
    if not runs:
        raise JobError(
            f"GPU {name} (sm_{mine})",
            f"this build of torch has no code for it, only for {', '.join(built_for)}",
            "use an image whose torch was built for it (P100, V100: make image VARIANT=cu12), or train.device: cpu",
        )


def gpus() -> list[tuple[str, str | None, int, int]]:
    """Each GPU torch sees: its name, why it cannot be used (or None), free and total bytes."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, problem = torch.cuda.get_device_name(index), None
        try:
            refuse_unsupported(name, torch.cuda.get_device_capability(index), torch.cuda.get_arch_list())
        except JobError as error:
            problem = str(error)
        found.append((name, problem, *torch.cuda.mem_get_info(index)))
    return found


def native_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def cpu_count() -> int:
    """CPUs this process may use: affinity, and the cgroup's quota rounded up (as containers are limited)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus(Path("/sys/fs/cgroup"))
    return max(1, min(allowed, allowed if quota is None else -(-quota[0] // quota[1])))


def cgroup_cpus(root: Path) -> tuple[int, int] | None:
    """(quota, period) in µs of the process's cgroup, v2 or v1; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else (int(quota), int(period))
    with contextlib.suppress(OSError, ValueError):
        micro = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return None if micro <= 0 else (micro, int((root / "cpu/cpu.cfs_period_us").read_text()))
    return None


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process can still take: what the machine has left, and what its cgroup allows."""
    free = 2**62
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(line for line in proc.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(free, 0)


def cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kind(wish: str) -> tuple[str, str]:
    import torch

    if wish == "cpu":
        return "cpu", "as the spec says"
    if torch.cuda.is_available():
        return "cuda", "as the spec says" if wish == "cuda" else "a GPU is there"
    if wish == "cuda":
        raise JobError(
            "train.device",
            "cuda is asked for and no GPU can be used here",
            "start the container with --gpus all, check nvidia-smi, or set train.device: auto",
        )
    return "cpu", "no GPU was found"


def _cuda_precision(wish: str, capability: tuple[int, int]) -> tuple[str, str]:
    if wish == "bf16" and capability < (8, 0):
        raise JobError("train.precision", f"bf16 needs compute capability 8.0, this GPU has {capability}", "use fp16")
    if wish != "auto":
        return wish, "as the spec says"
    if capability >= (8, 0):
        return "bf16", "this GPU computes bf16 natively"
    return ("fp16", "tensor cores, but no bf16") if capability >= (7, 0) else ("fp32", "no tensor cores")


def _cpu_precision(train: "Train", channels_last: bool, native: bool) -> tuple[str, str]:
    wish = train.precision
    if wish in ("fp16", "tf32"):
        raise JobError("train.precision", f"{wish} needs a GPU and this run is on CPU", "use auto, fp32 or bf16")
    if wish != "auto":
        return wish, "as the spec says"
    if train.compile is True:  # seen with torch 2.14 and airbench; eager bf16 and compiled fp32 are right
        return "fp32", "compiled bf16 gives some networks NaN gradients on CPU"
    if native and channels_last:  # measured on such a CPU: 1.4 times as fast; in the other layout half as fast
        return "bf16", "this CPU computes bf16 natively"
    return "fp32", "the other layout has no fast bf16" if native else "this CPU does not compute bf16 natively"
