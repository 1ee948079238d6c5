"""Augmentation is pure: it follows from seed, epoch and index, keeps the memory format, and moves whole images only."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from job.data.augment import Moves, alternating, augment, draw
from job.errors import UsageError
from job.spec.schema import Augment


def images(count: int = 6, side: int = 8) -> Tensor:
    return torch.arange(count * 3 * side * side, dtype=torch.float32).view(count, 3, side, side)


def changed(spec: Augment, batch: Tensor, seed: int = 0, epoch: int = 0) -> Tensor:
    return augment(batch, moves(spec, batch, seed, epoch), spec.cutout)


def moves(spec: Augment, batch: Tensor, seed: int = 0, epoch: int = 0) -> Moves:
    return draw(spec, (batch.shape[2], batch.shape[3]), seed, epoch, np.arange(len(batch)))


@given(st.booleans(), st.integers(0, 4), st.integers(0, 5), st.integers(0, 100))
def test_the_same_position_the_same_batch(flip: bool, padding: int, cutout: int, seed: int) -> None:
    spec, batch = Augment(flip=flip, crop_padding=padding, cutout=cutout), images()
    before = batch.clone()
    found = changed(spec, batch, seed)
    assert found.shape == batch.shape
    assert torch.equal(found, changed(spec, batch, seed))
    assert torch.equal(batch, before), "the input stays as it is"
    nhwc = changed(spec, batch.contiguous(memory_format=torch.channels_last), seed)
    assert torch.equal(found, nhwc)
    assert nhwc.is_contiguous(memory_format=torch.channels_last)


def test_a_flip_mirrors_about_half() -> None:
    batch = images(400, 4)
    found = changed(Augment(flip=True), batch)
    kept = [torch.equal(a, b) for a, b in zip(found, batch, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, batch, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert 150 < sum(mirrored) < 250


def test_alternating_shows_both_sides_in_two_epochs() -> None:
    places = np.arange(500)
    first, second, third = (alternating(places, epoch, seed=1) for epoch in range(3))
    assert bool((first ^ second).all())
    assert torch.equal(first, third)
    assert 200 < int(first.sum()) < 300
    assert not torch.equal(first, alternating(places, 0, seed=2))


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    batch = images(50, 6)
    found = changed(Augment(crop_padding=2), batch)
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="reflect")
    for image, wide in zip(found, padded, strict=True):
        windows = [wide[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, window) for window in windows)


def test_cutout_blanks_a_square() -> None:
    found = changed(Augment(cutout=3), torch.ones(200, 3, 9, 9))
    blank = (found == 0).sum((1, 2, 3)) // 3
    assert int(blank.max()) == 9
    assert int(blank.min()) >= 4  # a corner is the least that can be left
    assert bool(((found == 0).any(1) == (found == 0).all(1)).all()), "all channels alike"


def test_padding_wider_than_the_image_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"augment\.crop_padding: 8 pixels cannot be reflected in images that are 8 wide"
    ):
        changed(Augment(crop_padding=8), images())


def test_nothing_asked_nothing_done() -> None:
    batch = images()
    assert changed(Augment(), batch) is batch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 9), (8, 4)])
def test_flip_and_crop_together_in_images_that_are_not_square(channels: int, shape: tuple[int, int]) -> None:
    batch = torch.randn(20, channels, *shape)
    height, width = shape
    spec = Augment(flip=True, crop_padding=2)
    drawn = moves(spec, batch, seed=3)
    assert drawn.flips is not None
    assert drawn.shifts is not None
    down, right = drawn.shifts + 2
    mirrored = torch.where(drawn.flips.view(-1, 1, 1, 1), batch.flip(3), batch)
    padded = torch.nn.functional.pad(mirrored, (2, 2, 2, 2), mode="reflect")
    for layout in (torch.contiguous_format, torch.channels_last):
        found = changed(spec, batch.contiguous(memory_format=layout), seed=3)
        for k in range(20):
            window = padded[k, :, down[k] : down[k] + height, right[k] : right[k] + width]
            assert torch.equal(found[k], window)


def test_what_a_cutout_leaves_is_unchanged() -> None:
    batch = torch.randn(30, 3, 7, 7)
    found = changed(Augment(cutout=4), batch)
    assert bool(((found == batch) | (found == 0)).all())
    for blank in (found == 0).any(1):
        rows, columns = blank.any(1).nonzero(), blank.any(0).nonzero()
        box = blank[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert bool(box.all()), "one rectangle: what lies outside does not come in on the other side"
        assert max(box.shape) <= 4


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_two_flips_are_none(seed: int, epoch: int) -> None:
    batch, spec, places = images(9), Augment(flip="alternating"), np.arange(40, 49)

    def once(batch: Tensor, epoch: int) -> Tensor:
        return augment(batch, draw(spec, (8, 8), seed, epoch, places))

    assert torch.equal(once(once(batch, epoch), epoch), batch)
    assert torch.equal(once(once(batch, epoch), epoch + 1), batch.flip(3)), "each image once in two epochs"


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.permutations(range(30)), st.integers(1, 29))
def test_an_image_is_changed_alike_whatever_its_batch(seed: int, epoch: int, order: list[int], cut: int) -> None:
    spec, places = Augment(flip=True, crop_padding=3, cutout=2), np.array(order)
    whole = draw(spec, (8, 9), seed, epoch, places)
    parts = [draw(spec, (8, 9), seed, epoch, part) for part in (places[:cut], places[cut:])]
    for name in ("flips", "shifts", "centres"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts], -1))
        assert torch.equal(getattr(whole.part(slice(cut)), name), getattr(parts[0], name))


def test_every_shift_and_centre_comes_as_often() -> None:
    drawn = draw(Augment(crop_padding=2, cutout=3), (6, 9), 0, 0, np.arange(20_000))
    assert drawn.shifts is not None
    assert drawn.centres is not None
    for axis, windows in zip(drawn.shifts, (5, 5), strict=True):
        assert np.abs(np.bincount(axis.numpy() + 2, minlength=windows) - 4000).max() < 250
    for axis, side in zip(drawn.centres, (6, 9), strict=True):
        assert np.abs(np.bincount(axis.numpy(), minlength=side) - 20_000 / side).max() < 250
    pairs = torch.bincount((drawn.shifts[0] + 2) * 5 + drawn.shifts[1] + 2)
    assert int((pairs - 800).abs().max()) < 150, "rows and columns are drawn independently"
