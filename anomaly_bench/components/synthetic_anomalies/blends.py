"""Patches of one image blended into another by Poisson's equation (NSA, Schlueter et al. 2022, arXiv 2109.15222).

The blending (Perez et al. 2003, Poisson Image Editing) is that of OpenCV's seamlessClone, which NSA's code calls.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch.nn.functional import interpolate

RIM = 3  # pixels along the border of a region that keep the image's gradients
LEAST = 0.03  # of half sides as shares of the image's, to which the gamma distribution adds
SMALLEST = 50  # pixels that are blended, at least
SHAPE, SCALE = 2, 0.05  # of the gamma distribution of half sides
SPREAD = 0.5  # deviation of a patch's change of size
OVERLAP = 0.25  # of the patch's object with the image's object, at least
TRIALS = 199  # places that are tried
OBJECT, CHANGE, DISC = 7, 5, 5  # median filters: sides of those of objects and changes, radius of that of labels
TOLERANCE = 1  # grey levels: smaller changes are no anomaly

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)


@dataclass(frozen=True)
class Patches:
    """How patches are drawn and labelled.

    Args:
        most: patches an image; the first always, each further one by a fair coin.
        rows, columns: bounds of the sides, as shares of the image's.
        resize: bounds of the factor by which a patch changes its size.
        mixed: keep the stronger gradient of patch and image, not always the patch's.
        background: grey value, and distance from it above which a pixel belongs to the object; None: no distinction.
        share: of a patch that must be object.
        softness, midpoint: in grey levels; a change becomes the label 1 / (1 + exp((midpoint - change) / softness)).
    """

    most: int = 3
    rows: Sequence[float] = (0.03, 0.4)
    columns: Sequence[float] = (0.03, 0.4)
    resize: Sequence[float] = (0.7, 1.3)
    mixed: bool = True
    background: Sequence[int] | None = None
    share: float = 0.0
    softness: float = 3.0
    midpoint: float = 7.0


def blend_patches(image: Pixels, other: Pixels, rules: Patches) -> tuple[Pixels, NDArray[np.float32]]:
    """Blend patches of another image into an image: the result, and its labels (H, W) from 0 to 1."""
    result, region = image, np.zeros(image.shape[:2], bool)
    objects = [object_of(each, rules.background) for each in (image, other)]
    for number in range(rules.most):
        if number == 0 or float(torch.rand(())) < 0.5:
            result, region = blend_one(result, region, other, objects, rules)
    return result, labels(image, result, region, rules)


def blend_one(
    image: Pixels, region: Mask, other: Pixels, objects: Sequence[Mask], rules: Patches
) -> tuple[Pixels, Mask]:
    """Blend one patch; image and changed region stay as they are if no place fits."""
    limits = zip((rules.rows, rules.columns), region.shape, strict=True)
    bounds = [[round(share * side) for share in shares] for shares, side in limits]
    found = cut(objects[1], bounds, rules.share)
    if found is None:
        return image, region
    patch, own = resized(other[found], objects[1][found], bounds, rules.resize)
    height, width = own.shape
    place = destination(objects[0], own, rules.share)
    if place is None or min(height, width) < 5 or (height - 2) * (width - 2) < SMALLEST:
        return image, region
    rows, columns = place
    image, region = image.copy(), region.copy()
    shift = 1 + width % 2  # of the blended region in the box, as the authors' code places it
    inner = slice(rows.start + 1, rows.stop - 1), slice(columns.start + shift, columns.start + shift + width - 2)
    image[inner] = seamless_clone(image[inner], patch[1:-1, 1:-1], rules.mixed)
    region[place] = own | objects[0][place]
    return image, region


def cut(thing: Mask, bounds: Sequence[Sequence[int]], share: float) -> tuple[slice, slice] | None:
    """A random box, of which more than a share is object; None: none was found."""
    halves = []
    for (low, high), side in zip(bounds, thing.shape, strict=True):
        drawn = LEAST + SCALE * float(torch.empty(SHAPE).exponential_().sum())
        halves.append(int(min(max(drawn * side, low), high)))
    for _ in range(TRIALS):
        box = []
        for (low, _), half, side in zip(bounds, halves, thing.shape, strict=True):
            centre = int(torch.randint(low, side - low, ()))
            box.append(slice(max(0, centre - half), min(side, centre + half)))
        if thing[box[0], box[1]].mean() > share:
            return box[0], box[1]
    return None


def resized(
    patch: Pixels, thing: Mask, bounds: Sequence[Sequence[int]], factors: Sequence[float]
) -> tuple[Pixels, Mask]:
    """Scale a patch and its object by a random factor, within the bounds (which were those of half sides before)."""
    (least_rows, most_rows), (least_columns, most_columns) = bounds
    height, width = thing.shape
    factor = min(max(1 + SPREAD * float(torch.randn(())), factors[0]), factors[1])
    wanted = min(max(factor * height, least_rows), most_rows)
    columns = min(max(int(wanted / height * width), least_columns), most_columns)
    rows = min(max(int(columns / width * height), least_rows), most_rows)
    planes = torch.from_numpy(np.dstack([patch, thing])).permute(2, 0, 1)[None].float()
    scaled = interpolate(planes, (rows, columns), mode="bilinear")[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return scaled[..., :3], scaled[..., 3] > 0


def destination(thing: Mask, own: Mask, share: float) -> tuple[slice, slice] | None:
    """A random place inside the image for a patch with an object of its own; None: none was found."""
    for _ in range(TRIALS):
        box = []
        for side, length in zip(thing.shape, own.shape, strict=True):
            centre = int(torch.randint(length // 2 + 1, side - length // 2 - 1, ()))
            box.append(slice(centre - length // 2, centre + (length + 1) // 2))
        if own.mean() > share and (own & thing[box[0], box[1]]).sum() > OVERLAP * own.sum():
            return box[0], box[1]
    return None


def object_of(image: Pixels, background: Sequence[int] | None) -> Mask:
    """Where an image differs from its background; everywhere without one."""
    if background is None:
        return np.ones(image.shape[:2], bool)
    value, distance = background
    apart = np.abs(image.mean(axis=2) - value) > distance
    return majority(apart, OBJECT)


def labels(image: Pixels, result: Pixels, region: Mask, rules: Patches) -> NDArray[np.float32]:
    """(H, W): a logistic function of the change within the changed region, 0 outside."""
    change = np.abs(image.astype(np.int16) - result).sum(axis=2)  # of three channels
    changed = majority(region & (change > 3 * TOLERANCE), CHANGE)
    made = np.zeros(region.shape, np.float32)
    if changed.any():
        places = np.argwhere(changed)
        part = tuple(
            slice(max(0, low - DISC), high + DISC + 1)
            for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True)
        )
        smooth = median_filter((change * changed)[part], footprint=disc(DISC), mode="nearest") / 3
        made[part] = changed[part] / (1 + np.exp((rules.midpoint - smooth) / rules.softness))
    return made


def seamless_clone(target: Pixels, patch: Pixels, mixed: bool) -> Pixels:
    """Blend an (h, w, 3) patch into a region of the same size, whose outermost pixels stay.

    The result has the patch's gradients, but for a rim; mixed: where the patch's differ more between the two axes than
    the region's, as OpenCV compares them. Values are cut off to whole grey levels.
    """
    inside, around = patch.astype(np.float64), target.astype(np.float64)
    fields = [[np.diff(each, axis=axis, append=0) for axis in (0, 1)] for each in (inside, around)]
    chosen = np.zeros(target.shape, bool)
    chosen[RIM:-RIM, RIM:-RIM] = True
    if mixed:
        ours, theirs = (np.abs(right - down) for down, right in fields)
        chosen &= ours > theirs
    down, right = (np.where(chosen, own, other) for own, other in zip(*fields, strict=True))
    middle = slice(1, -1), slice(1, -1)
    divergence = down[middle] - down[:-2, 1:-1] + right[middle] - right[1:-1, :-2]
    around[middle] = 0
    divergence -= around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    cloned = target.copy()
    cloned[middle] = solve_poisson(divergence).clip(0, 255)
    return cloned


def solve_poisson(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (h, w, C) whose five-point Laplacian, with zeros around it, has these values: by sine transforms."""
    rows, columns = (2 * np.cos(np.pi * np.arange(1, side + 1) / (side + 1)) for side in values.shape[:2])
    waves = scipy.fft.dstn(values, type=1, axes=(0, 1)) / (rows[:, None] + columns - 4)[..., None]
    solution: NDArray[np.float64] = scipy.fft.idstn(waves, type=1, axes=(0, 1))
    return solution


def majority(mask: Mask, side: int) -> Mask:
    """The median of squares of an odd side; the border is repeated."""
    half = side // 2
    sums = np.pad(mask, half, "edge").astype(np.int32).cumsum(axis=0).cumsum(axis=1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    found: Mask = counts > side**2 // 2
    return found


@functools.cache
def disc(radius: int) -> NDArray[Any]:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(rows**2 + columns**2 <= radius**2)
