"""Patch embeddings of some dimensions drawn at random, as in PaDiM (Defard et al. 2020, section III.A)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anomaly_bench.components.upsampling import align
from anomaly_bench.errors import UsageError


def draw_dimensions(dimensions: int, shapes: Sequence[tuple[int, int, int]], seed: int) -> Tensor:
    """(dimensions,) ascending indices into the concatenated channels of (C, h, w) levels.

    Raises:
        UsageError: fewer channels than dimensions.
    """
    channels = sum(shape[0] for shape in shapes)
    if not 1 <= dimensions <= channels:
        raise UsageError(
            f"method.dimensions={dimensions}: the backbone's levels have {channels} channels; expected 1 to {channels}"
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(channels, generator=generator, device="cpu")[:dimensions].sort().values


def embed(levels: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Patch embeddings (h * w, B, D) on the first level's grid, of the chosen dimensions (D,) only."""
    if torch.compiler.is_compiling():  # a graph's sizes cannot depend on the values of `chosen`
        return align(levels).index_select(2, chosen)
    parts, start = [], 0
    for count in (level.shape[1] for level in levels):
        parts.append(chosen[(chosen >= start) & (chosen < start + count)] - start)
        start += count
    return align(levels, parts)
