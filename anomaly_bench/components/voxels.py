"""Grids of voxels: 3D scans into them, and values from them back to the scans' pixels.

Paul Bergmann et al.: The MVTec 3D-AD Dataset, VISAPP 2022, arXiv 2112.09045. A grid of 64^3 around all training
points of a category; a cell with points is 1, or with colours their mean in [0, 1], an empty one -1. Ours, as the
paper does not say it: cells are cubes, the box is enlarged by 5 %, points outside fill the cells at its border. The
paper projects voxels by the calibrated camera; here a pinhole camera is fitted to the pixels and points of the
training scans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench.components.scans import Views, background_axes, turn_points
from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

MARGIN = 1.05  # side of the grid over the longest side of the box around all points
EMPTY = -1.0


def check_grid_halves(side: int) -> None:
    """Raise UsageError unless halving leads from the side of a grid to 4, as networks of voxels do."""
    if side < 8 or side & (side - 1):
        raise UsageError(f"method.grid={side}: expected a power of two of at least 8, such as 64")


class Voxels(nn.Module):
    """The grid of one category, and its camera: (column, row) = camera @ (x / z, y / z, 1).

    Args:
        side: cells along each side.
    """

    corner: Tensor  # (3,) lowest x, y, z in metres
    cell: Tensor  # () side of a cell in metres
    camera: Tensor  # (2, 3)

    def __init__(self, side: int) -> None:
        super().__init__()
        if side < 1:
            raise UsageError(f"method.grid={side}: expected at least 1 cell a side")
        self.side = side
        self.register_buffer("corner", torch.empty(3))
        self.register_buffer("cell", torch.empty(()))
        self.register_buffer("camera", torch.empty(2, 3))

    @torch.no_grad()
    def fit(self, normals: TrainingSet, batch: int) -> None:
        """Lay the grid around the points of all scans (x, y, z: their last channels), and fit the camera.

        Raises:
            ValueError: no points, or ones from which no camera follows.
        """
        lowest, highest = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
        left, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
        for images in normals.images(batch):
            points = images[:, -3:].cpu()
            seen = points.any(dim=1)
            found = points.permute(0, 2, 3, 1)[seen]  # (n, 3)
            lowest, highest = torch.minimum(lowest, least(found)), torch.maximum(highest, -least(-found))
            _, rows, columns = seen.nonzero(as_tuple=True)
            ahead = found[:, 2] > 0
            rays = found[ahead].double()
            rays = rays / rays[:, 2:]
            left += rays.T @ rays
            right += rays.T @ torch.stack([columns, rows], dim=1)[ahead].double()
        edge = float((highest - lowest).max())
        if not edge > 0 or torch.linalg.matrix_rank(left) < 3:
            raise ValueError(
                f"{normals.name}: the training scans have no points (x, y, z) before a camera that spread over the "
                "image; expected coordinates in the camera's frame"
            )
        self.cell.fill_(edge * MARGIN / self.side)
        self.corner.copy_((lowest + highest) / 2 - self.cell.cpu() * self.side / 2)
        self.camera.copy_(torch.linalg.solve(left, right).T)

    def fill(self, images: Tensor) -> Tensor:
        """(B, 3 or 6, H, W) scans -> (B, 1 or 3, side, side, side) by z, y, x; pixels without a value fill none."""
        points, colours = images[:, -3:], images[:, :-3]
        cells = ((points - self.corner[:, None, None]) / self.cell).floor().clamp(0, self.side - 1).long()
        number = (cells[:, 2] * self.side + cells[:, 1]) * self.side + cells[:, 0]
        number = torch.where(points.any(dim=1), number, self.side**3).flatten(1)  # the last is dropped
        counts = images.new_zeros(len(images), self.side**3 + 1)
        counts.scatter_add_(1, number, torch.ones_like(number, dtype=counts.dtype))
        if not colours.shape[1]:
            values = torch.ones_like(counts)[:, None]
        else:
            each = number[:, None].expand(-1, 3, -1)
            values = counts.new_zeros(len(images), 3, counts.shape[1]).scatter_add_(2, each, colours.flatten(2))
            values /= counts.clamp(min=1)[:, None]
        grids = torch.where(counts[:, None] > 0, values, EMPTY)[:, :, :-1]
        return grids.reshape(*grids.shape[:2], self.side, self.side, self.side)

    def project(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, side, side, side) values of voxels -> (B, H, W): the largest of the voxels that lie on a pixel; else 0.

        A voxel lies on the pixels of its cross-section at the distance of its centre, so a pixel has at most one of
        each layer.
        """
        rows, columns = torch.meshgrid(*(torch.arange(side).to(values) for side in size), indexing="ij")
        pixels = torch.stack([columns.flatten(), rows.flatten()])  # (2, H * W)
        rays = torch.linalg.solve(self.camera[:, :2], pixels - self.camera[:, 2:])  # x / z, y / z
        maps = values.new_zeros(len(values), rays.shape[1])
        for layer in range(self.side):
            depth = self.corner[2] + (layer + 0.5) * self.cell
            cells = ((rays * depth - self.corner[:2, None]) / self.cell).floor().long()
            inside = ((cells >= 0) & (cells < self.side)).all(dim=0) & (depth > 0)
            column, row = cells.clamp(0, self.side - 1)
            maps = torch.maximum(maps, values[:, layer, row, column] * inside)
        return maps.view(-1, *size)

    def views(self, normals: TrainingSet, count: int) -> Views:
        """The scans as filled grids, `count` views of each."""
        axes = background_axes(normals)

        def turn(images: Tensor, angles: Tensor, scans: Tensor) -> Tensor:
            points = turn_points(images[:, -3:], angles, axes[scans.to(axes.device)])
            return self.fill(torch.cat([images[:, :-3], points], dim=1))

        return Views(normals, count, turn)


def least(points: Tensor) -> Tensor:
    """(n, 3) -> (3,); infinite if there are none."""
    return torch.cat([points, torch.full((1, 3), torch.inf)]).amin(dim=0)
