"""Checks that methods share: of their settings, of the shapes they are built for, of images, and of being fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from anomaly_bench.errors import NotFittedError, UsageError, closest

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


def check_fitted(method: nn.Module) -> None:
    """For the first line of `score`: a method is in evaluation mode once it has been fitted or loaded, not before.

    Raises:
        NotFittedError: it is in training mode, as every new module is.
    """
    if method.training:
        raise NotFittedError(type(method).__name__)


def check_grid(found: Sequence[int], fitted: Sequence[int]) -> None:
    """Of a method that keeps statistics of each position: the (h, w) of features now, and of those it was fitted on.

    Raises:
        ValueError: images of another size.
    """
    if tuple(found) != tuple(fitted):
        raise ValueError(f"feature grid {tuple(found)}, fitted {tuple(fitted)}: score images of one size")


def check_sides(name: str, size: Sequence[int], step: int) -> None:
    """Raise UsageError unless the (H, W) sides of images are multiples of `step`; `name` is who needs that."""
    height, width = size
    if height % step or width % step:
        raise UsageError(f"{name} cannot take images of {height} x {width} pixels; expected {multiples(height, step)}")


def multiples(side: int, step: int) -> str:
    """The end of an error about a side that is no multiple of `step`: the two nearest that are, and how to get them."""
    below = max(step, side - side % step)
    return f"sides that are multiples of {step}, such as {below} or {below + step}: give input.resize or input.crop"


def check_count(normals: TrainingSet, least: int, needs: str) -> None:
    """Raise ValueError where there are fewer than `least` training images; `needs` is what they are needed for."""
    if len(normals) < least:
        images = "image" if len(normals) == 1 else "images"
        raise ValueError(f"{normals.name}: {len(normals)} training {images}; {needs} needs at least {least}: add some")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise UsageError where a setting of the method is none of its choices."""
    if value not in choices:
        raise UsageError(f"method.{key}={value}: no such choice{closest(value, choices)}")


def check_kernels(kernels: Sequence[int]) -> None:
    """Raise UsageError unless the sides of convolutions that keep the grid are odd, and there is one."""
    if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise UsageError(f"method.kernels={list(kernels)}: expected odd numbers, such as [3,1]")
