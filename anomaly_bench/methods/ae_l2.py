"""AE-L2: an autoencoder whose squared reconstruction error is the anomaly map.

Paul Bergmann, Sindy Loewe, Michael Fauser, David Sattlegger, Carsten Steger; 2019, arXiv 1807.02011.

See anomaly_bench/components/autoencoder.py for the network, training and arguments shared with AE-SSIM.
"""

from __future__ import annotations

from torch import Tensor

from anomaly_bench.components.autoencoder import Reconstruction


class AEL2(Reconstruction):
    """AE-L2, on colour images."""

    channels = 3

    def prepare(self, images: Tensor) -> Tensor:
        """The images, unchanged."""
        return images

    def loss(self, output: Tensor, images: Tensor) -> Tensor:
        """() mean squared error."""
        return (output - images).square().mean()

    def residual(self, output: Tensor, images: Tensor) -> Tensor:
        """(B, C, H, W) twice -> (B, H, W), summed over the channels (equation 1)."""
        return (output - images).square().sum(dim=1)
