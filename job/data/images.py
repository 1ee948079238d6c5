"""Images as a data set holds them, wherever the pixels are: an array, a choice from one, or files yet to be decoded.

An `Images` is indexed like an array of (N, H, W, C) uint8 by a number, a slice or an array of places; what comes back
is always an array. Choosing some of them copies nothing.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Images(Protocol):
    """What the loader, evaluation and report need of images; numpy arrays have it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Any: ...


@dataclass(frozen=True)
class Chosen:
    """Some of `below`, in the order of `places`."""

    below: Images
    places: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.places), *self.below.shape[1:])

    @property
    def nbytes(self) -> int:
        return len(self.places) * int(np.prod(self.below.shape[1:]))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any, /) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.below[self.places[place]]
        return found


def choose(images: Images, places: NDArray[np.int64]) -> Images:
    """Those at `places`; a choice from a choice is one choice."""
    if isinstance(images, Chosen):
        return Chosen(images.below, images.places[places])
    if len(places) == len(images) and np.array_equal(places, np.arange(len(images))):
        return images
    return Chosen(images, places)


def foundation(images: Images) -> tuple[Images, NDArray[np.int64] | None]:
    """What a choice is made from, and which of it; None: all."""
    return (images.below, images.places) if isinstance(images, Chosen) else (images, None)
