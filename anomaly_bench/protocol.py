"""The types shared by methods, metrics and runs; those of datasets are in data/dataset.py.

Shape legend for all docstrings and trailing comments:
    N images in a set, B images in a batch, C channels, H x W pixels, h x w patches, D dimensions.
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

if TYPE_CHECKING:  # commands that must not import torch import this module
    import torch
    from torch import Tensor

    Transform = Callable[[Tensor], Tensor]  # (B, 3, H, W) images -> (B, 3, H, W) images


class Scores(NamedTuple):
    """A method's output for a batch; higher = more anomalous, on any scale."""

    image: Tensor  # (B,)
    map: Tensor | None  # (B, H, W); None: the method does not localise


Maps = NDArray[np.floating[Any]] | Sequence[NDArray[np.floating[Any]]]  # (N, H, W), or N of different (H, W)
Masks = NDArray[np.bool_] | Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Outcome:
    """A scored test set: everything that a metric may use.

    labels (N,) bool, True = defect, from the folder; scores (N,); maps (N, H, W) or None: the method does not
    localise; masks (N, H, W) bool or None: the dataset has no masks. Images of different sizes form a list of (H, W).
    Thresholds are of held-out normal images, see `metrics.thresholds`; None: there are none.
    """

    labels: NDArray[np.bool_]
    scores: NDArray[np.floating[Any]]
    maps: Maps | None
    masks: Masks | None
    image_threshold: float | None = None
    pixel_threshold: float | None = None


class Features(Protocol):
    """A frozen network: (B, C, H, W) images in [0, 1] -> one (B, C, h, w) tensor per level."""

    def __call__(self, images: Tensor) -> list[Tensor]: ...


class Method(Protocol):
    """A method is a torch.nn.Module with these three methods, called in this order.

    The runner sets the seed, calls `build` with the shapes of the backbone's levels, moves the method to the device,
    calls `fit`, and switches to evaluation mode. It repeats all of this for each fit, so `fit` always starts from new
    weights and empty buffers. A saved model is built and loaded instead of fitted.

    Its parameters count as extra parameters, its persistent buffers as stored statistics; its state dict is saved. The
    backbone is passed to the constructor and is not a submodule. An optional attribute `facts` (a dict) is stored in
    the record's `cost`, and its key "training", made by `components.training.Loop`, in `training`. An optional
    `resolved` replaces constructor arguments in a saved model. An optional `fit_bytes(images)` says, after `build`, how
    many bytes fitting on so many images takes beside the statistics, such as for a memory bank. If its YAML has the key
    `oracle`, the method also has `oracle(images)`: with oracle=true it receives all batches of a test set before
    scoring, to choose on them what its paper chose on the test set.
    """

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create networks and buffers for feature levels of these (C, h, w) shapes; needs neither data nor weights.

        A method without a backbone receives the images' (C, H, W): (3, H, W), unless its YAML sets `planes` other than
        [rgb]. It raises a UsageError for unsupported shapes. A second call replaces what the first one created.
        """

    def fit(self, normals: TrainingSet) -> None:
        """Train what `build` created, on the set's device, from normal training images only.

        The set may be empty if the method's YAML says `zero_shot: true`.
        """

    def score(self, images: Tensor) -> Scores:
        """Score (B, C, H, W) images; 8-bit images are scaled to [0, 1].

        Raises:
            NotFittedError: called before `fit`; see `anomaly_bench.components.validation.check_fitted`.
        """
        ...


class Advance(Protocol):
    """Advances a progress bar by `done`, with a note such as the loss."""

    def __call__(self, done: int, note: str = "") -> None: ...


def no_progress(done: int, note: str = "") -> None:
    """Ignores progress."""


def no_announcement(images: Tensor, start: int, batch: int) -> None:
    """Ignores announced batches."""


@contextlib.contextmanager
def no_stage(title: str, total: int) -> Iterator[Advance]:
    """A stage without a progress bar."""
    yield no_progress


class TrainingSet:
    """The normal training images of one task, as passed to a method's `fit`.

    Args:
        name: the task's name, for messages.
        pixels: (N, H, W, C) uint8 or float32, an array or a memory map.
        device: where batches are placed.
        advance: called with the number of images after each batch (a progress bar).
        stage: opens another progress bar with a title and a total: `with stage("coreset", 100) as advance`.
        checkpoint: file for the state of unfinished training; None: no checkpoints.
        group: the task's group, such as "textures"; None: none.
        announce: called with each untransformed batch of `images`, the index of its first image, and the batch size.
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

        self.validation: TrainingSet | None = None  # normal images that the dataset holds out, if any
        self.steps: int | None = None  # of the optimiser, by budget=; None: the method's own schedule

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def images(self, batch: int, transform: Transform | None = None) -> Iterator[Tensor]:
        """Batches (B, C, H, W) float32 in order, 8-bit images scaled to [0, 1], each passed through `transform`."""
        for start in range(0, len(self), batch):
            images = to_tensor(self.pixels[start : start + batch], self.device)
            if transform is None:
                self.announce(images, start, batch)
            yield images if transform is None else transform(images)
            self.advance(min(batch, len(self) - start))

    def select(self, numbers: Tensor) -> Tensor:
        """The images with these indices (B,): (B, C, H, W) float32, 8-bit images scaled to [0, 1]."""
        return to_tensor(self.pixels[numbers.numpy()], self.device)

    def features(self, backbone: Features, batch: int, transform: Transform | None = None) -> Iterator[list[Tensor]]:
        """Pass each batch of `images` once through a frozen backbone."""
        for images in self.images(batch, transform):
            yield backbone(images)

    def feature_array(self, backbone: Features, batch: int, transform: Transform | None = None) -> FeatureArray:
        """The features of all images from one pass through a frozen backbone, for use in any number of epochs."""
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
        """Split at random into a training part and a held-out `fraction`, each with at least one image.

        Raises:
            ValueError: fewer than two images.
        """
        if len(self) < 2:
            raise ValueError(f"{self.name}: {len(self)} training image; expected at least 2, as some are held out")
        count = min(max(1, round(fraction * len(self))), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        held_out, rest = np.sort(order[:count]), np.sort(order[count:])
        return self.part(rest), self.part(held_out)

    def hold_out(self, fraction: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
        """All images and the dataset's validation set, or a `split` if it has none."""
        return self.split(fraction, seed) if self.validation is None else (self, self.validation)

    def part(self, numbers: NDArray[np.intp]) -> TrainingSet:
        """A subset of the images, by index."""
        part = TrainingSet(
            self.name, self.pixels[numbers], self.device, self.advance, self.stage, self.checkpoint, self.group
        )
        part.steps = self.steps
        return part


class FeatureArray:
    """Features (N, C, h, w) of each level, channels last, in memory or, if large, in a temporary file.

    Args:
        shapes: (N, C, h, w) of each level.
        device: where selected features are placed.
    """

    LARGE = 4_000_000_000  # bytes

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device | str) -> None:
        import torch

        self.device = device
        layouts = [(count, height, width, channels) for count, channels, height, width in shapes]
        if 4 * sum(int(np.prod(shape)) for shape in layouts) <= self.LARGE:
            levels = [torch.empty(shape) for shape in layouts]
        else:
            files = [tempfile.TemporaryFile(prefix="anomaly-bench-") for _ in layouts]  # noqa: SIM115 (kept by the map)
            maps = [np.memmap(file, np.float32, "w+", shape=shape) for file, shape in zip(files, layouts, strict=True)]
            levels = [torch.from_numpy(array) for array in maps]
        self.levels = [level.permute(0, 3, 1, 2) for level in levels]

    def __len__(self) -> int:
        return len(self.levels[0])

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) of each level."""
        return [(level.shape[1], level.shape[2], level.shape[3]) for level in self.levels]

    def __getitem__(self, chosen: Tensor | slice) -> list[Tensor]:
        """The levels (B, C, h, w), channels last, of the chosen images."""
        return [level[chosen].to(self.device) for level in self.levels]


if not TYPE_CHECKING:  # type checkers report unknown names themselves

    def __getattr__(name: str) -> object:
        """Raise ImportError for renamed classes."""
        if name == "Normals":
            raise ImportError("anomaly_bench.protocol.Normals was renamed TrainingSet: change the import")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def to_tensor(pixels: NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) float32, channels last in memory; uint8 is scaled to [0, 1], floats are kept."""
    import torch

    batch = torch.from_numpy(np.array(pixels)).to(device)  # a copy: the store is read-only
    images = batch.permute(0, 3, 1, 2).float()
    return images.div_(255) if batch.dtype == torch.uint8 else images
