"""Means and standard deviations of arrays that are seen in batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from anomaly_bench.hardware.torch_setup import float64_device

ROUNDING = 1e-12  # of a mean square


def mean_and_deviation(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Over the first dimension of all batches (B, ...): mean and deviation (...), of the population, and the count."""
    mean, square, count = moments(batches)
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float(), count


def standardisers(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Over images and positions of all (B, C, h, w): mean and deviation (C, 1, 1); a constant's deviation is 1."""
    mean, square, _ = moments(each.cpu().transpose(0, 1).flatten(1).T for each in maps)
    variance = square - mean.square()
    deviation = torch.where(variance > ROUNDING * square, variance, 1.0).sqrt()
    return mean[:, None, None].float(), deviation[:, None, None].float()


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Over the first dimension of all batches (B, ...): float64 means (...) of values and squares, and the count."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        values = batch.to(float64_device(batch.device), torch.float64)
        count, total = count + len(values), total.to(values.device) + values.sum(dim=0)
        squares = squares.to(values.device) + values.square().sum(dim=0)
    return total / count, squares / count, count
