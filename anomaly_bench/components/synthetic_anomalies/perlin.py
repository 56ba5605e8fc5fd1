"""Simulated anomalies: textures blended into normal images where Perlin noise is high (DRAEM, section 3.3).

All random numbers come from torch's global CPU generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from torchvision.transforms.v2.functional import InterpolationMode

from anomaly_bench.errors import UsageError
from anomaly_bench.files import image_formats

OCTAVES = 6  # noise has 2^0 to 2^5 cells per axis
THRESHOLD = 0.5  # noise above it is anomalous
TEXTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
Texture = Callable[[tuple[int, int]], Tensor]  # (H, W) -> (3, H, W) uint8


def simulate(image: Tensor, texture: Texture) -> tuple[Tensor, Tensor]:
    """Add an anomaly to a normal image, with probability 1/2.

    Args:
        image: (3, H, W) in [0, 1].
        texture: returns a new random texture at each call.

    Returns:
        (3, H, W) image and (H, W) bool mask.
    """
    size = (image.shape[1], image.shape[2])
    if float(torch.rand(())) < 0.5:
        return image, torch.zeros(size, dtype=torch.bool)
    mask = perlin_mask(size)
    opacity = 1 - 0.8 * torch.rand(())  # 0.2 to 1
    overlay = augment(texture(size)).float() / 255
    blended = opacity * overlay + (1 - opacity) * image
    return torch.where(mask, blended.to(image), image), mask


def perlin_mask(size: tuple[int, int]) -> Tensor:
    """(H, W) bool: where rotated Perlin noise at a random scale exceeds the threshold."""
    rows, columns = (2 ** int(torch.randint(OCTAVES, ())) for _ in size)
    noise = perlin(size, draw_angles(rows, columns))
    return rotated(noise[None], float(torch.rand(())) * 180 - 90)[0] > THRESHOLD


def draw_angles(rows: int, columns: int) -> Tensor:
    """(rows + 1, columns + 1) random gradient angles for rows x columns cells, in radians."""
    return 2 * math.pi * torch.rand(rows + 1, columns + 1)


def perlin(size: tuple[int, int], angles: Tensor) -> Tensor:
    """Perlin noise (Perlin 2002) from a lattice of unit gradients.

    Args:
        size: (H, W) of the result.
        angles: (rows + 1, columns + 1) of the gradients at the corners of rows x columns cells.

    Returns:
        (H, W) with values of about -1 to 1.
    """
    rows, columns = angles.shape[0] - 1, angles.shape[1] - 1
    y = torch.arange(size[0]) * rows / size[0]
    x = torch.arange(size[1]) * columns / size[1]
    top, left = y.long(), x.long()
    down, right = (y - top)[:, None], (x - left)[None, :]  # position in the cell, 0 to 1

    def corner(lower: int, further: int) -> Tensor:
        angle = angles[(top + lower)[:, None], (left + further)[None, :]]
        return angle.sin() * (down - lower) + angle.cos() * (right - further)

    above = torch.lerp(corner(0, 0), corner(0, 1), fade(right))
    below = torch.lerp(corner(1, 0), corner(1, 1), fade(right))
    return math.sqrt(2) * torch.lerp(above, below, fade(down))


def fade(place: Tensor) -> Tensor:
    """6 t^5 - 15 t^4 + 10 t^3."""
    return place**3 * (place * (6 * place - 15) + 10)


def rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate (C, H, W) about its centre, with zeros beyond the border."""
    result: Tensor = T.rotate(image, degrees, InterpolationMode.BILINEAR)
    return result


def generated_texture(size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8: three octaves of noise in random colours, with stripes; a substitute for photographs."""
    colours = torch.rand(3, 4)
    layers = torch.zeros(3, *size)
    for octave in range(3):
        cells = 2 ** (octave + 2)
        layers += colours[:, octave, None, None] * perlin(size, draw_angles(cells, cells)) / (octave + 1)
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")
    direction = 2 * math.pi * torch.rand(())
    stripes = torch.sin((2 + 30 * torch.rand(())) * 2 * math.pi * (rows * direction.sin() + columns * direction.cos()))
    layers += torch.rand(3, 1, 1) * stripes / 2
    return ((layers + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def folder_texture(folder: Path, key: str = "anomaly_source") -> Texture:
    """Random photographs from a folder, such as DTD's `images`; `key`: the method's setting that named it.

    Raises:
        UsageError: no such folder, or no images in it.
    """
    found = folder.rglob("*") if folder.is_dir() else ()
    files = sorted(path for path in found if path.suffix.lower() in TEXTURE_SUFFIXES)
    if not files:
        raise UsageError(f"method.{key}={folder}: no images there; expected a folder such as DTD's `images`")

    @functools.lru_cache(maxsize=512)
    def read(number: int, size: tuple[int, int]) -> Tensor:
        with PILImage.open(files[number], formats=image_formats()) as image:
            pixels = T.pil_to_tensor(image.convert("RGB"))
            texture: Tensor = T.resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=False)
            return texture

    return lambda size: read(int(torch.randint(len(files), ())), size)


def uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def autocontrast(image: Tensor, cutoff: int) -> Tensor:
    """Stretch each channel of a (3, H, W) uint8 image to 0..255 without its `cutoff` % darkest and lightest pixels."""
    stretched: Tensor = T.pil_to_tensor(ImageOps.autocontrast(T.to_pil_image(image), cutoff))
    return stretched


AUGMENTATIONS: Sequence[Callable[[Tensor], Tensor]] = (
    lambda image: torch.stack([T.adjust_gamma(channel[None], uniform(0.5, 2))[0] for channel in image]),
    lambda image: (image * uniform(0.8, 1.2) + uniform(-30, 30)).clamp(0, 255).to(torch.uint8),
    lambda image: T.adjust_sharpness(image, uniform(0, 2)),
    lambda image: T.adjust_saturation(T.adjust_hue(image, uniform(-0.2, 0.2)), uniform(0.6, 1.4)),
    lambda image: T.solarize(image, uniform(32, 128)) if float(torch.rand(())) < 0.5 else image,
    lambda image: T.posterize(image, int(torch.randint(1, 9, ()))),
    T.invert,
    lambda image: autocontrast(image, int(torch.randint(21, ()))),
    T.equalize,
    lambda image: rotated(image, uniform(-45, 45)),
)


def augment(image: Tensor) -> Tensor:
    """Apply three of the ten augmentations, with imgaug's ranges, chosen at random, to a (3, H, W) uint8 image."""
    for number in torch.randperm(len(AUGMENTATIONS))[:3]:
        image = AUGMENTATIONS[int(number)](image)
    return image
