"""Views of 3D scans for training: each scan turned by small angles about the normal of its background plane.

Paul Bergmann, Xin Jin, David Sattlegger, Carsten Steger: The MVTec 3D-AD Dataset, VISAPP 2022, arXiv 2112.09045.
Ours, as the paper does not say it: how the plane is found, and that depth images are turned as images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_bench.errors import UsageError

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

ANGLE = 5.0  # degrees: the largest angle
BORDER = 10  # pixels: width of the strips in which the background is looked for
NEAR = 0.005  # metres: distance of points that agree with a plane
TRIALS = 50  # planes through three random points


def check_planes(method: str, shapes: Sequence[tuple[int, int, int]], channels: tuple[int, int], plane: str) -> None:
    """Raise UsageError unless images have the channels of a plane, or of RGB and that plane."""
    if shapes[0][0] not in channels:
        raise UsageError(f"{method}: images of {shapes[0][0]} channels; expected {plane} {channels[0]}, or RGB with it")


class Views:
    """A training set with `count` views of each scan, the first of which is the scan itself.

    Args:
        turn: (B, C, H, W) scans, their angles (B,) in radians and their numbers (B,) -> turned scans.
    """

    def __init__(self, normals: TrainingSet, count: int, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        if count < 1:
            raise UsageError(f"method.views={count}: expected at least 1")
        self.normals, self.count, self.turn = normals, count, turn
        angles = (2 * torch.rand(len(normals), count) - 1) * math.radians(ANGLE)
        angles[:, 0] = 0
        self.angles = angles.flatten()

    def __len__(self) -> int:
        return len(self.angles)

    def select(self, numbers: Tensor) -> Tensor:
        """The views with these numbers (B,): (B, C, H, W)."""
        scans = numbers // self.count
        images = self.normals.select(scans)
        return self.turn(images, self.angles[numbers].to(images.device), scans)

    def batches(self, batch: int) -> Iterator[Tensor]:
        """All views in order."""
        for numbers in torch.split(torch.arange(len(self)), batch):
            yield self.select(numbers)


def turn_images(images: Tensor, angles: Tensor, scans: Tensor | None = None) -> Tensor:
    """(B, C, H, W) images turned about their centres; the nearest pixels, as depths must not be mixed.

    Outside is what is at the edge: corners without values would be most of what a network learns.
    """
    height, width = images.shape[2:]
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="border", align_corners=False)


def turn_points(points: Tensor, angles: Tensor, axes: Tensor) -> Tensor:
    """(B, 3, H, W) points, turned about axes (B, 3) of length 1 through their mean; 0, 0, 0 stays."""
    seen = points.any(dim=1, keepdim=True)
    flat = points.flatten(2)
    centre = flat.sum(dim=2, keepdim=True) / seen.flatten(2).sum(dim=2, keepdim=True).clamp(min=1)
    offset, axis = flat - centre, axes[:, :, None].expand_as(flat)
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    along = axis * (axis * offset).sum(dim=1, keepdim=True)
    turned = centre + offset * cos + torch.linalg.cross(axis, offset, dim=1) * sin + along * (1 - cos)
    back: Tensor = turned.view_as(points) * seen
    return back


def background_axes(normals: TrainingSet) -> Tensor:
    """(N, 3) unit normals of the planes through the borders of the scans, whose last channels are x, y, z."""
    scans = torch.arange(len(normals))[:, None]
    return torch.stack([background_axis(normals.select(number)[0, -3:]) for number in scans])


def background_axis(points: Tensor) -> Tensor:
    """(3, H, W) -> (3,): RANSAC on the border, then least squares; the optical axis if there are too few points."""
    inner = torch.zeros(points.shape[1:], dtype=torch.bool, device=points.device)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    found = points[:, points.any(dim=0) & ~inner].T  # (n, 3)
    if len(found) < 3:
        return points.new_tensor([0, 0, 1])
    corners = found[torch.randint(len(found), (TRIALS, 3)).to(found.device)]
    axes = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axes = F.normalize(axes, dim=1, eps=1e-12)
    near = ((found - corners[:, :1]) @ axes[:, :, None]).abs()[..., 0] < NEAR  # (TRIALS, n)
    proper = axes.any(dim=1)  # not three points on a line
    agreeing = found[near[(near.sum(dim=1) * proper).argmax()]]
    axis: Tensor = torch.linalg.svd(agreeing - agreeing.mean(dim=0), full_matrices=False).Vh[-1]
    return axis * axis[2].sign().where(axis[2] != 0, torch.ones_like(axis[2]))


def largest_depth(normals: TrainingSet, batch: int) -> Tensor:
    """() of the scans' last channel.

    Raises:
        ValueError: no pixel has a depth.
    """
    largest = torch.stack([images[:, -1].max() for images in normals.images(batch)]).max()
    if not largest > 0:
        raise ValueError(
            f"{normals.name}: the largest depth of all training scans is {float(largest)}; expected depths"
        )
    return largest


def scale_depth(images: Tensor, largest: Tensor) -> Tensor:
    """(B, C, H, W): the last channel divided by the largest depth; colours stay in [0, 1]."""
    return torch.cat([images[:, :-1], images[:, -1:] / largest], dim=1)
