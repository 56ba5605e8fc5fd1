"""The shared vocabulary of methods, metrics and runs; that of datasets is in data/dataset.py.

Shape legend, used in every docstring and trailing comment:
    N images of a set, B images of a batch, C channels, H x W pixels, h x w patches, D dimensions.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # this module is read by commands that must not import torch
    import torch
    from torch import Tensor

    Transform = Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, 3, H, W) images


class Scores(NamedTuple):
    """What a method says of a batch; higher = more anomalous, on any scale."""

    image: Tensor  # (B,)
    map: Tensor | None  # (B, H, W); None: the method does not localise


Maps = NDArray[np.floating[Any]] | Sequence[NDArray[np.floating[Any]]]  # (N, H, W), or N of unlike (H, W)
Masks = NDArray[np.bool_] | Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Outcome:
    """A scored test set: all that a metric may look at.

    labels (N,) bool, True = defect, from the folder; scores (N,); maps (N, H, W) or None: the method does not
    localise; masks (N, H, W) bool or None: the dataset has no masks. Images of unlike sizes are a list of (H, W).
    """

    labels: NDArray[np.bool_]
    scores: NDArray[np.floating[Any]]
    maps: Maps | None
    masks: Masks | None


class Features(Protocol):
    """A frozen network: (B, C, H, W) images in [0, 1] -> one (B, C, h, w) tensor per level."""

    def __call__(self, images: Tensor) -> list[Tensor]: ...


class Method(Protocol):
    """A method is a torch.nn.Module with these three, called in this order.

    The runner sets the seed, calls `build` with the shapes of the backbone's levels, moves the method to the device,
    calls `fit`, and puts it in evaluation mode. It does all of that anew for each fit, so that `fit` finds new weights
    and empty buffers. A saved model is built and filled instead of fitted.

    Its parameters are the extra parameters, its persistent buffers the stored statistics, its state dict what is
    saved. The backbone is given to its constructor and is no submodule. An attribute `facts` (a dict), if it has one,
    goes to the record's `cost`; one named `resolved` replaces arguments of the constructor in a saved model. Where its
    YAML has the key `oracle`, a method also has `oracle(images)`: with oracle=true it is given all batches of a test
    set before that is scored, to choose on them what its paper chose.
    """

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make networks and buffers for feature levels of these (C, h, w) shapes; needs neither data nor weights.

        A method without a backbone is given the (C, H, W) of the images: (3, H, W), unless its YAML names other
        `planes` than [rgb]. It refuses with a UsageError what it cannot take. What an earlier `build` made is replaced.
        """

    def fit(self, normals: TrainingSet) -> None:
        """Learn from normal training images only, on their device, what `build` has made.

        There are none where the method's YAML says `zero_shot: true` and the task has none.
        """

    def score(self, images: Tensor) -> Scores:
        """Scores of (B, C, H, W) images, 8-bit ones in [0, 1].

        Raises:
            NotFittedError: in training mode, so before `fit`; see `anomaly_bench.components.validation.check_fitted`.
        """
        ...


class Advance(Protocol):
    """Moves a progress bar on by so many, with a note such as the loss."""

    def __call__(self, done: int, note: str = "") -> None: ...


def no_progress(done: int, note: str = "") -> None:
    """The progress of a bar that nobody watches."""


def no_announcement(images: Tensor, start: int, batch: int) -> None:
    """Batches that nobody wants to know of."""


@contextlib.contextmanager
def no_stage(title: str, total: int) -> Iterator[Advance]:
    """A stage that nobody watches."""
    yield no_progress


class TrainingSet:
    """The normal training images of one task, as a method's `fit` sees them.

    Args:
        name: the task's name, for messages.
        pixels: (N, H, W, C) uint8 or float32, an array or a memory map.
        device: where batches are put.
        advance: called with the number of images after each batch (a progress bar).
        stage: called with a title and a total, makes another bar: `with stage("coreset", 100) as advance`.
        checkpoint: the file in which an unfinished training is kept; None: nowhere.
        group: the task's, such as "textures"; None: it has none.
        announce: called with each batch of `images` without a transform, the number of its first image, and `batch`.
    """

    def __init__(
        self,
        name: str,
        pixels: NDArray[Any],
        device: torch.device | str = "cpu",
        advance: Advance = no_progress,
        stage: Callable[[str, int], contextlib.AbstractContextManager[Advance]] = no_stage,
        checkpoint: Path | None = None,
        group: str | None = None,
        announce: Callable[[Tensor, int, int], object] = no_announcement,
    ) -> None:
        self.name, self.pixels, self.device, self.group, self.announce = name, pixels, device, group, announce
        self.advance, self.stage, self.checkpoint = advance, stage, checkpoint

        self.validation: TrainingSet | None = None  # normal images that the dataset holds out; None: it has none

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def images(self, batch: int, transform: Transform | None = None) -> Iterator[Tensor]:
        """Batches (B, C, H, W) float32, of 8-bit images in [0, 1], in order; `transform` may change each."""
        for start in range(0, len(self), batch):
            images = to_tensor(self.pixels[start : start + batch], self.device)
            if transform is None:
                self.announce(images, start, batch)
            yield images if transform is None else transform(images)
            self.advance(min(batch, len(self) - start))

    def select(self, numbers: Tensor) -> Tensor:
        """(B, C, H, W) float32, of 8-bit images in [0, 1]: the images of these numbers (B,)."""
        return to_tensor(self.pixels[numbers.numpy()], self.device)

    def features(self, backbone: Features, batch: int, transform: Transform | None = None) -> Iterator[list[Tensor]]:
        """Each batch of `images` passed once through a frozen backbone."""
        for images in self.images(batch, transform):
            yield backbone(images)

    def feature_array(self, backbone: Features, batch: int, transform: Transform | None = None) -> FeatureArray:
        """The features of all images, passed once through a frozen backbone, for as many epochs as one likes."""
        array: FeatureArray | None = None
        start = 0
        for levels in self.features(backbone, batch, transform):
            if array is None:
                array = FeatureArray([(len(self), *level.shape[1:]) for level in levels], self.device)
            for whole, level in zip(array.levels, levels, strict=True):
                whole[start : start + len(level)] = level.cpu()
            start += len(levels[0])
        assert array is not None, "a task has at least one training image"
        return array

    def split(self, fraction: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
        """The images in two: all but a share of them, and that share, at least one image each, drawn by the seed.

        Raises:
            ValueError: fewer than two images.
        """
        if len(self) < 2:
            raise ValueError(f"{self.name}: {len(self)} training image; expected at least 2, as some are held out")
        count = min(max(1, round(fraction * len(self))), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        others, rest = np.sort(order[:count]), np.sort(order[count:])
        return self.part(rest), self.part(others)

    def part(self, numbers: NDArray[np.intp]) -> TrainingSet:
        """Some of the images, by their numbers."""
        return TrainingSet(
            self.name, self.pixels[numbers], self.device, self.advance, self.stage, self.checkpoint, self.group
        )


class FeatureArray:
    """Features (N, C, h, w) of each level, channels last, in memory or, where they are large, in a temporary file.

    Args:
        shapes: (N, C, h, w) of each level.
        device: where the features that are asked for are put.
    """

    LARGE = 4_000_000_000  # bytes

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device | str) -> None:
        import torch

        self.device = device
        lying = [(count, height, width, channels) for count, channels, height, width in shapes]
        if 4 * sum(int(np.prod(shape)) for shape in lying) <= self.LARGE:
            levels = [torch.empty(shape) for shape in lying]
        else:
            files = [tempfile.TemporaryFile(prefix="anomaly-bench-") for _ in lying]  # noqa: SIM115 (the map holds it)
            maps = [np.memmap(file, np.float32, "w+", shape=shape) for file, shape in zip(files, lying, strict=True)]
            levels = [torch.from_numpy(array) for array in maps]
        self.levels = [level.permute(0, 3, 1, 2) for level in levels]

    def __len__(self) -> int:
        return len(self.levels[0])

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) of each level."""
        return [(level.shape[1], level.shape[2], level.shape[3]) for level in self.levels]

    def __getitem__(self, chosen: Tensor | slice) -> list[Tensor]:
        """The levels (B, C, h, w), channels last, of some images, by their numbers."""
        return [level[chosen].to(self.device) for level in self.levels]


if not TYPE_CHECKING:  # a type checker reports unknown names itself

    def __getattr__(name: str) -> object:
        """Raise ImportError for what had another name."""
        if name == "Normals":
            raise ImportError("anomaly_bench.protocol.Normals is named TrainingSet now: change the import")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def to_tensor(pixels: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) float32, channels last in memory: uint8 in [0, 1], floats as they are."""
    import torch

    batch = torch.from_numpy(np.array(pixels)).to(device)  # a copy: the store is read-only
    images = batch.permute(0, 3, 1, 2).float()
    return images.div_(255) if batch.dtype == torch.uint8 else images
