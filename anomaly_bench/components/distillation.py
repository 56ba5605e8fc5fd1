"""Parts of networks that learn to describe patches as a pretrained one does (Bergmann et al. 2020, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_bench.components.grey import to_grey
from anomaly_bench.components.small_images import resized

ZOOMS = 4, 16  # sides of the images that patches are taken of, divided by the patch
GREY = 0.1  # share of grey patches


def random_patch(image: Tensor, side: int) -> Tensor:
    """(3, H, W) -> (3, side, side): a random crop of the image resized to a random multiple of the patch."""
    height, width = image.shape[1:]
    whole = int(torch.randint(ZOOMS[0] * side, ZOOMS[1] * side + 1, ()))
    rows, columns = (min(max(1, round(side * length / whole)), length) for length in (height, width))
    top, left = int(torch.randint(height - rows + 1, ())), int(torch.randint(width - columns + 1, ()))
    patch = resized(image[None, :, top : top + rows, left : left + columns], (side, side))
    return (to_grey(patch).expand_as(patch) if float(torch.rand(())) < GREY else patch)[0]


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """() squared distance of descriptors, (n, D) or (B, D, h, w) twice, mean over all but D."""
    return (found - wanted).square().sum(dim=1).mean()


def correlations(descriptors: Tensor, least: float = 1e-12) -> Tensor:
    """(D, D) coefficients of correlation between the dimensions of (n, D) descriptors.

    Args:
        least: differences from a dimension's mean are divided by their length, or by this if they are shorter.
    """
    centred = descriptors - descriptors.mean(dim=0)
    unit = F.normalize(centred, dim=0, eps=least)
    return unit.T @ unit
