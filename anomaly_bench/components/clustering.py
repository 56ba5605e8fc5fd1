"""k-means in plain torch: Lloyd's algorithm from a k-means++ start (Arthur and Vassilvitskii 2007).

From the same start the centres are scikit-learn's. Unlike there, thousands of centres are started in seconds, since
they are drawn from a sample of the points, and the sums are the same bits with any number of threads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly_bench.components.neighbours import cache_bytes, squared_lengths

SAMPLE = 20_000  # points that the start is drawn from, if the clusters are not more


@torch.no_grad()
def k_means(points: Tensor, count: int, seed: int, rounds: int, starts: int = 1) -> Tensor:
    """The centres (count, D) of the start that ends with the smallest sum of squared distances.

    Args:
        points: (N, D) float32.
        rounds: of Lloyd's algorithm, at most.

    Raises:
        ValueError: count is not in 1 to N.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} clusters of {len(points)} points; expected 1 to {len(points)}")
    generator = torch.Generator("cpu").manual_seed(seed)
    best, least = points[:count], math.inf
    for _ in range(starts):
        sample = torch.randperm(len(points), generator=generator, device="cpu")[: max(count, SAMPLE)]
        drawn = points[sample.to(points.device)]
        centres, error = lloyd(points, drawn[plus_plus(drawn, count, generator)], rounds)
        if error < least:
            best, least = centres, error
    return best


def plus_plus(points: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Indices of points, each drawn in proportion to its squared distance from those drawn before."""
    lengths = squared_lengths(points)
    chosen = [int(torch.randint(len(points), (1,), generator=generator, device="cpu"))]
    distances = torch.full_like(lengths, torch.inf)
    while len(chosen) < count:
        last = points[chosen[-1]]
        new = torch.addmv(lengths + last @ last, points, last, alpha=-2)
        torch.minimum(distances, new.clamp_(min=1e-20), out=distances)  # above 0, for points with equal ones
        distances[chosen[-1]] = 0
        chosen.append(int(torch.multinomial(distances.cpu(), 1, generator=generator)))
    return chosen


def lloyd(points: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, float]:
    """Move the centres to the means of their points until no point changes its centre; clusters without points stay.

    Returns:
        The centres, and the sum of squared distances before their last move.
    """
    on_cpu, before, error = points.cpu(), None, math.inf  # where sums are the same bits in every run
    for _ in range(rounds):
        labels, error = assign(points, centres)
        if before is not None and torch.equal(labels, before):
            break
        counts = torch.bincount(labels.cpu(), minlength=len(centres))
        means: Tensor = torch.segment_reduce(on_cpu[labels.cpu().argsort(stable=True)], "mean", lengths=counts)
        centres = torch.where(counts.to(points.device)[:, None] > 0, means.to(points.device), centres)
        before = labels
    return centres, error


def assign(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """The nearest centre of each point (N,), and the sum of squared distances."""
    lengths, labels, error = squared_lengths(centres), [], 0.0
    for part in torch.split(points, max(1, cache_bytes(points.device) // (4 * len(centres)))):
        found = torch.addmm(lengths, part, centres.T, alpha=-2).min(dim=1)
        labels.append(found.indices)
        error += float((found.values + squared_lengths(part)).sum())
    return torch.cat(labels), error
