"""Networks by name, the weights they start from, and each refusal as the line a user reads."""

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from job.errors import JobError, SpecError, UsageError
from job.models.build import BUILDERS, build, fill, initialise, load_weights, model_facts
from job.spec.schema import Model

SHAPE = (3, 32, 32)


def small(classes: int = 10) -> nn.Module:
    return build(Model(name="tutorial_net"), SHAPE, classes)


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def refusal(module: nn.Module, weights: str) -> JobError:
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(JobError) as refused:
        load_weights(module, weights)
    assert refused.value.exit_code == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items()), "nothing is changed"
    return refused.value


@pytest.mark.parametrize("name", [*BUILDERS, "resnet18", "squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 48)])
def test_every_network_takes_a_step(name: str, shape: tuple[int, int, int]) -> None:
    module = build(Model(name=name), shape, 7)
    initialise(module, lambda: torch.randn(8, *shape))
    logits = module(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()  # type: ignore[no-untyped-call]
    learned = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in learned)


@pytest.mark.parametrize("name", ["resnet9", "small_cnn"])
def test_small_images_are_taken(name: str) -> None:
    assert build(Model(name=name), (1, 8, 8), 10)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 75)])
def test_networks_with_auxiliary_outputs_give_one_tensor(name: str, side: int) -> None:
    module = build(Model(name=name), (3, side, side), 4)
    assert module(torch.randn(2, 3, side, side)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_grey_image_counts_as_three_equal_channels(name: str) -> None:
    torch.manual_seed(1)
    grey = build(Model(name=name), (1, 32, 32), 4).eval()
    torch.manual_seed(1)
    colour = build(Model(name=name), SHAPE, 4).eval()
    images = torch.randn(2, 1, 32, 32)
    assert torch.allclose(grey(images), colour(images.repeat(1, 3, 1, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "line"),
    [
        ({"name": "ResNet-18"}, SHAPE, "model.name: no network is called ResNet-18; did you mean resnet18?"),
        ({"name": "tutorialnet"}, SHAPE, "model.name: no network is called tutorialnet; did you mean tutorial_net?"),
        (
            {"name": "xyzzy"},
            SHAPE,
            "model.name: no network is called xyzzy; "
            "use tutorial_net, small_cnn, resnet9, airbench or a torchvision classifier such as resnet18",
        ),
        (
            {"name": "resnet18", "width": 8},
            SHAPE,
            "model.width: resnet18 has one width only; remove it, or use one of our own networks",
        ),
        (
            {"name": "small_cnn"},
            (3, 7, 7),
            "small_cnn: images of 7×7 are too small; smallest is 8×8; set dataset.resize: 8, or use resnet9",
        ),
        (
            {"name": "vit_b_32"},
            SHAPE,
            "vit_b_32: images of 32×32 do not fit (Wrong image height! Expected 224 but got 32!); "
            "set dataset.resize, for example to 224",
        ),
    ],
)
def test_refusals_are_one_clear_line(model: dict[str, Any], shape: tuple[int, int, int], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(Model(**model), shape, 10)
    assert str(refused.value) == line


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "raft_small", "quantized_resnet18"])
def test_what_is_no_classifier_of_images_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^model.name: no network is called {name}; "):
        build(Model(name=name), SHAPE, 10)


def test_our_own_networks_do_not_load_torchvision() -> None:
    code = (
        "import sys\n"
        "from job.models.build import build, model_facts\n"
        "from job.spec.schema import Model\n"
        "for name in ('tutorial_net', 'small_cnn', 'resnet9', 'airbench'):\n"
        "    model_facts(build(Model(name=name), (3, 32, 32), 10), (3, 32, 32))\n"
        "print({'torchvision', 'torch._dynamo'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n", "torch._dynamo is a second or more of imports"


def test_weights_come_back(tmp_path: Path) -> None:
    first, second = small(), small()
    load_weights(second, saved(tmp_path / "weights.pt", first.state_dict()))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_weights_come_out_of_a_store(tmp_path: Path) -> None:
    first, second = small(), small()
    saved(tmp_path / "weights.pt", first.state_dict())
    load_weights(second, f"file://{tmp_path}/weights.pt")
    assert torch.equal(first.state_dict()["fc3.bias"], second.state_dict()["fc3.bias"])
    with pytest.raises(JobError, match=r"none\.pt: there is no such file; "):
        load_weights(second, f"file://{tmp_path}/none.pt")


def test_the_prefix_of_distributed_training_is_taken_off(tmp_path: Path) -> None:
    first, second = small(), small()
    state = {f"module.{name}": tensor for name, tensor in first.state_dict().items()}
    load_weights(second, saved(tmp_path / "weights.pt", state))
    assert torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])


def test_each_kind_of_mismatch_has_its_line(tmp_path: Path) -> None:
    state = dict(small(classes=100).state_dict())
    del state["conv1.bias"], state["fc2.weight"]
    state |= {f"extra{number}": torch.zeros(1) for number in range(5)}
    path = saved(tmp_path / "weights.pt", state)
    cure = "take weights of this very network, or change model.name or model.width"
    refused = refusal(small(), path)
    assert isinstance(refused, SpecError)
    assert str(refused).splitlines() == [
        f"{path}: lacks tensors of the network: conv1.bias, fc2.weight; {cure}",
        f"{path}: holds tensors that the network has not: extra0, extra1, extra2 and 2 more; {cure}",
        f"{path}: holds tensors of another shape: fc3.weight 100×84, not 10×84, fc3.bias 100, not 10; {cure}",
    ]


def test_fill_names_the_place_it_is_given() -> None:
    with pytest.raises(SpecError, match=r"^somewhere: lacks tensors of the network: conv1.weight, "):
        fill(small(), {"other": torch.zeros(1)}, "somewhere")


def test_what_is_no_state_dict_is_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(small().state_dict(), whole)
    path = tmp_path / "weights.pt"
    what = "it is damaged, or no state_dict that torch.save wrote"
    damaged = f"{path}: {what}; write it with torch.save(net.state_dict(), FILE)"
    for content in (whole.getvalue()[:-500], whole.getvalue()[:100], b"", b"a picture of a cat"):
        path.write_bytes(content)
        assert str(refusal(small(), str(path))) == damaged
    torch.save(small(), path)  # the module itself, which is code
    assert str(refusal(small(), str(path))) == damaged
    torch.save({"epoch": 3, "model": small().state_dict()}, path)
    assert str(refusal(small(), str(path))) == (
        f"{path}: it holds epoch, model, not a state_dict; save net.state_dict() alone; of a run, take model/model.pt"
    )
    torch.save(torch.zeros(3), path)
    assert (
        str(refusal(small(), str(path))) == f"{path}: it holds a Tensor, not a state_dict; save net.state_dict() alone"
    )


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    assert str(refusal(small(), str(path))) == f"{path}: there is no such file; check model.weights"
    assert str(refusal(small(), "oci://weights.pt")) == (
        "oci://weights.pt: it names no file in a store; use oci://BUCKET@NAMESPACE/PREFIX/FILE"
    )


@pytest.mark.parametrize("name", [*BUILDERS, "resnet18"])
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    module = build(Model(name=name), SHAPE, 10)
    facts = model_facts(module, SHAPE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, *SHAPE))
    assert facts.flops_per_image == counter.get_total_flops()
    assert facts.parameters == sum(p.numel() for p in module.parameters())
    assert facts.bytes >= 4 * facts.parameters


def test_the_tutorial_in_figures() -> None:
    facts = model_facts(small(), SHAPE)
    convolutions = 2 * (28 * 28 * 6 * 75 + 10 * 10 * 16 * 150)
    assert facts.flops_per_image == convolutions + 2 * (400 * 120 + 120 * 84 + 84 * 10)
    assert (facts.parameters, facts.bytes) == (62_006, 4 * 62_006)


class Attention(nn.Module):
    """Weights in a layer that is neither a convolution nor linear."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True, dropout=0.5)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.encoder(images.flatten(2))  # (N, 3 tokens, 8)
        return out


def test_attention_is_counted_whole() -> None:
    projections, scores, feed_forward = 3 * 8 * (24 + 8), 2 * 3 * 3 * 8, 2 * 3 * 8 * 16  # 3 tokens of 8 numbers
    assert model_facts(Attention(), (3, 2, 4)).flops_per_image == 2 * (projections + scores + feed_forward)


def test_looking_at_a_network_changes_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4, 2)).train()
    module[1].eval()  # a frozen norm stays frozen
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    model_facts(module, (3, 3, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in module] == [True, False, True, True, True]
    assert not any(layer._forward_hooks for layer in module.modules())
