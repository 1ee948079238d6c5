"""Compiled or captured: full batches only, and nothing moves before the first step. A capture is played here by a fake
that does what torch does, as far as it can be seen without a GPU: passes before it, then the same computation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from job.data.dataset import Split
from job.data.loader import Pixels, Settings, TrainingBatches
from job.device import Device
from job.errors import JobError
from job.models.build import ModelFacts
from job.spec.schema import Augment, Spec
from job.training import probe
from job.training.forward import Captured, forward_for, why_not
from job.training.setup import Prepared
from job.training.trainer import State, train

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
GRAPHS = replace(CPU, graphs=True)
SPLIT = Split(
    np.random.default_rng(1).integers(0, 256, (22, 4, 4, 3), dtype=np.uint8),
    np.random.default_rng(2).integers(0, 3, 22),
)
PIXELS = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3))


def spec(**train_keys: Any) -> Spec:
    sections = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "loader": {"batch_size": 4}}
    return Spec.model_validate({**sections, "optimizer": {"lr": 0.1}, "train": {"epochs": 2, "ema": 0.9, **train_keys}})


def trained(device: Device, wanted: Spec) -> State:
    state = State(network(), wanted, device)
    for _ in train(state, TrainingBatches(SPLIT, Settings(4, True), device, PIXELS, Augment(), 0), wanted, device):
        pass
    return state


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were captured and replayed, in this order."""
    sizes: list[int] = []

    def make(module: nn.Module, sample: tuple[Tensor]) -> Callable[[Tensor], Tensor]:
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        for _ in range(3):
            torch.autograd.grad(module(sample[0]).sum(), tuple(module.parameters()))
        original, sample_images = module.forward, sample[0]

        def replay(images: Tensor) -> Tensor:
            sizes.append(len(images))
            found: Tensor = original(sample_images.copy_(images))
            return found

        module.forward = replay  # as torch does
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return sizes


def same(one: State, other: State) -> bool:
    tensors = zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in tensors)


def test_training_captured_is_training_plain_bit_for_bit(captures: list[int]) -> None:
    """Statistics of batch norm and random numbers are as if nothing had gone before the capture."""
    wanted = spec(clip_grad_norm=1.0)
    plain, captured = trained(CPU, wanted), trained(GRAPHS, wanted)
    assert captures == [4] * 10
    assert same(plain, captured)
    assert torch.equal(plain.to_dict()["random"]["cpu"], captured.to_dict()["random"]["cpu"])


def test_what_is_captured_leaves_evaluation_its_own_network(captures: list[int]) -> None:
    module = network()
    images = torch.rand(4, 3, 4, 4)
    Captured(module, GRAPHS)(images)
    module.eval()
    module(images)
    assert captures == [4]


def test_weights_in_two_formats_are_not_cached_in_a_capture(captures: list[int]) -> None:
    device = replace(GRAPHS, precision="bf16")
    with device.autocast():
        found = Captured(network(), device)(torch.rand(4, 3, 4, 4))
        assert torch.is_autocast_cache_enabled()
    assert found.dtype == torch.bfloat16
    assert captures == [4]


def test_a_smaller_batch_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        shapes.extend(tuple(one.shape) for one in examples if isinstance(one, Tensor) and one.ndim == 4)
        return graph.forward

    real = torch.compile

    def compile_counting(module: nn.Module, *, dynamic: bool, mode: str | None) -> Any:
        assert mode is None
        return real(module, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_counting)
    plain, compiled = trained(CPU, spec()), trained(replace(CPU, compile=True), spec())
    assert [shape for shape in shapes if shape[1:] == (3, 4, 4)] == [(4, 3, 4, 4)]
    assert same(plain, compiled)


def test_the_compilers_own_graphs_where_both_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []

    def compile_nothing(module: nn.Module, *, dynamic: bool, mode: str | None) -> nn.Module:
        assert not dynamic
        modes.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    for graphs in (True, False):
        forward_for(network(), replace(CPU, compile=True, graphs=graphs), 4)
    assert modes == ["reduce-overhead", None]


@pytest.mark.parametrize(
    ("kind", "accumulate", "pinned", "processes", "says"),
    [
        ("cpu", 1, False, 1, "only a GPU"),
        ("cuda", 2, False, 1, "train.accumulate"),
        ("cuda", 1, True, 1, "pinning"),
        ("cuda", 1, False, 2, "several processes"),
    ],
)
def test_what_stands_against_graphs(kind: str, accumulate: int, pinned: bool, processes: int, says: str) -> None:
    found = why_not(replace(CPU, kind=kind), accumulate=accumulate, pinned=pinned, processes=processes)
    assert found is not None
    assert says in found
    assert why_not(replace(CPU, kind="cuda"), accumulate=1, pinned=False, processes=1) is None


def settled(wish: bool | str) -> Device:
    prepared = Prepared(network(), CPU, PIXELS, ModelFacts(1, 1, 1))
    return probe.settle_graphs(prepared, SPLIT, spec(cuda_graphs=wish), pinned=False).device


def test_on_a_cpu_they_are_off_with_the_reason() -> None:
    assert not settled("auto").graphs
    assert settled("auto").reasons["graphs"] == "only a GPU replays graphs"
    assert settled(False).reasons["graphs"] == "as the spec says"
    with pytest.raises(JobError, match=r"train\.cuda_graphs: only a GPU replays graphs"):
        settled(True)


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "why_not", lambda *_args, **_keys: None)


@pytest.mark.usefixtures("possible")
def test_they_are_tried_before_they_are_chosen(captures: list[int]) -> None:
    assert settled("auto").graphs
    assert captures == [4]
    assert settled(True).graphs
    assert not settled(False).graphs


@pytest.mark.usefixtures("possible")
def test_a_capture_that_fails_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_module: nn.Module, _sample: tuple[Tensor]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    chosen = settled("auto")
    assert not chosen.graphs
    assert chosen.reasons["graphs"] == "a capture fails: operation not permitted when stream is capturing"
    with pytest.raises(JobError, match="a capture fails"):
        settled(True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu_a_replay_is_the_plain_step(precision: str) -> None:
    plain = Device("cuda", "test", precision, compile=False, channels_last=True, threads=1)
    states = []
    for device in (plain, replace(plain, graphs=True)):
        wanted = spec(clip_grad_norm=1.0)
        pixels = Pixels.on(device, (0.5,) * 3, (0.5,) * 3)
        state = State(device.place(network()), wanted, device)
        torch.cuda.manual_seed(0)
        for _ in train(state, TrainingBatches(SPLIT, Settings(4, True), device, pixels, Augment(), 0), wanted, device):
            pass
        states.append(state)
    for a, b in zip(*(state.module.state_dict().values() for state in states), strict=True):
        torch.testing.assert_close(a, b)
