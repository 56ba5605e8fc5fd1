"""Couplings and permutations of normalising flows: exact inverses, exact log-determinants.

Two kinds cover the methods here. `OneSided` transforms one half of the channels, then scales, shifts and permutes all
of them (FastFlow, CFLOW-AD). `TwoSided` permutes, then transforms both halves in turn, for several maps jointly
(DifferNet, CS-Flow). `Flow` chains either. The methods supply the subnets that predict scale and shift.

Each log-scale s is soft-clamped to keep any single coupling from exploding:

    OneSided    clamp * tanh(0.1 * s)               FrEIA's AllInOneBlock until August 2023
    TwoSided    clamp * 0.636 * atan(s / clamp)     FrEIA's Glow coupling; 0.636 is about 2 / pi

Since 17 August 2023 FrEIA's block computes clamp * tanh(0.1 * s / clamp), whose slope at 0 is 0.1 instead of
0.1 * clamp. CFLOW-AD (clamp 1.9) pins an earlier commit, and FastFlow (clamp 2 in its re-implementations) predates the
change, so this module uses the older form.

FrEIA itself is not used: its only release on PyPI, 0.2 of July 2022, and its repository build different models (see the
clamp above); the release stores two dense C x C matrices per block, as frozen parameters, even for a hard permutation;
and it draws rotations with scipy, warning of the cost above 512 channels (CFLOW-AD has 2048).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneSided(nn.Module):
    """Affine coupling of one half, then a scale and an offset per channel, then a fixed permutation.

    The first C - C // 2 channels of (B, C, ...) inputs, and the condition, predict the scale and shift of the others.
    Channel scales are 0.1 * softplus(g) with beta 0.5, initially 1; offsets are initially 0.

    Args:
        channels: C, at least 2.
        subnet: creates the network from (channels in, channels out): (B, in, ...) -> (B, out, ...), log-scales first.
            Its output is multiplied by 0.1.
        clamp: bound on the absolute log-scale.
        soft: permute by a random rotation instead of a random order; both are drawn from torch's global generator.
        condition: channels of the condition.
    """

    order: Tensor  # (C,) hard permutation: output channel i is channel order[i]
    rotation: Tensor  # (C, C) soft permutation

    def __init__(
        self,
        channels: int,
        subnet: Callable[[int, int], nn.Module],
        clamp: float,
        soft: bool = False,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.clamp, self.soft = clamp, soft
        self.sizes = [channels - channels // 2, channels // 2]
        self.subnet = subnet(self.sizes[0] + condition, 2 * self.sizes[1])
        one = 2 * torch.log(torch.expm1(torch.tensor(5.0)))  # the g that gives scale 1
        self.scale = nn.Parameter(one.expand(channels).clone())
        self.offset = nn.Parameter(torch.zeros(channels))
        if soft:
            self.register_buffer("rotation", random_rotation(channels))
        else:
            self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, ...) and its condition (B, D, ...) -> (B, C, ...) and log-determinants (B,)."""
        passive, active = torch.split(x, self.sizes, dim=1)
        log_scale, shift = self.predict(passive, condition)
        scale = self.scales(x.dim())
        changed = torch.cat([passive, torch.addcmul(shift, active, log_scale.exp())], dim=1)
        moved = torch.addcmul(self.broadcast(self.offset, x.dim()), changed, scale)
        positions = x[0, 0].numel()
        return self.permute(moved), log_scale.flatten(1).sum(dim=1) + positions * scale.log().sum()

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """The x with y = forward(x)."""
        moved = self.unpermute(y)
        changed = (moved - self.broadcast(self.offset, y.dim())) / self.scales(y.dim())
        passive, active = torch.split(changed, self.sizes, dim=1)
        log_scale, shift = self.predict(passive, condition)
        return torch.cat([passive, (active - shift) * (-log_scale).exp()], dim=1)

    def predict(self, passive: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, each (B, C // 2, ...)."""
        inputs = passive if condition is None else torch.cat([passive, condition], dim=1)
        raw, shift = (0.1 * self.subnet(inputs)).chunk(2, dim=1)
        return self.clamp * torch.tanh(raw), shift

    def scales(self, dimensions: int) -> Tensor:
        """Positive channel scales, broadcastable to a tensor with this many dimensions."""
        return self.broadcast(0.1 * F.softplus(self.scale, beta=0.5), dimensions)

    def broadcast(self, values: Tensor, dimensions: int) -> Tensor:
        return values.view(-1, *[1] * (dimensions - 2))

    def permute(self, x: Tensor) -> Tensor:
        return rotate(x, self.rotation) if self.soft else x[:, self.order]

    def unpermute(self, y: Tensor) -> Tensor:
        return rotate(y, self.rotation.T) if self.soft else y[:, self.order.argsort()]


class TwoSided(nn.Module):
    """A random channel permutation, then the Glow coupling: each half is transformed in turn, given the other.

    It takes a list of maps (B, C_m, h_m, w_m) or vectors (B, C_m) and transforms them jointly: a subnet sees one half
    of every map. Outputs are clipped at +-1e6, as in the authors' code for DifferNet and CS-Flow; the inverse is exact
    within these bounds.

    Args:
        channels: C_m of each map, at least 2; the first half has C_m // 2.
        subnet: creates a network from (channels in per map, channels out per map) that maps a list of maps to a list
            of maps, log-scales first.
        clamp: scale of the soft clamp on log-scales.
    """

    LARGEST = 1e6

    def __init__(
        self, channels: Sequence[int], subnet: Callable[[list[int], list[int]], nn.Module], clamp: float
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.first = [count // 2 for count in channels]
        self.second = [count - count // 2 for count in channels]
        self.from_second = subnet(self.second, [2 * count for count in self.first])
        self.from_first = subnet(self.first, [2 * count for count in self.second])
        for index, count in enumerate(channels):
            self.register_buffer(f"order{index}", torch.randperm(count))

    @property
    def orders(self) -> list[Tensor]:
        """For each map: channel i of the permuted map is channel order[i]."""
        return [self.get_buffer(f"order{index}") for index in range(len(self.first))]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps -> maps of the same shapes, and log-determinants (B,)."""
        permuted = [x[:, order] for x, order in zip(maps, self.orders, strict=True)]
        first, second = self.halves(permuted)
        first, first_log_det = self.change(first, self.from_second(second))
        second, second_log_det = self.change(second, self.from_first(first))
        joined = [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]
        return [x.clamp(-self.LARGEST, self.LARGEST) for x in joined], first_log_det + second_log_det

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps that `forward` turns into these."""
        first, second = self.halves(maps)
        second = self.change_back(second, self.from_first(first))
        first = self.change_back(first, self.from_second(second))
        joined = [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]
        return [x[:, order.argsort()] for x, order in zip(joined, self.orders, strict=True)]

    def halves(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [torch.split(x, [a, b], dim=1) for x, a, b in zip(maps, self.first, self.second, strict=True)]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def change(self, maps: Sequence[Tensor], predicted: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Scale and shift one half of each map; also returns log-determinants (B,)."""
        changed, total = [], torch.zeros((), device=maps[0].device)
        for x, prediction in zip(maps, predicted, strict=True):
            log_scale, shift = self.split(prediction)
            changed.append(torch.addcmul(shift, x, log_scale.exp()))
            total = total + log_scale.flatten(1).sum(dim=1)
        return changed, total

    def change_back(self, maps: Sequence[Tensor], predicted: Sequence[Tensor]) -> list[Tensor]:
        parts = [(x, *self.split(prediction)) for x, prediction in zip(maps, predicted, strict=True)]
        return [(x - shift) * (-log_scale).exp() for x, log_scale, shift in parts]

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Clamped log-scale and shift."""
        raw, shift = predicted.chunk(2, dim=1)
        return self.clamp * 0.636 * torch.atan(raw / self.clamp), shift


class Flow(nn.ModuleList):
    """A chain of blocks, itself a block."""

    def forward(self, x: Any, *condition: Tensor) -> tuple[Any, Tensor]:
        """The first block's input -> the last block's output and the sum of all log-determinants (B,)."""
        total: Any = 0.0
        for block in self:
            x, log_det = block(x, *condition)
            total = total + log_det
        return x, total

    def inverse(self, y: Any, *condition: Tensor) -> Any:
        """The x with y = forward(x)."""
        blocks: list[Any] = list(self)
        for block in reversed(blocks):
            y = block.inverse(y, *condition)
        return y


MOST_LENGTH = 1e17  # largest |z| kept: its square is finite in float32


def energy(z: Tensor) -> Tensor:
    """(B, C, ...) -> E (B, ...): half the mean of z^2 over channels, finite for every finite z.

    -C * E is the log-density of z under a standard Gaussian, up to a constant.
    """
    return 0.5 * z.clamp(-MOST_LENGTH, MOST_LENGTH).square().mean(dim=1)


def join(energies: Sequence[Tensor]) -> Tensor:
    """-log of the levels' mean likelihood exp(-E), per pixel: L times (B, H, W) -> (B, H, W).

    It ranks pixels like the negative sum of likelihoods, but without ties where these underflow to 0 in float32.
    """
    return math.log(len(energies)) - torch.logsumexp(-torch.stack(list(energies)), dim=0)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Multiply the channel vector at each position of (B, C, ...) by a (C, C) matrix."""
    return F.linear(x.movedim(1, -1), rotation).movedim(-1, 1)


def random_rotation(size: int) -> Tensor:
    """A (size, size) rotation (orthogonal, determinant 1), drawn uniformly.

    The Q of a Gaussian matrix's QR decomposition is uniform over the orthogonal matrices once R's diagonal is made
    positive (Mezzadri 2007, arXiv math-ph/0609050).
    """
    q, r = torch.linalg.qr(torch.randn(size, size))
    rotation: Tensor = q * r.diagonal().sign()
    rotation[0] *= torch.linalg.slogdet(rotation).sign
    return rotation
