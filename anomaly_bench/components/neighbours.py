"""Exact nearest neighbours by squared L2 distance, in plain torch.

A query's distances to a bank are |q|^2 - 2 q.b + |b|^2: a matrix product, computed in cache-sized blocks. Only the
minimum of every GROUP rows of a block is kept; distances to the rows of the best groups are then recomputed by
differences. The result is as precise as differences, and costs hardly more than the product. Where rows are so close
together that rounding could hide the nearest, the product is made again in float64.

A graph for another runtime has no blocks and no second look at doubtful queries: `traced`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomaly_bench.hardware.torch_setup import float64_device

GROUP = 16  # bank rows per minimum
QUERIES = 1024  # most queries at a time
SPARE = 3  # rows beyond k that `traced` compares by differences
DISTANCE_TOLERANCE = 1e-4  # relative error of a distance
ROUNDING = 8  # roundings of |q|^2 + |b|^2 that |q|^2 - 2 q.b + |b|^2 may be off by: above any observed


class Neighbours(NamedTuple):
    """The k rows nearest to each query, nearest first."""

    distances: Tensor  # (Q, k) squared L2
    indices: Tensor  # (Q, k) int64


@torch.no_grad()
def nearest(
    queries: Tensor, bank: Tensor, k: int = 1, norms: Tensor | None = None, block_bytes: int | None = None
) -> Neighbours:
    """The k rows of a bank nearest to each query.

    Distances have a relative error of at most 1e-4, and are 0 for a copy of a row; rows whose distances differ by less
    may swap places. Extra memory: two blocks, plus sixteen for the group minima.

    Args:
        queries: (Q, D) float32.
        bank: (M, D) float32.
        norms: (M,) squared lengths of the bank's rows, if known.
        block_bytes: size of a block; None: `cache_bytes`.

    Raises:
        ValueError: k is not in 1 to M.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k={k} nearest of {len(bank)} rows; expected 1 to {len(bank)}")
    norms = squared_lengths(bank) if norms is None else norms
    if torch.compiler.is_compiling():
        return traced(queries, bank, k, norms)
    block_bytes = block_bytes or cache_bytes(queries.device)
    groups = -(-len(bank) // GROUP)
    step = max(1, min(QUERIES, 16 * block_bytes // (4 * groups)))
    return concatenate([search(part, bank, k, norms, block_bytes) for part in torch.split(queries, step)])


def traced(queries: Tensor, bank: Tensor, k: int, norms: Tensor) -> Neighbours:
    """`nearest` without branches, for `torch.export`: by the products, then by differences to a few rows more than k.

    Rows further back than those `SPARE` are missed, which takes as many rows whose distances differ by rounding only.
    """
    _, places = torch.topk(norms - 2 * queries @ bank.T, min(k + SPARE, len(bank)), dim=1, largest=False)
    distances = (bank[places] - queries[:, None]).square().sum(dim=2)  # (Q, k + SPARE)
    values, order = torch.topk(distances, k, dim=1, largest=False)
    return Neighbours(values, places.gather(1, order))


def cache_bytes(device: torch.device) -> int:
    """Block size that fits in the cores' caches, or keeps a GPU busy."""
    return 4_000_000 if device.type == "cpu" else 200_000_000


def squared_lengths(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(M,) squared lengths of (M, D) rows, without copying them; dtype: of the result, None: that of the rows."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    return lengths.square_()


def concatenate(parts: list[Neighbours]) -> Neighbours:
    return Neighbours(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def search(
    queries: Tensor, bank: Tensor, k: int, norms: Tensor, block_bytes: int, dtype: torch.dtype = torch.float32
) -> Neighbours:
    """`nearest` for one part of the queries.

    Up to rounding, the k nearest rows lie in the k groups with the smallest minima. If rounding could hide a nearer
    row in the best remaining group, the products are made in float64, and if it still could, or the device has no
    float64, the query is compared with the whole bank by differences.
    """
    wide = queries.to(dtype)
    minima = group_minima(wide, bank, norms, block_bytes)
    _, groups = smallest(minima, min(k, len(minima)), dim=0)
    found = among_groups(queries, bank, k, groups.T, block_bytes)
    lengths, rounding = squared_lengths(wide), ROUNDING * torch.finfo(dtype).eps
    left_out = minima.scatter_(0, groups, torch.inf).amin(dim=0) + lengths - rounding * (lengths + norms.max())
    doubtful = left_out.clamp_(min=0) < (1 - DISTANCE_TOLERANCE) * found.distances[:, -1]
    if doubtful.any():
        rest = queries[doubtful]
        if dtype == torch.float32 and float64_device(queries.device) == queries.device:
            exact = search(rest, bank, k, squared_lengths(bank, torch.float64), block_bytes, torch.float64)
        else:
            exact = by_differences(rest, bank, k, block_bytes)
        for part, values in zip(found, exact, strict=True):
            part[doubtful] = values
    return found


def smallest(values: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """The k smallest values in ascending order, and their indices."""
    found = values.min(dim, keepdim=True) if k == 1 else values.topk(k, dim, largest=False)  # topk of 1 is slow
    return found.values, found.indices


def group_minima(queries: Tensor, bank: Tensor, norms: Tensor, block_bytes: int) -> Tensor:
    """(ceil(M / GROUP), Q): the minima of |b|^2 - 2 q.b over every GROUP rows b of the bank, in the queries' dtype."""
    groups = -(-len(bank) // GROUP)
    minima = queries.new_empty(groups, len(queries))
    step = min(groups, max(1, block_bytes // (queries.element_size() * GROUP * len(queries))))  # groups per block
    products = queries.new_empty(step * GROUP, len(queries))
    for start in range(0, groups, step):
        rows = slice(start * GROUP, (start + step) * GROUP)
        part = bank[rows].to(queries.dtype)
        torch.addmm(norms[rows, None], part, queries.T, alpha=-2, out=products[: len(part)])
        count = min(step, groups - start)
        if len(part) < count * GROUP:  # the last group
            products[len(part) :] = torch.inf
        blocks = products[: count * GROUP].view(count, GROUP, len(queries))
        torch.amin(blocks, dim=1, out=minima[start : start + count])
    return minima


def among_groups(queries: Tensor, bank: Tensor, k: int, groups: Tensor, block_bytes: int) -> Neighbours:
    """The k nearest rows in each query's (Q, g) groups, by differences."""
    rows = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=bank.device)).flatten(1)  # (Q, g * GROUP)
    beyond = rows >= len(bank)  # in the last group
    rows[beyond] = 0
    step = min(len(rows), max(1, block_bytes // (4 * rows.shape[1] * bank.shape[1])))
    block = bank.new_empty(step * rows.shape[1], bank.shape[1])
    distances = bank.new_empty(rows.shape)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        differences = torch.index_select(bank, 0, part.flatten(), out=block[: part.numel()]).view(*part.shape, -1)
        differences.sub_(queries[start : start + step, None]).square_()
        torch.sum(differences, dim=2, out=distances[start : start + step])
    values, places = smallest(distances.masked_fill_(beyond, torch.inf), k, dim=1)
    return Neighbours(values, rows.gather(1, places))


def by_differences(queries: Tensor, bank: Tensor, k: int, block_bytes: int) -> Neighbours:
    """The k nearest of all rows by differences: slow, but exact to float precision."""
    parts = torch.split(queries, max(1, block_bytes // (4 * len(bank))))
    direct = "donot_use_mm_for_euclid_dist"
    return concatenate(
        [Neighbours(*smallest(torch.cdist(part, bank, compute_mode=direct).square_(), k, dim=1)) for part in parts]
    )


def take_row_counts(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Resize a module's own buffers to the number of rows in a state dict, before loading it.

    For `_load_from_state_dict` of a method whose `build` cannot know the number of rows.
    """
    for name, buffer in module.named_buffers(recurse=False):
        saved = state.get(prefix + name)
        if saved is not None and saved.shape[1:] == buffer.shape[1:]:
            setattr(module, name, buffer.new_empty(saved.shape))
