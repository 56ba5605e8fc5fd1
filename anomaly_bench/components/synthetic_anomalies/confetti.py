"""Confetti: simulated anomalies of blurred squares (FCDD; Liznerski et al. 2021, arXiv 2007.01760).

All random numbers come from torch's global CPU generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur, rotate

from anomaly_bench.components.synthetic_anomalies.perlin import uniform

COLOURED, GREY = 1.8e-5, 1.2e-5  # chances of a pixel to be the centre of a blob
SIDES = 8, 54  # of blobs, in pixels
TURN = 45.0  # largest rotation of blobs, in degrees
INVISIBLE = 0.025  # grey levels: an anomaly that changes the mean by less is inverted if that changes it more


def spoiled(image: Tensor) -> Tensor:
    """A (3, H, W) image in [0, 1] with confetti: darker, or brighter where that can hardly be seen."""
    noise = confetti_noise((image.shape[1], image.shape[2])) / 255
    changed = [(image + noise).clamp(0, 1), (image - noise).clamp(0, 1)]
    darker, brighter = (255 * float((one - image).mean().abs()) for one in changed)
    return changed[1] if darker < INVISIBLE and brighter > darker else changed[0]


def confetti_noise(size: tuple[int, int]) -> Tensor:
    """(3, H, W) grey levels to add, at most 0: blurred squares, some coloured and some black."""
    noise = blobs(size, COLOURED, coloured=True) + blobs(size, GREY, coloured=False)
    blurred: Tensor = gaussian_blur(noise, [25, 25], [5.0, 5.0])
    return blurred.trunc()


def blobs(size: tuple[int, int], chance: float, coloured: bool) -> Tensor:
    """(3, H, W): turned squares around random pixels, at least one; those of equal sides have the same colour."""
    centres = torch.rand(size) < chance
    while not centres.any():
        centres = torch.rand(size) < chance
    places = centres.nonzero().tolist()
    sides = torch.randint(SIDES[0], SIDES[1] + 1, (len(places),)).tolist()
    layer, colours = torch.zeros(3, *size), dict.fromkeys(sorted(sides), torch.full((3,), -255.0))
    for side in colours:
        if coloured:
            colours[side] = torch.randint(-256, 0, (3,)).float()
        for row, column in [place for place, each in zip(places, sides, strict=True) if each == side]:
            rows, columns = (slice(max(0, start - (side - 1) // 2), start + side // 2 + 1) for start in (row, column))
            layer[:, rows, columns] = colours[side][:, None, None]
    for (row, column), side in zip(places, sides, strict=True):
        reach = 3 * side // 4
        top, left = max(0, row - reach), max(0, column - reach)
        window = slice(None), slice(top, row + reach + 1), slice(left, column + reach + 1)
        layer[window] = rotate(layer[window], uniform(-TURN, TURN), center=[column - left, row - top])
    return layer
