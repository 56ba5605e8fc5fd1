"""Texture inspection: Gaussian mixtures of grey patches at four scales.

Tobias Böttger, Markus Ulrich; 2016, "Real-time texture error detection on textured surfaces with compressed sensing".
Here as the baseline of that name in the MVTec AD paper (Paul Bergmann, Michael Fauser, David Sattlegger, Carsten
Steger; CVPR 2019, section 4.1.4), which used HALCON's texture_inspection_model, on textures only: the patch of 7 x 7
grey values around each pixel, at each level of a pyramid, scored by its negative log-likelihood under a mixture of
Gaussians.

A reconstruction of a closed program. HALCON thresholds each level, intersects the regions of adjacent levels and unites
the intersections. The map here is the continuous form of that: with n_l the negative log-likelihood minus the level's
threshold, in the level's standard deviations, it is the maximum over l of min(n_l, n_(l+1)); thresholding it at c gives
the union of the intersections at thresholds raised by c. Defects that show at the coarsest level only, as most on close
views of leather, are lost to that rule.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.gaussian import whiten_
from anomaly_bench.components.grey import to_grey
from anomaly_bench.components.neighbours import take_row_counts
from anomaly_bench.components.patches import cut_patches
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware.torch_setup import float64_device
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class TextureInspection(nn.Module):
    """Texture inspection.

    Args:
        seed: for drawing images and patches, and for the mixtures.
        images: drawn from the training images; all if they are fewer.
        scales: levels of the pyramid, each half as large as the one before.
        side: of a patch in pixels, odd.
        patches: of each level that its mixture is fitted to; four fifths of all where these are fewer.
        held_out: further patches, which choose the number of Gaussians; the last fifth where they are fewer.
        gaussians: numbers of Gaussians to choose from.
        rounds, gain: EM ends after so many rounds, or when the mean log-likelihood gains less than `gain` in one.
        ridge: added to the diagonals of covariances, as a share of the patches' mean variance.
        quantile: of the negative log-likelihood of training patches that is a level's threshold.
        force: accept objects.
    """

    mixtures: nn.ModuleList  # one per level

    def __init__(
        self,
        seed: int,
        images: int = 10,
        scales: int = 4,
        side: int = 7,
        patches: int = 20_000,
        held_out: int = 5_000,
        gaussians: Sequence[int] = (1, 2, 5, 10),
        rounds: int = 100,
        gain: float = 1e-3,
        ridge: float = 1e-4,
        quantile: float = 0.999,
        force: bool = False,
    ) -> None:
        if side < 1 or side % 2 == 0 or scales < 1:
            raise UsageError(f"method.side={side}, method.scales={scales}: expected an odd side, and at least 1 scale")
        if not gaussians or min(gaussians) < 1:
            raise UsageError(f"method.gaussians={list(gaussians)}: expected numbers of at least 1, such as [1,2,5,10]")
        super().__init__()
        self.seed, self.images, self.scales, self.side = seed, images, scales, side
        self.patches, self.held_out, self.gaussians = patches, held_out, gaussians
        self.rounds, self.gain, self.ridge, self.quantile, self.force = rounds, gain, ridge, quantile, force

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create an empty mixture for each level of (C, H, W) images.

        Raises:
            UsageError: images whose sides cannot be halved so often, or whose last level is smaller than a patch.
        """
        size, step = shapes[0][1:], 2 ** (self.scales - 1)
        check_sides("texture_inspection", size, step)
        if min(size) // step < self.side:
            raise UsageError(
                f"level {self.scales} of {size[0]} x {size[1]} pixels is smaller than a patch of {self.side}: set "
                "input.resize to a larger size, or method.scales to a smaller number"
            )
        self.mixtures = nn.ModuleList(Mixture(self.side**2) for _ in range(self.scales))

    def fit(self, normals: TrainingSet) -> None:
        """Fit each level's mixture and threshold.

        Raises:
            ValueError: the images are objects, constant, or too few for the Gaussians.
        """
        if normals.group == "objects" and not self.force:
            raise ValueError(
                f"{normals.name} is an object: texture_inspection models patches wherever they lie, so it is for "
                "textures only, as in the MVTec AD paper; choose category=textures, or method.force=true"
            )
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers = torch.randperm(len(normals), generator=generator)[: self.images].sort().values
        for mixture, level in zip(self.mixtures, self.pyramid(normals.select(numbers)), strict=True):
            assert isinstance(mixture, Mixture)
            fitted, held_out = self.draw(level, generator)
            mixture.load_state_dict(self.choose(normals.name, fitted, held_out))
            unlikely = mixture(fitted).cpu()  # quantiles are computed in float64 on the way
            mixture.threshold.copy_(unlikely.quantile(self.quantile))
            mixture.deviation.copy_(unlikely.std(correction=0))

    def draw(self, level: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Patches (n, side^2) of the padded (N, 1, h, w) level to fit to, and others to choose on."""
        height, width = (side - self.side + 1 for side in level.shape[2:])
        total = len(level) * height * width
        drawn = torch.randperm(total, generator=generator)[: self.patches + self.held_out].to(level.device)
        places = (drawn // (height * width), drawn // width % height, drawn % width)
        patches = cut_patches(level, *places, self.side).flatten(1)
        count = min(self.patches, len(drawn) * 4 // 5)
        return patches[:count], patches[count:]

    def choose(self, name: str, fitted: Tensor, held_out: Tensor) -> dict[str, Tensor]:
        """State dict of the mixture with the best mean log-likelihood of the held-out patches."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture  # slow to import
        from threadpoolctl import threadpool_limits

        known, others = (each.cpu().double().numpy() for each in (fitted, held_out))
        if len(known) < max(2, *self.gaussians):
            raise ValueError(f"{name}: {max(self.gaussians)} Gaussians of {len(known)} patches; expected more patches")
        variance = float(known.var(axis=0).mean())
        if variance == 0:
            raise ValueError(f"{name}: the training images are constant; expected textures")
        found = []
        for count in self.gaussians:
            model = GaussianMixture(
                count, tol=self.gain, max_iter=self.rounds, reg_covar=self.ridge * variance, random_state=self.seed
            )
            with threadpool_limits(1, "openmp"), warnings.catch_warnings():
                # one thread, as its k-means adds up in the order in which threads end; `rounds` may end EM
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(known)
            found.append((model.score(others), model))
        return state(max(found, key=lambda each: each[0])[1])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> grey levels (B, 1, h, w), padded by reflection so that each pixel has its patch."""
        levels = [to_grey(images)]
        for _ in range(self.scales - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return [F.pad(level, (self.side // 2,) * 4, "reflect") for level in levels]

    def score(self, images: Tensor) -> Scores:
        """The maximum over levels of the smaller of two adjacent levels' values; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size that can be halved so often.

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that cannot be halved so often.
        """
        check_fitted(self)
        check_sides("texture_inspection", images.shape[2:], 2 ** (self.scales - 1))
        found = []
        for mixture, level in zip(self.mixtures, self.pyramid(images), strict=True):
            parts = (level,) if torch.compiler.is_compiling() else torch.split(level, 1)  # a graph has no loops
            values = torch.cat([self.novelty(mixture, part) for part in parts])
            found.append(F.interpolate(values, images.shape[2:], mode="bilinear", align_corners=False)[:, 0])
        maps = combine(found)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def novelty(self, mixture: Any, level: Tensor) -> Tensor:
        """A padded (B, 1, h, w) level -> (B, 1, h, w) values of its pixels, in the level's deviations."""
        patches = F.unfold(level, self.side).mT.flatten(0, 1)  # (B * h * w, side^2)
        values: Tensor = (mixture(patches) - mixture.threshold) / mixture.deviation
        return values.view(-1, 1, *(side - self.side + 1 for side in level.shape[2:]))


def combine(levels: Sequence[Tensor]) -> Tensor:
    """Values of the levels (B, H, W) each -> (B, H, W)."""
    pairs = [torch.minimum(fine, coarse) for fine, coarse in itertools.pairwise(levels)]
    return torch.stack(pairs or list(levels)).amax(dim=0)


class Mixture(nn.Module):
    """A mixture of K Gaussians of D values, and the threshold of its level."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    whiteners: Tensor  # (K, D, D), W with W W^T = covariance^-1
    threshold: Tensor  # ()
    deviation: Tensor  # ()

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(0))
        self.register_buffer("means", torch.empty(0, dimensions))
        self.register_buffer("whiteners", torch.empty(0, dimensions, dimensions))
        self.register_buffer("threshold", torch.empty(()))
        self.register_buffer("deviation", torch.empty(()))

    def forward(self, patches: Tensor) -> Tensor:
        """Negative log-likelihoods (n,) of (n, D) patches, computed in float64."""
        device = float64_device(patches.device)
        values, weights, means, whiteners = (
            each.to(device, torch.float64) for each in (patches, self.weights, self.means, self.whiteners)
        )
        return -log_likelihood(values, weights, means, whiteners).to(patches)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def log_likelihood(values: Tensor, weights: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
    """(n,) of (n, D) values under a mixture of K Gaussians."""
    constants = weights.log() + whiteners.diagonal(dim1=1, dim2=2).log().sum(dim=1)  # W is triangular
    constants -= values.shape[1] / 2 * math.log(2 * math.pi)
    parts = [
        constant - ((values - mean) @ whitener).square().sum(dim=1) / 2
        for constant, mean, whitener in zip(constants, means, whiteners, strict=True)
    ]
    return torch.stack(parts).logsumexp(dim=0)


def state(model: Any) -> dict[str, Tensor]:
    """Buffers of a Mixture, from scikit-learn's."""
    whiteners = torch.from_numpy(model.covariances_).clone()
    whiten_(whiteners, divisor=1, eps=0)
    zero = torch.zeros(())
    return {
        "weights": torch.from_numpy(model.weights_),
        "means": torch.from_numpy(model.means_),
        "whiteners": whiteners,
        "threshold": zero,
        "deviation": zero,
    }
