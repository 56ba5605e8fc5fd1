"""Checks that methods share: settings, feature shapes, image sizes, and whether a method has been fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from anomaly_bench.errors import NotFittedError, UsageError, closest

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


def check_fitted(method: nn.Module) -> None:
    """For the first line of `score`: a method is in evaluation mode only after it has been fitted or loaded.

    Raises:
        NotFittedError: the method is in training mode, like every new module.
    """
    if method.training:
        raise NotFittedError(type(method).__name__)


def check_grid(found: Sequence[int], fitted: Sequence[int]) -> None:
    """For methods that store statistics per position: compare the (h, w) feature grid with the one fitted on.

    Raises:
        ValueError: images of a different size.
    """
    if tuple(found) != tuple(fitted):
        raise ValueError(f"feature grid {tuple(found)}, fitted on {tuple(fitted)}: score images of the same size")


def check_sides(name: str, size: Sequence[int], step: int) -> None:
    """Raise UsageError unless both sides of (H, W) images are multiples of `step`, as `name` requires."""
    height, width = size
    if height % step or width % step:
        raise UsageError(f"{name} cannot take images of {height} x {width} pixels; expected {multiples(height, step)}")


def multiples(side: int, step: int) -> str:
    """The end of an error about a side that is not a multiple of `step`: two that are, and how to get them."""
    below = max(step, side - side % step)
    return f"sides that are multiples of {step}, such as {below} or {below + step}: set input.resize or input.crop"


def check_count(normals: TrainingSet, least: int, needs: str) -> None:
    """Raise ValueError if there are fewer than `least` training images; `needs` names what needs them."""
    if len(normals) < least:
        images = "image" if len(normals) == 1 else "images"
        raise ValueError(f"{normals.name}: {len(normals)} training {images}; {needs} needs at least {least}: add some")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise UsageError if a method's setting is not one of the choices."""
    if value not in choices:
        raise UsageError(f"method.{key}={value}: no such choice{closest(value, choices)}")


def check_positive(**settings: int | None) -> None:
    """Raise UsageError unless a method's settings are at least 1; None is not checked."""
    for key, value in settings.items():
        if value is not None and value < 1:
            raise UsageError(f"method.{key}={value}: expected at least 1")


def check_kernels(kernels: Sequence[int]) -> None:
    """Raise UsageError unless there is at least one kernel size and all are odd, as grid-preserving ones must be."""
    if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise UsageError(f"method.kernels={list(kernels)}: expected odd numbers, such as [3,1]")
