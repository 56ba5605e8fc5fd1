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
        return list(self.network.shapes(size or (self.side, self.side)))

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
    def pixels(self) -> NDArray[np.uint8]:
        """What `one` is fitted on."""
        return pictures(TRAINING, side=self.side)

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

    def normals(self, pixels: NDArray[np.uint8] | None = None) -> TrainingSet:
        """A training set, by default of TRAINING images."""
        return TrainingSet("contract", pictures(TRAINING, side=self.side) if pixels is None else pixels, self.device)

    def new_images(self) -> Tensor:
        return new_images(self.side).to(self.device)


def pictures(count: int, first: int = 0, side: int = 64) -> NDArray[np.uint8]:
    """(count, side, side, 3): smooth gratings with noise, a different one for each number."""
    rows, columns = np.mgrid[:side, :side]
    images = []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin((columns + rows / 3) / 4 + random.uniform(-0.2, 0.2)) * 40 + 128
        images.append(wave[..., None] + random.normal(0, 6, (side, side, 3)))
    return np.stack(images).clip(0, 255).astype(np.uint8)


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
