"""The nearest patches of an image in another one, in several levels at once: exact, without comparing all of them.

A patch is a cell of the finest level with the cells of the coarser levels that it lies in, and a distance is the sum of
the squared distances of all levels. The distance of two coarse cells is a lower bound for all patches in them, so that
only the children of pairs that are nearer than the best patches so far are compared, level by level.

The levels of an image are `Groups`: the cells of each level but the coarsest, grouped by the cell of the next level
that they lie in (cells of the next level, m, C), and the coarsest level itself (cells, C).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from anomaly_bench.components.neighbours import cache_bytes, squared_lengths

Groups = Sequence[Tensor]
FEW = 4  # above one pair of coarse cells in 4, matrix products are faster than looking up pairs


def grouped(levels: Sequence[Tensor], parts: Sequence[Tensor]) -> Groups:
    """The `Groups` of levels (h, w, C), the largest grid first.

    Args:
        parts: `positions_of_cells` for each level but the coarsest.
    """
    flat = [level.flatten(0, 1) for level in levels]
    return [*(level[part] for level, part in zip(flat[:-1], parts, strict=True)), flat[-1]]


def positions_of_cells(fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """(cells, m): the positions of a fine grid that `upsampling.align` fills from each position of a coarse one.

    If cells differ in size, the last positions of smaller ones are repeated.
    """

    def along(axis: int) -> Tensor:
        sources = [position * coarse[axis] // fine[axis] for position in range(fine[axis])]
        first = [sources.index(cell) for cell in range(coarse[axis])] + [fine[axis]]
        longest = max(first[cell + 1] - first[cell] for cell in range(coarse[axis]))
        return torch.tensor(
            [[min(first[cell] + step, first[cell + 1] - 1) for step in range(longest)] for cell in range(coarse[axis])],
            device="cpu",
        )

    rows, columns = along(0)[:, None, :, None], along(1)[None, :, None, :]
    return (rows * fine[1] + columns).flatten(2).flatten(0, 1)


def lower_(best: Tensor, ours: Groups, theirs: Groups, parts: Sequence[Tensor]) -> None:
    """Lower the best squared distances of patches using the patches of another image.

    Args:
        best: (patches,) updated in place; infinite before the first image.
        parts: of both images' grids, as for `grouped`.
    """
    distances = between(ours[-1], theirs[-1])
    if best[0].isinf():  # all pairs would be near enough
        lowest = distances.min(dim=1)
        cells = torch.arange(len(distances), device=best.device)
        by_pairs_(best, limits(best, parts), (cells, lowest.indices, lowest.values), ours, theirs, parts)
    bounds = limits(best, parts)
    near = distances < bounds[-1][:, None]
    if near.count_nonzero() * FEW < near.numel():
        cells, others = near.nonzero().unbind(dim=1)
        by_pairs_(best, bounds, (cells, others, distances[cells, others]), ours, theirs, parts)
    else:
        by_products_(best, distances, ours, theirs, parts)


def limits(best: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The largest of the best distances within each cell of each level."""
    bounds = [best]
    for part in parts:
        bounds.append(bounds[-1][part].amax(dim=1))
    return bounds


def by_pairs_(
    best: Tensor,
    bounds: Sequence[Tensor],
    pairs: tuple[Tensor, Tensor, Tensor],
    ours: Groups,
    theirs: Groups,
    parts: Sequence[Tensor],
) -> None:
    """`lower_` for pairs of cells in the level above the last of `parts`: both cells and their distance, (n,) each."""
    *finer, part = parts
    level = len(finer)
    step = max(1, cache_bytes(best.device) // (8 * ours[level][0].numel()))
    for cells, others, known in zip(*(torch.split(each, step) for each in pairs), strict=True):
        mine, their = ours[level].index_select(0, cells), theirs[level].index_select(0, others)
        found = torch.cdist(mine, their, compute_mode="donot_use_mm_for_euclid_dist").square_() + known[:, None, None]
        inside, within = part[cells], part[others]  # (n, m)
        if finer:
            pair, row, column = (found < bounds[level][inside][:, :, None]).nonzero().unbind(dim=1)
            near = inside[pair, row], within[pair, column], found[pair, row, column]
            by_pairs_(best, bounds, near, ours, theirs, finer)
        else:
            best.scatter_reduce_(0, inside.flatten(), found.amin(dim=2).flatten(), "amin")


def by_products_(best: Tensor, distances: Tensor, ours: Groups, theirs: Groups, parts: Sequence[Tensor]) -> None:
    """`lower_` for all pairs of the coarsest level's cells, whose distances (cells, cells) are given."""
    cells = torch.arange(len(distances), device=best.device)  # in the order of their parents
    for level in reversed(range(1, len(parts))):
        mine, their = (groups[level][cells].flatten(0, 1) for groups in (ours, theirs))
        count = parts[level].shape[1]
        distances = distances.repeat_interleave(count, dim=0).repeat_interleave(count, dim=1).add_(between(mine, their))
        cells = parts[level][cells].flatten()
    near = (distances.amin(dim=1) < limits(best, parts[:1])[1][cells]).nonzero()[:, 0]
    known = theirs[0][cells]  # (cells, m, C)
    norms, count = squared_lengths(known.flatten(0, 1)).view(known.shape[:2]), known.shape[1]
    step = max(1, cache_bytes(best.device) // (4 * norms.numel()))
    for rows in torch.split(near, step):
        mine = ours[0][cells[rows]].flatten(0, 1)  # (n * m, C)
        products = (torch.addmm(norms[:, part], mine, known[:, part].T, alpha=-2) for part in range(count))
        pairs = functools.reduce(lambda a, b: torch.minimum(a, b, out=a), products).view(len(rows), count, -1)
        lowest = pairs.add_(distances[rows, None]).amin(dim=2).flatten() + squared_lengths(mine)
        best.scatter_reduce_(0, parts[0][cells[rows]].flatten(), lowest.clamp_(min=0), "amin")


def between(ours: Tensor, theirs: Tensor) -> Tensor:
    """(n, C) and (k, C) -> (n, k) squared distances, by a matrix product."""
    products = torch.addmm(squared_lengths(theirs), ours, theirs.T, alpha=-2)
    return products.add_(squared_lengths(ours)[:, None]).clamp_(min=0)
