"""Greedy k-centre selection: each chosen point is the farthest from all points chosen before it (Gonzalez 1985).

Exact and independent of the block size, because no distance is rounded: points are first snapped to an integer lattice,
19 to 25 bits per coordinate, so squared distances are integers that float64 represents exactly, in any order of
summation. This moves a coordinate by at most 2^-20 of the widest dimension's range (up to 2048 dimensions), no more
than the rounding error of a float32 distance.

The farthest points are nearly always among those that were farthest a while ago. So only these candidates are updated
after each new centre; once the farthest candidate is no farther than some other point might be, all points are updated
with the new centres in one matrix product, and new candidates are picked. The result equals one pass per centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from anomaly_bench.components.neighbours import cache_bytes
from anomaly_bench.hardware.torch_setup import float64_device

CENTRES = 1024  # most centres found between two passes over all points
CANDIDATES = 4096  # fewest candidates, if there are as many points


@torch.no_grad()
def k_centre(
    points: Tensor,
    count: int,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda centres: None,
    block_bytes: int | None = None,
) -> Tensor:
    """Choose `count` of the points such that every other point is close to one of them.

    The first is drawn at random; each further one is the point farthest from its nearest centre (ties: lowest index).
    Extra memory: 16 bytes per point, a few blocks, and the candidates (4096 points, or one in 256 if that is more,
    8 bytes per coordinate).

    Args:
        points: (N, D) float32, finite.
        advance: called with the number of new centres, at most 1024 at a time.
        block_bytes: size of a block; None: `cache_bytes`.

    Returns:
        (count,) int64 indices in order of selection, on the points' device.

    Raises:
        ValueError: count is not in 1 to N, or a point is not finite.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} centres of {len(points)} points; expected 1 to {len(points)}")
    cover = Cover(points, block_bytes or cache_bytes(points.device))
    new = [int(torch.randint(len(points), (1,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu"))]
    chosen = list(new)
    advance(1)
    while len(chosen) < count:
        cover.add(new)
        new = cover.farthest(min(CENTRES, count - len(chosen)))
        chosen.extend(new)
        advance(len(new))
    return torch.tensor(chosen, device=points.device)


class Cover:
    """Points and the squared distance, in lattice units, from each to its nearest centre; -1 for the centres."""

    def __init__(self, points: Tensor, block_bytes: int) -> None:
        self.points, self.block_bytes = points, block_bytes
        self.device = float64_device(points.device)
        low, high = (ends.to(self.device, torch.float64) for ends in (points.amin(dim=0), points.amax(dim=0)))
        reach = float((high - low).max()) / 2
        if not math.isfinite(reach):
            raise ValueError("NaN or infinity among the points; expected finite numbers")
        bits = (50 - math.ceil(math.log2(points.shape[1]))) // 2  # D (2 * 2^bits)^2 < 2^53, exact in float64
        self.scale = 2.0 ** (bits - math.frexp(reach)[1]) if reach else 1.0
        self.offset = ((low + high) * (-self.scale / 2)).round_()
        self.squares = self.empty(len(points))
        self.distances = torch.full_like(self.squares, torch.inf)
        for rows, block in self.blocks():
            torch.sum(block.square_(), dim=1, out=self.squares[rows])

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def on_lattice(self, points: Tensor, out: Tensor) -> Tensor:
        """(n, D) points as integers, written to `out`."""
        out.copy_(points)
        return torch.add(self.offset, out, alpha=self.scale, out=out).round_()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All points on the lattice, block by block, in one reused buffer."""
        dimensions = self.points.shape[1]
        step = max(1, self.block_bytes // (8 * max(dimensions, 128)))
        buffer = self.empty(min(step, len(self.points)), dimensions)
        for start in range(0, len(self.points), step):
            part = self.points[start : start + step]
            yield slice(start, start + len(part)), self.on_lattice(part, buffer[: len(part)])

    def add(self, centres: list[int]) -> None:
        """Update the distances of all points with new centres."""
        coordinates = self.on_lattice(self.points[centres], self.empty(len(centres), self.points.shape[1]))
        parts = list(zip(torch.split(coordinates, 128), torch.split(self.squares[centres], 128), strict=True))
        buffer = self.empty(0)
        for rows, block in self.blocks():
            for part, squares in parts:
                products = buffer.resize_(len(block), len(part))
                torch.addmm(squares, block, part.T, alpha=-2, out=products)
                nearest = products.amin(dim=1).add_(self.squares[rows])
                torch.minimum(self.distances[rows], nearest, out=self.distances[rows])
        self.distances[centres] = -1

    def farthest(self, limit: int) -> list[int]:
        """The next centres, at least one and at most `limit`, found among the candidates alone."""
        candidates, least, last = self.candidates()
        points = self.on_lattice(self.points[candidates], self.empty(len(candidates), self.points.shape[1]))
        squares, distances = self.squares[candidates], self.distances[candidates]
        found: list[int] = []
        while len(found) < limit:
            place = int(distances.argmax())  # the first of ties
            distance, index = float(distances[place]), int(candidates[place])
            if distance < least or (distance == least and index > last):
                break  # a point that is not a candidate may come first
            found.append(index)
            torch.minimum(
                distances, torch.addmv(squares + squares[place], points, points[place], alpha=-2), out=distances
            )
            distances[place] = -1
        return found

    def candidates(self) -> tuple[Tensor, float, int]:
        """The farthest points; among ties, those with the lowest indices.

        Returns:
            (m,) ascending indices, the smallest of their distances, and the highest index at that distance.
        """
        count = min(len(self.points), max(CANDIDATES, len(self.points) // 256))
        least = self.distances.kthvalue(len(self.points) - count + 1).values
        above = (self.distances > least).nonzero()[:, 0]
        equal = (self.distances == least).nonzero()[: count - len(above), 0]
        return torch.cat([above, equal]).sort().values, float(least), int(equal[-1])
