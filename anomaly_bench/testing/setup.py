"""Fixtures for contract checks and tests: a method on a backbone, small images, and comparisons of scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_bench.backbones.build import find_weights, make_backbone, make_method
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import without_unused_backbone
from anomaly_bench.hardware.torch_setup import compute_exactly
from anomaly_bench.protocol import Scores, TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.testing.training_checks import Training, watch

TRAINING, BATCH = 24, 4  # images
EPOCHS = 4  # for methods that train
READS_ALL = "mahalanobis_ad"  # a method that reads all levels, for checking a backbone


@dataclass(frozen=True)
class Setup:
    """A method on a backbone.

    Attributes:
        method, backbone: their names; a method with `epochs` trains for 4, unless overridden.
        overrides: further keys, as on the command line.
        folders: folders of user YAML files.
        device: where everything runs.
        side: image side in pixels, for a backbone that does not support 64.
    """

    method: str
    backbone: str = "lite0"
    overrides: tuple[str, ...] = ()
    folders: Sequence[Path] = ()
    device: str = "cpu"
    side: int = 64

    @functools.cached_property
    def config(self) -> Any:
        words = [f"method={self.method}", f"backbone={self.backbone}", *self.overrides]
        config = compose("config", words, self.folders)
        if "epochs" in config["method"] and not any(word.startswith("method.epochs=") for word in self.overrides):
            config["method"]["epochs"] = EPOCHS
        return without_unused_backbone(config)

    @functools.cached_property
    def network(self) -> Any:
        compute_exactly()
        network = make_backbone(self.config, find_weights(self.config), self.config["precision"])
        return network if torch.get_default_device().type == "meta" else network.to(self.device)

    def shapes(self, size: tuple[int, int] | None = None) -> list[tuple[int, int, int]]:
        """The (C, h, w) shapes passed to `build` for (H, W) images; None: the contract's images."""
        channels = [1] if self.plane == "depth" else []  # else 3, as of any network
        return list(self.network.shapes(size or (self.side, self.side), *channels))

    def new(self, **resolved: Any) -> Any:
        """A new method, not yet built; `resolved`: what another one's fit chose, as in a saved model."""
        return make_method({**self.config["method"], **resolved}, self.network)

    def fit(self, method: Any, normals: TrainingSet | None = None) -> Any:
        """Build and fit the method."""
        normals = self.normals() if normals is None else normals
        fit_method(method, self.shapes(normals.size), normals, seed=0)
        return method

    def fitted(self, normals: TrainingSet | None = None) -> Any:
        """A new method, built and fitted."""
        return self.fit(self.new(), normals)

    @functools.cached_property
    def pixels(self) -> NDArray[Any]:
        """What `one` is fitted on."""
        return self.pictures(TRAINING)

    def pictures(self, count: int, first: int = 0) -> NDArray[Any]:
        """(count, side, side, C) images of the planes that the method reads: see `pictures` and `scans`."""
        if self.plane == "rgb":
            return pictures(count, first, self.side)
        return scans(self.plane, count, first, self.side)

    @property
    def plane(self) -> str:
        """What the method reads of the images: "rgb", "depth" or "xyz"."""
        plane: str = self.config["method"].get("planes", ["rgb"])[0]
        return plane

    def opposite(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in negative, or scans with hills for valleys, half a metre away."""
        if self.plane == "rgb":
            return 1 - images
        depth = images[:, -1:]
        return images * torch.where(depth > 0, (1 - depth) / depth.clamp(min=1e-6), 0.0)

    def spoilt(self, images: Tensor, spot: slice) -> Tensor:
        """The images with a red square, or the scans with one that is raised by 3 centimetres."""
        changed = images.clone()
        if self.plane == "rgb":
            changed[:, :, spot, spot] = torch.tensor([1.0, 0.0, 0.0], device=images.device).view(3, 1, 1)
        else:
            changed[:, :, spot, spot] *= 0.94
        return changed

    @functools.cached_property
    def watched(self) -> tuple[Any, Training]:
        """A fitted method and what its training did."""
        with watch() as training:
            return self.fitted(self.normals(self.pixels)), training

    @property
    def one(self) -> Any:
        """A fitted method shared by several checks."""
        return self.watched[0]

    @property
    def training(self) -> Training:
        """The training of `one`."""
        return self.watched[1]

    def normals(self, pixels: NDArray[Any] | None = None) -> TrainingSet:
        """A training set, by default of TRAINING images."""
        return TrainingSet("contract", self.pictures(TRAINING) if pixels is None else pixels, self.device)

    def new_images(self) -> Tensor:
        """(BATCH, C, side, side) images not used for fitting."""
        return to_tensor(self.pictures(BATCH, 1000), self.device)


def pictures(count: int, first: int = 0, side: int = 64) -> NDArray[np.uint8]:
    """(count, side, side, 3): smooth gratings with noise, a different one for each number."""
    rows, columns = np.mgrid[:side, :side]
    images = []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin((columns + rows / 3) / 4 + random.uniform(-0.2, 0.2)) * 40 + 128
        images.append(wave[..., None] + random.normal(0, 6, (side, side, 3)))
    return np.stack(images).clip(0, 255).astype(np.uint8)


def scans(plane: str, count: int, first: int = 0, side: int = 64) -> NDArray[np.float32]:
    """(count, side, side, 3 or 1): gratings in relief, half a metre before a pinhole camera; "xyz" or its "depth" z.

    Some pixels have no value.
    """
    relief = pictures(count, first, side)[..., :1].astype(np.float32) / 255 - 0.5
    depth: NDArray[np.float32] = (0.5 + 0.1 * relief).astype(np.float32)
    depth[:, :2, :2] = 0
    if plane == "depth":
        return depth
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    points = np.concatenate([depth * columns[..., None], depth * rows[..., None], depth], axis=-1)
    return points.astype(np.float32)


def new_images(side: int = 64) -> Tensor:
    """(BATCH, 3, side, side) images not used for fitting."""
    return to_tensor(pictures(BATCH, 1000, side))


def pick(scores: Scores, order: Tensor) -> Scores:
    return Scores(scores.image[order], None if scores.map is None else scores.map[order])


def assert_equal(found: Scores, expected: Scores, advice: str) -> None:
    """Assert bit-identical scores."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)), advice


def assert_close(found: Scores, expected: Scores, advice: str) -> None:
    """Assert a difference below 1e-4 of the expected map's range (without maps: of the largest image score)."""
    span = expected.image.abs().max() if expected.map is None else expected.map.max() - expected.map.min()
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            error = (a - b).abs().max()
            assert error <= 1e-4 * span, f"{advice}; off by {float(error / span):.1e} of the scores' range"
