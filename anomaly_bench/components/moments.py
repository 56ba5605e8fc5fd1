"""Means and standard deviations of arrays that are seen in batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from anomaly_bench.hardware.torch_setup import float64_device


def mean_and_deviation(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Over the first dimension of all batches (B, ...): mean and deviation (...), of the population, and the count."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        values = batch.to(float64_device(batch.device), torch.float64)
        count, total = count + len(values), total.to(values.device) + values.sum(dim=0)
        squares = squares.to(values.device) + values.square().sum(dim=0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float(), count
