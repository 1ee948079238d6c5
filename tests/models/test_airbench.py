"""The speed net's peculiarities: whitening, identity at the start, biases alone in the norms, any sensible size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from job.errors import UsageError
from job.models.airbench import Airbench, build, whitening


def images(count: int = 64, channels: int = 3, side: int = 12) -> torch.Tensor:
    """Smooth pictures, whose neighbouring pixels go together as in photographs."""
    noise = torch.randn(count, channels, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, stride=1) + 0.2 * noise[:, :1, :side, :side] + 0.5


@pytest.fixture
def net() -> Airbench:
    torch.manual_seed(0)
    return build((3, 12, 12), 5, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_variance_one(channels: int) -> None:
    pixels = images(channels=channels)
    outputs = F.conv2d(pixels, whitening(pixels)).transpose(0, 1).flatten(1)  # (4C, all places)
    patches = F.unfold(pixels, 2).transpose(0, 1).flatten(1)
    before, after = torch.cov(patches), torch.cov(outputs)
    assert (before - torch.diag(before.diag())).abs().max() > 0.05, "there was something to whiten"
    assert torch.allclose(after, torch.diag(after.diag()), atol=1e-3)
    assert after.diag().min() > 0.9
    assert after.diag().max() < 1.001


def test_the_statistics_do_not_depend_on_how_they_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whitening(images()).abs()
    monkeypatch.setattr("job.models.airbench.STATISTICS_PART", 7)
    assert torch.allclose(whole, whitening(images()).abs(), atol=1e-3)


def test_the_first_layer_is_set_by_the_data_and_stays(net: Airbench) -> None:
    net.initialise_from_data(images())
    first = net.whiten.weight
    assert torch.equal(first[:12], whitening(images()))
    assert torch.equal(first[12:], -first[:12])
    assert not first.requires_grad
    assert net.whiten.bias is not None
    assert net.whiten.bias.requires_grad
    assert not net.whiten.bias.any()


def test_flat_images_do_not_break_it(net: Airbench) -> None:
    net.initialise_from_data(torch.ones(3, 3, 12, 12))
    assert torch.isfinite(net.whiten.weight).all()


def test_convolutions_begin_as_the_identity(net: Airbench) -> None:
    second = next(layer for layer in net.groups[1].modules() if isinstance(layer, nn.Conv2d))  # 4 → 16 channels
    features = torch.randn(2, 4, 6, 6)
    outputs = second(features)
    assert torch.allclose(outputs[:, :4], features, atol=1e-6)
    assert not torch.allclose(outputs[:, 4:8], features, atol=0.1)


def test_only_the_biases_of_the_norms_learn_and_do_so_faster(net: Airbench) -> None:
    norms = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert len(norms) == 6
    assert not any(layer.weight.requires_grad for layer in norms.values())
    assert net.lr_ratios() == {f"{name}.bias": 64.0 for name in norms}
    assert net.lr_ratios().keys() <= dict(net.named_parameters()).keys()


def test_the_size_of_the_paper() -> None:
    net = build((3, 32, 32), 10, None)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.97e6, rel=0.005)
    assert net.groups(net.whiten(torch.zeros(1, 3, 32, 32))).shape == (1, 256, 3, 3)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 9), (1, 28, 28), (3, 20, 33)])
def test_forward_and_backward(shape: tuple[int, int, int]) -> None:
    net = build(shape, 7, 4)
    net.initialise_from_data(torch.randn(8, *shape))
    logits = net(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_images_too_small_are_refused_by_name() -> None:
    with pytest.raises(UsageError) as refusal:
        build((1, 8, 8), 10, None)
    assert str(refusal.value) == (
        "airbench: images of 8×8 are too small, the smallest are 9×9; set dataset.resize, for example to 32"
    )
