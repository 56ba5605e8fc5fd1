"""Losses of reconstruction methods: structural similarity and the focal loss."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_bench.hardware.torch_setup import float64_device

SIGMA, RADIUS = 1.5, 5  # pixels: an 11 x 11 Gaussian window
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def ssim_map(first: Tensor, second: Tensor, zeros: bool = False) -> Tensor:
    """Structural similarity at every pixel (Wang et al. 2004, equation 13), per channel.

    Equals scikit-image's structural_similarity with gaussian_weights=True, sigma=1.5, use_sample_covariance=False and
    data_range=1.

    Args:
        first, second: (B, C, H, W) of values in [0, 1].
        zeros: pad with zeros (as in DRAEM's code) instead of reflecting the image (border pixel repeated).

    Returns:
        (B, C, H, W), at most 1.
    """
    parts = torch.stack([first, second, first * first, second * second, first * second])  # (5, B, C, H, W)
    blurred = blur(parts.flatten(0, 2)[:, None], zeros).view(parts.shape)
    mean1, mean2, square1, square2, product = blurred.unbind()
    variances = square1 - mean1 * mean1 + square2 - mean2 * mean2
    covariance = product - mean1 * mean2
    likeness = (2 * mean1 * mean2 + C1) * (2 * covariance + C2)
    return torch.div(likeness, (mean1 * mean1 + mean2 * mean2 + C1) * (variances + C2))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity () over all pixels whose window lies inside the image, as in scikit-image."""
    inner = slice(RADIUS, -RADIUS)
    return ssim_map(first, second)[..., inner, inner].mean()


def dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """1 - structural similarity at every pixel of grey images, (B, 1, H, W) twice -> (B, H, W).

    In float64: small variances are differences of large numbers, and would depend on the other images of a batch.
    """
    device = float64_device(first.device)
    exact = ssim_map(first.to(device, torch.float64), second.to(device, torch.float64))[:, 0]
    return (1 - exact).to(first)


def blur(maps: Tensor, zeros: bool) -> Tensor:
    """Blur (N, 1, H, W) with the Gaussian window, along columns, then rows.

    A product with the matrix of all windows: on a CPU several times faster than a convolution of one channel.
    """
    height, width = maps.shape[2:]
    return windows(height, zeros).to(maps) @ maps @ windows(width, zeros).to(maps).T


@functools.lru_cache(maxsize=8)
def windows(side: int, zeros: bool) -> Tensor:
    """(side, side) weights in float64: row i holds those that the window around pixel i gives to all pixels."""
    weights = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64) / SIGMA) ** 2)
    padded = (weights / weights.sum()).repeat(side, 1)  # (side, 2 RADIUS + 1)
    places = torch.arange(side)[:, None] + torch.arange(-RADIUS, RADIUS + 1)
    inside = (places >= 0) & (places < side)
    if zeros:
        padded = padded * inside
    reflected = torch.where(places < 0, -1 - places, torch.where(places >= side, 2 * side - 1 - places, places))
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, reflected.clamp(0, side - 1), padded)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Mean focal loss () over pixels (Lin et al. 2017, equation 4, alpha = 1), as in DRAEM's code.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) classes, int64.
        gamma: focusing parameter.
        smooth: label smoothing: the target is 1 - smooth for the true class and smooth / (K - 1) for the others; also
            added to the probability before taking its logarithm.
    """
    classes = logits.shape[1]
    probability = logits.softmax(dim=1)
    one_hot = F.one_hot(target, classes).movedim(-1, 1).to(probability).clamp(smooth / (classes - 1), 1 - smooth)
    right = (one_hot * probability).sum(dim=1) + smooth
    return torch.mean(-((1 - right).clamp(min=0) ** gamma) * right.log())
