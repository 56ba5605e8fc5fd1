"""The shared vocabulary of datasets, methods, metrics and runs.

Shape legend, used in every docstring and trailing comment:
    N images of a set, B images of a batch, C channels, H x W pixels, h x w patches, D dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # this module is read by commands that must not import torch
    import torch
    from torch import Tensor


class Scores(NamedTuple):
    """What a method says of a batch; higher = more anomalous, on any scale."""

    image: Tensor  # (B,)
    map: Tensor | None  # (B, H, W); None: the method does not localise


@dataclass(frozen=True)
class Image:
    """One image of a task. `mask` is None for a normal image and where the dataset has no masks."""

    path: Path
    file: str  # relative to the dataset's root, with forward slashes
    defect: str | None  # the defect's folder name; None: a normal image
    mask: Path | None = None


@dataclass(frozen=True)
class Task:
    """Fit on `fit` (normal images only), be scored on each named test set; a record is one test set."""

    name: str
    group: str | None  # "textures", "objects"; None: the dataset has no groups
    fit: tuple[Image, ...]
    tests: dict[str, tuple[Image, ...]]


@dataclass(frozen=True)
class Outcome:
    """A scored test set: all that a metric may look at.

    labels (N,) bool, True = defect, from the folder; scores (N,); maps (N, H, W) or None: the method does not
    localise; masks (N, H, W) bool or None: the dataset has no masks.
    """

    labels: NDArray[np.bool_]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | None
    masks: NDArray[np.bool_] | None


class Features(Protocol):
    """A frozen network: (B, C, H, W) images in [0, 1] -> one (B, C, h, w) tensor per level."""

    def __call__(self, images: Tensor) -> list[Tensor]: ...


class Method(Protocol):
    """A method is a torch.nn.Module with these three; nothing else stands above it.

    Its parameters are the extra parameters, its persistent buffers the stored statistics, its state dict what is
    saved. The backbone is given to its constructor and is no submodule. Numbers in an attribute `facts` (a dict), if
    it has one, go to the record's `cost`.
    """

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make networks and buffers for feature levels of these (C, h, w) shapes; needs neither data nor weights."""

    def fit(self, normals: Normals) -> None:
        """Learn from normal training images only; a second call forgets the first."""

    def score(self, images: Tensor) -> Scores:
        """Scores of (B, 3, H, W) images in [0, 1]."""
        ...


@contextlib.contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A stage that nobody watches."""
    yield lambda done: None


class Normals:
    """The normal training images of one task, as a method's `fit` sees them.

    Args:
        name: the task's name, for messages.
        pixels: (N, H, W, 3) uint8, an array or a memory map.
        device: where batches are put.
        advance: called with the number of images after each batch (a progress bar).
        stage: called with a title and a total, makes another bar: `with stage("coreset", 100) as advance`.
    """

    def __init__(
        self,
        name: str,
        pixels: NDArray[np.uint8],
        device: torch.device | str = "cpu",
        advance: Callable[[int], Any] = lambda images: None,
        stage: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], Any]]] = silent,
    ) -> None:
        self.name, self.pixels, self.device = name, pixels, device
        self.advance, self.stage = advance, stage

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def images(self, batch: int) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) float32 in [0, 1], in order."""
        for start in range(0, len(self), batch):
            yield to_tensor(self.pixels[start : start + batch], self.device)
            self.advance(min(batch, len(self) - start))

    def features(self, backbone: Features, batch: int) -> Iterator[list[Tensor]]:
        """Each batch of `images` passed once through a frozen backbone."""
        for images in self.images(batch):
            yield backbone(images)


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], channels last in memory."""
    import torch

    batch = torch.from_numpy(np.array(pixels)).to(device)  # a copy: the store is read-only
    return batch.permute(0, 3, 1, 2).float().div_(255)
