"""Parts of an image pasted elsewhere: CutPaste and scars (Li et al. 2021, arXiv 2104.04015, section 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from anomaly_bench.components.synthetic_anomalies.perlin import uniform

AREA = 0.02, 0.15  # of a cut, as a share of the image
ASPECTS = (0.3, 1.0), (1.0, 3.3)  # width divided by height; both ranges are equally likely
SCAR_WIDTH, SCAR_LENGTH = (2, 16), (10, 25)  # pixels, both ends included
SCAR_TURN = 45.0  # degrees
LARGEST_SCAR = 32  # pixels: at least the sides of the box around any turned scar
JITTER = v2.ColorJitter(0.1, 0.1, 0.1, 0.1)


def cut_paste(image: Tensor) -> Tensor:
    """Paste a rectangle of a (3, H, W) image in [0, 1], its colours jittered, at a random place."""
    sides = image.shape[1:]
    area, aspect = uniform(*AREA) * math.prod(sides), uniform(*ASPECTS[int(torch.randint(2, ()))])
    wanted = math.sqrt(area / aspect), math.sqrt(area * aspect)
    height, width = (min(side, max(1, round(part))) for side, part in zip(sides, wanted, strict=True))
    cut = JITTER(image[box(image, height, width)])
    pasted = image.clone()
    pasted[box(image, height, width)] = cut
    return pasted


def scar(image: Tensor) -> Tensor:
    """Paste a thin rectangle of a (3, H, W) image in [0, 1], its colours jittered, turned at a random place.

    Its sides are in pixels. The image has at least LARGEST_SCAR of them a side.
    """
    width, height = (int(torch.randint(low, high + 1, ())) for low, high in (SCAR_WIDTH, SCAR_LENGTH))
    cut = JITTER(image[box(image, height, width)])
    opaque = torch.cat([cut, cut.new_ones(1, height, width)])
    turned = T.rotate(opaque, uniform(-SCAR_TURN, SCAR_TURN), expand=True)
    place = box(image, *turned.shape[1:])
    pasted = image.clone()
    pasted[place] = torch.where(turned[3] > 0, turned[:3], image[place])
    return pasted


def box(image: Tensor, height: int, width: int) -> tuple[slice, slice, slice]:
    """A random place for a box of this size inside a (3, H, W) image, as an index."""
    top, left = (
        int(torch.randint(room - side + 1, ())) for room, side in zip(image.shape[1:], (height, width), strict=True)
    )
    return slice(None), slice(top, top + height), slice(left, left + width)
