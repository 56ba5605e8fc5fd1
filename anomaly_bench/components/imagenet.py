"""ImageNet's statistics, by which networks of a method's own normalise images; frozen ones do so themselves."""

from __future__ import annotations

from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> minus the mean, divided by the standard deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std
