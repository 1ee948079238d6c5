"""Networks by name: the lab's own loads our weights, all learn, and what does not fit is refused in a line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import SpecError, UsageError
from job.models.build import BUILDERS, build, fill, initialise, load_weights, model_facts
from job.spec.schema import Model

CIFAR = (3, 32, 32)


class Net(nn.Module):
    """The tutorial's network, as its page has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        found: Tensor = self.fc3(x)
        return found


def made(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, **keys: object) -> nn.Module:
    torch.manual_seed(0)
    return build(Model.model_validate({"name": name, **keys}), shape, classes)


def test_the_labs_own_net_loads_our_weights() -> None:
    ours, theirs = made("tutorial_net"), Net()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


def test_the_same_seed_begins_like_the_labs_net() -> None:
    ours = made("tutorial_net").state_dict()
    torch.manual_seed(0)
    theirs = Net().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", [*BUILDERS, "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 48)])
def test_every_network_takes_a_step(name: str, shape: tuple[int, int, int]) -> None:
    module = made(name, shape, classes=7)
    initialise(module, torch.randn(32, *shape))
    logits = module(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()  # type: ignore[no-untyped-call]
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) for parameter in learned)


@pytest.mark.parametrize("name", ["resnet9", "small_cnn"])
def test_small_images_are_taken(name: str) -> None:
    assert made(name, (1, 8, 8))(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "side", "line"),
    [
        (
            "tutorial_net",
            15,
            "tutorial_net: images of 15×15 are too small, the smallest are 16×16; set dataset.resize to 16 or more",
        ),
        (
            "small_cnn",
            7,
            "small_cnn: images of 7×7 are too small; smallest is 8×8; set dataset.resize: 8, or use resnet9",
        ),
    ],
)
def test_too_small_is_refused_by_name(name: str, side: int, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(name, (3, side, side))
    assert str(caught.value) == line


def test_a_name_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"model\.name: no network is called resnet81; did you mean resnet18\?"):
        made("resnet81")


def test_a_width_where_there_is_none() -> None:
    with pytest.raises(UsageError, match=r"model\.width: resnet18 has one width only"):
        made("resnet18", width=3)


def test_whitening_makes_patches_uncorrelated() -> None:
    module = made("airbench", width=8)
    images = torch.randn(200, 3, 32, 32).cumsum(3)  # neighbours resemble each other
    initialise(module, images)
    with torch.no_grad():
        outputs = module.whiten(images)[:, :12].transpose(0, 1).flatten(1)  # type: ignore[operator]
    correlation = torch.corrcoef(outputs)
    assert float((correlation - torch.eye(12)).abs().max()) < 0.2


def test_weights_come_back(tmp_path: Path) -> None:
    torch.save(made("resnet9").state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(5)
    other = build(Model(name="resnet9"), CIFAR, 10)
    load_weights(other, str(tmp_path / "weights.pt"))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), made("resnet9").parameters(), strict=True))


def test_weights_of_a_wrapped_network_are_taken() -> None:
    module = made("small_cnn")
    fill(module, {f"module.{name}": tensor for name, tensor in module.state_dict().items()}, "weights.pt")


def test_weights_that_do_not_fit_are_listed() -> None:
    state = made("tutorial_net").state_dict()
    state["extra"] = state.pop("fc3.bias")
    state["fc1.weight"] = torch.zeros(3, 3)
    with pytest.raises(SpecError) as caught:
        fill(made("tutorial_net"), state, "weights.pt")
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "weights.pt: lacks tensors of the network: fc3.bias",
        "weights.pt: holds tensors that the network has not: extra",
        "weights.pt: holds tensors of another shape: fc1.weight 3×3, not 120×400",
    ]


@pytest.mark.parametrize("content", [b"", b"not a file of torch's"])
def test_a_foreign_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"it is damaged, or no state_dict that torch\.save wrote"):
        load_weights(made("small_cnn"), str(tmp_path / "weights.pt"))
    with pytest.raises(UsageError, match="there is no such file"):
        load_weights(made("small_cnn"), str(tmp_path / "none.pt"))


def test_facts_count_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = made("tutorial_net")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    facts = model_facts(module, CIFAR)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *CIFAR))
    assert facts.flops_per_image == counter.get_total_flops()
    assert facts.parameters == 62_006
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
