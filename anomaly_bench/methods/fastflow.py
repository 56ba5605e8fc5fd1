"""FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows.

Jiawei Yu, Ye Zheng, Xiang Wang, Wei Li, Yushuang Wu, Rui Zhao, Liwei Wu; 2021, arXiv 2111.07677.

Each level of a frozen network has its own normalising flow with convolutional couplings, so the grid is never
flattened. The authors released no code. The architecture follows the common re-implementations (gathierry's, and
anomalib's based on it), which on WRN50, without their layer normalisation, has exactly the paper's 41.3 M parameters:
one-sided couplings with FrEIA's clamp at that time, 2 * tanh(s) (see `anomaly_bench.components.flows`).

Differences from those re-implementations:

- No layer normalisation before a CNN's flows: the paper has none, gathierry's code needs it. With `layer_norm` each
  level is standardised first (without trained scales, which would exceed the paper's parameter count): at the paper's
  learning rate this is needed if features are far from unit scale, like lite0's of about 7. `affine` adds gathierry's
  trained scale and shift for each channel and position, which are not in the log-determinant there either. A
  transformer is read through its final norm.
- A transformer's subnets have 128 hidden channels for 768 (the paper's ratio of 0.16, and its 14.8 M parameters);
  gathierry's code takes 0.16 of a subnet's input, half the channels, which gives 7.1 M.
- Scores stay in the log domain. Their map is the negative mean over levels of exp(-E), E = mean of z^2 / 2 over
  channels; it underflows to 0 in float32 from E = 104 on, so strong anomalies tie. Here it is -log of that mean, which
  ranks pixels alike for equal grids; between grid points E is interpolated, not exp(-E).

- An epoch's last, smaller batch is kept; gathierry's code drops it, which leaves out up to 31 images of each epoch. The
  paper does not say.

The image score is the map's maximum, as in anomalib; gathierry's code has none and the paper does not state its rule.
Re-implementations reach the paper's pixel AUROCs by choosing the epoch on the test set; here the last counts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components import upsampling
from anomaly_bench.components.flows import Flow, OneSided, energy, join
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_kernels
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

_CLAMP = 2.0  # of the couplings' log-scales


class FastFlow(nn.Module):
    """FastFlow as in section 3 and table 7.

    Args:
        backbone: a frozen network.
        steps: flow steps per level.
        kernels: kernel sizes of the subnets' convolutions, used by the steps in turn.
        hidden: channels between a subnet's two convolutions, as a fraction of the level's.
        layer_norm: standardise each level of an image to mean 0 and deviation 1 over all channels and positions.
        affine: with `layer_norm`, a trained scale and shift for each channel and position; they fix the image size.
        epochs, batch, lr, weight_decay: for training with Adam.
    """

    def __init__(
        self,
        backbone: Features,
        steps: int,
        kernels: Sequence[int],
        hidden: float,
        layer_norm: bool,
        epochs: int,
        batch: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        affine: bool = False,
    ) -> None:
        if steps < 1:
            raise UsageError(f"method.steps={steps}: expected at least 1")
        if affine and not layer_norm:
            raise UsageError("method.affine=true belongs to the layer normalisation: set method.layer_norm=true too")
        check_kernels(kernels)
        super().__init__()
        self.backbone, self.steps, self.kernels, self.hidden = backbone, steps, kernels, hidden
        self.layer_norm, self.affine = layer_norm, affine
        self.epochs, self.batch, self.lr, self.weight_decay = epochs, batch, lr, weight_decay

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create one flow per (C, h, w) level."""
        self.norms = nn.ModuleList(nn.LayerNorm(shape) if self.affine else nn.Identity() for shape in shapes)
        flows = nn.ModuleList(self.flow(channels) for channels, _, _ in shapes)
        self.flows = flows.to(memory_format=torch.channels_last)  # like the features

    def flow(self, channels: int) -> Flow:
        """The flow for one level."""
        width = max(1, round(self.hidden * channels))
        sides = [self.kernels[step % len(self.kernels)] for step in range(self.steps)]
        return Flow(OneSided(channels, functools.partial(convolutional_subnet, width, side), _CLAMP) for side in sides)

    def fit(self, normals: TrainingSet) -> None:
        """Train all flows jointly on stored features (equations 1 to 3)."""
        features = normals.feature_array(self.read, self.batch)
        optimiser = torch.optim.Adam(self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(features), self.batch):
                epoch.step(self.loss(features[numbers]))
        self.facts = loop.facts

    def read(self, images: Tensor) -> list[Tensor]:
        """The levels as they are kept: standardised, unless `self.norms` do it, with trained scales."""
        levels = self.backbone(images)
        standardised = self.layer_norm and not self.affine
        return [F.layer_norm(level, level.shape[1:]) for level in levels] if standardised else levels

    def transform(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """z (B, C, h, w) and log-determinants (B,) of each level that was read."""
        return [flow(norm(level)) for level, norm, flow in zip(levels, self.norms, self.flows, strict=True)]

    def loss(self, levels: Sequence[Tensor]) -> Tensor:
        """Negative log-likelihood without its constant, batch mean, summed over levels: ()."""
        losses = []
        for z, log_det in self.transform(levels):
            losses.append((0.5 * z.square().flatten(1).sum(dim=1) - log_det).mean())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """-log of the mean of exp(-E) over levels, upsampled bilinearly; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        energies = [energy(z) for z, _ in self.transform(self.read(images))]
        maps = join([upsampling.smooth_upsample(level, images.shape[2:], sigma=0) for level in energies])
        return Scores(maps.amax(dim=(1, 2)), maps)


def convolutional_subnet(width: int, side: int, inputs: int, outputs: int) -> nn.Sequential:
    """Predicts scales and shifts of one step."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, side, padding="same"), nn.ReLU(), nn.Conv2d(width, outputs, side, padding="same")
    )
