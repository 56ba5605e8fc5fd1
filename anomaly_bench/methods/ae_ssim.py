"""AE-SSIM: an autoencoder trained and scored by structural similarity.

Paul Bergmann, Sindy Loewe, Michael Fauser, David Sattlegger, Carsten Steger; 2019, arXiv 1807.02011.

Images are converted to greyscale, so pure colour defects are invisible. See anomaly_bench/components/autoencoder.py for
the network, training and arguments shared with AE-L2.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from anomaly_bench.components.autoencoder import Reconstruction
from anomaly_bench.components.losses import dissimilarity, ssim


class AESSIM(Reconstruction):
    """AE-SSIM, on greyscale images."""

    channels = 1

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W), with ITU-R 601 weights."""
        grey: Tensor = rgb_to_grayscale(images)
        return grey

    def loss(self, output: Tensor, images: Tensor) -> Tensor:
        """() 1 - mean SSIM (equation 9)."""
        return 1 - ssim(output, images)

    def residual(self, output: Tensor, images: Tensor) -> Tensor:
        """1 - SSIM at every pixel, (B, 1, H, W) twice -> (B, H, W)."""
        return dissimilarity(output, images)
