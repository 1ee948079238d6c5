"""resnet9 takes any image size and channel count, has nine layers with weights of rank two or more, and learns."""

import pytest
import torch
from torch import nn

from job.models.resnet import WIDTH, build

SHAPES = [(3, 32, 32), (1, 8, 8), (1, 28, 28), (3, 64, 64), (3, 33, 47), (1, 1, 1), (4, 5, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_gives_one_logit_a_class(shape: tuple[int, int, int]) -> None:
    module = build(shape, classes=7)
    assert module(torch.randn(2, *shape)).shape == (2, 7)


def test_nine_layers_and_the_width_asked_for() -> None:
    module = build((3, 32, 32), classes=10, width=8)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 9
    assert layers[0].weight.shape[0] == 8
    assert layers[-1].weight.shape == (10, 64)


def test_default_width() -> None:
    def parameters(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert parameters(build((3, 32, 32), 10)) == parameters(build((3, 32, 32), 10, WIDTH))
    assert parameters(build((3, 32, 32), 10)) < parameters(build((3, 32, 32), 10, WIDTH + 1))


@pytest.mark.parametrize(("shape", "sides"), [((3, 32, 32), [16, 8, 4, 2]), ((1, 8, 8), [4, 4, 4, 4])], ids=str)
def test_small_images_are_halved_less_often(shape: tuple[int, int, int], sides: list[int]) -> None:
    module, seen = build(shape, classes=3), []
    for name in ("stem", "conv1", "conv2", "conv3"):
        module.get_submodule(name).register_forward_hook(lambda _layer, _inputs, output: seen.append(output.shape[-1]))
    module(torch.randn(2, *shape))
    assert seen == sides


def test_an_image_is_judged_alone_when_evaluating() -> None:
    torch.manual_seed(0)
    module = build((3, 32, 32), classes=10).eval()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(module(images)[:1], module(images[:1]))


def test_memory_layout_changes_nothing() -> None:
    torch.manual_seed(0)
    module, images = build((3, 32, 32), classes=10), torch.randn(4, 3, 32, 32)
    expected = module(images)
    layout = torch.channels_last
    placed = module.to(memory_format=layout)
    torch.testing.assert_close(placed(images.to(memory_format=layout)), expected, rtol=1e-4, atol=1e-5)


def test_learns_to_tell_two_kinds_of_stripes() -> None:
    torch.manual_seed(0)
    module = build((1, 16, 16), classes=2, width=4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    stripes = torch.arange(16).remainder(2).float().expand(16, 16)
    labels = torch.arange(32) % 2
    clean = torch.stack([stripes, stripes.T])[labels].unsqueeze(1)
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(clean + 0.3 * torch.randn_like(clean)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert (module.eval()(clean).argmax(1) == labels).all()
