"""A method on a backbone, small images, and comparisons of scores: what the contract's checks and tests work with."""

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
from anomaly_bench.hardware.torch_setup import compute_exactly
from anomaly_bench.protocol import Scores, TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import fit_method
from anomaly_bench.runs.runner import without_unused_backbone

TRAINING, BATCH = 24, 4  # images
EPOCHS = 4  # of a method that trains
READS_ALL = "mahalanobis_ad"  # the method of a setup whose backbone is checked at all of its levels


@dataclass(frozen=True)
class Setup:
    """A method on a backbone.

    Attributes:
        method, backbone: their names; a method that has `epochs` trains 4, unless an override says another number.
        overrides: further keys, as on the command line.
        folders: of one's own YAML.
        device: where all of it runs.
        side: pixels of the images, for a backbone that does not take 64.
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
        made = make_backbone(self.config, find_weights(self.config), self.config["precision"])
        return made if torch.get_default_device().type == "meta" else made.to(self.device)

    def shapes(self, size: tuple[int, int] | None = None) -> list[tuple[int, int, int]]:
        """(C, h, w) of what `build` is told of (H, W) images; None: of the contract's."""
        return list(self.network.shapes(size or (self.side, self.side)))

    def new(self) -> Any:
        """A method that has not been built."""
        return make_method(self.config["method"], self.network)

    def fit(self, method: Any, normals: TrainingSet | None = None) -> Any:
        """The method, built and fitted."""
        normals = self.normals() if normals is None else normals
        fit_method(method, self.shapes(normals.size), normals, seed=0)
        return method

    def fitted(self, normals: TrainingSet | None = None) -> Any:
        """A new method, built and fitted."""
        return self.fit(self.new(), normals)

    @functools.cached_property
    def one(self) -> Any:
        """One fitted method that several checks look at."""
        return self.fitted()

    def normals(self, pixels: NDArray[np.uint8] | None = None) -> TrainingSet:
        """TRAINING images to fit on."""
        return TrainingSet("contract", pictures(TRAINING, side=self.side) if pixels is None else pixels, self.device)

    def new_images(self) -> Tensor:
        return new_images(self.side).to(self.device)


def pictures(count: int, first: int = 0, side: int = 64) -> NDArray[np.uint8]:
    """(count, side, side, 3): a soft grating with noise, another for each number."""
    rows, columns = np.mgrid[:side, :side]
    made = []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin((columns + rows / 3) / 4 + random.uniform(-0.2, 0.2)) * 40 + 128
        made.append(wave[..., None] + random.normal(0, 6, (side, side, 3)))
    return np.stack(made).clip(0, 255).astype(np.uint8)


def new_images(side: int = 64) -> Tensor:
    """(BATCH, 3, side, side) that no method was fitted on."""
    return to_tensor(pictures(BATCH, 1000, side))


def pick(scores: Scores, order: Tensor) -> Scores:
    return Scores(scores.image[order], None if scores.map is None else scores.map[order])


def assert_equal(found: Scores, expected: Scores, advice: str) -> None:
    """The same bits."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)), advice


def assert_close(found: Scores, expected: Scores, advice: str) -> None:
    """Within 1e-4 of the expected map's range (of the image scores' size where there is no map)."""
    span = expected.image.abs().max() if expected.map is None else expected.map.max() - expected.map.min()
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            off = (a - b).abs().max()
            assert off <= 1e-4 * span, f"{advice}; off by {float(off / span):.1e} of the scores' range"
