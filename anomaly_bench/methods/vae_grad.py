"""VAE-Grad: an image is moved by gradient descent until an autoencoder reconstructs it; how far it went is the map.

David Dehaene, Oriel Frigo, Sebastien Combrexelle, Pierre Eline: Iterative Energy-Based Projection on a Normal Data
Manifold for Anomaly Localization; ICLR 2020, arXiv 2002.03734.

The energy is the reconstruction error of the moved image plus the weighted distance to the image itself. Its gradient
goes through the network, in both of its places; public re-implementations detach the reconstruction, and so only pull
the image towards it. Each step is weighted by the squared difference from the reconstruction, pixel by pixel, so that
what is reconstructed well stays. An image stops once its error is no larger than the smallest of a training image.

The authors published no code. The network is that of AE-L2 with two heads (`network: vae`), or AE-L2's or AE-SSIM's
own, trained like those; anomaly_bench/components/autoencoder.py has it, and the training views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from anomaly_bench.components.autoencoder import PATCH, Reconstruction, mean_map, places
from anomaly_bench.components.losses import dissimilarity, ssim
from anomaly_bench.components.validation import check_choice, check_fitted
from anomaly_bench.components.variational import divergence, sample
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

NETWORKS = ("vae", "ae_l2", "ae_ssim")


class VAEGrad(Reconstruction):
    """Projection by gradients of an autoencoder's error.

    Args:
        network: "vae", "ae_l2" or "ae_ssim"; the last one sees grey images.
        rate: of the descent.
        weight: of the distance to the image in the energy.
        moves: steps of the descent at most.
        epochs, lr, weight_decay, batch, samples, latent, patches: see Reconstruction.
    """

    threshold: Tensor  # () error at which an image stops

    def __init__(
        self,
        epochs: int,
        network: str = "vae",
        rate: float = 0.5,
        weight: float = 0.05,
        moves: int = 100,
        lr: float = 2e-4,
        weight_decay: float = 1e-5,
        batch: int = 128,
        samples: int = 10000,
        latent: int = 100,
        patches: bool | None = None,
    ) -> None:
        check_choice("network", network, NETWORKS)
        super().__init__(epochs, lr, weight_decay, batch, samples, latent, patches)
        self.kind, self.rate, self.weight, self.moves = network, rate, weight, moves
        self.variational, self.channels = network == "vae", 1 if network == "ae_ssim" else 3

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for images of the given (3, H, W) shape.

        Raises:
            UsageError: unsupported image size.
        """
        super().build(shapes)
        self.register_buffer("threshold", torch.zeros(()))

    def fit(self, normals: TrainingSet) -> None:
        """Train the network; the smallest error of a training image, or of a patch of one, is where images stop.

        Raises:
            ValueError: the loss is not finite.
        """
        super().fit(normals)
        with torch.no_grad():
            inputs = (self.prepare(images) for images in normals.images(self.batch))
            least = [self.errors(self.network(part), part).amin() for each in inputs for part in self.parts(each)]
        self.threshold.copy_(torch.stack(least).amin())

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The absolute change of every pixel, summed over the channels; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        maps = mean_map(self.change, self.prepare(images), self.resolved["patches"], self.batch, PATCH)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def change(self, images: Tensor) -> Tensor:
        """(B, C, side, side) -> (B, side, side)."""
        return (self.project(images) - images).abs().sum(dim=1)

    def project(self, images: Tensor) -> Tensor:
        """(B, C, side, side) images, each moved on its own until its error is at most the threshold."""
        moved = images
        going = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for _ in range(self.moves):
            slopes, outputs, errors = self.slopes(moved, images)
            going = going & (errors > self.threshold)
            if not (torch.compiler.is_compiling() or going.any()):  # a graph has no conditions
                break
            step = self.rate * slopes * (moved - outputs).square()
            moved = torch.where(going.view(-1, 1, 1, 1), (moved - step).clamp(0, 1), moved)
        return moved

    def slopes(self, moved: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of each image's energy (B, C, side, side), the reconstructions, and their errors (B,)."""
        with torch.enable_grad():
            moved = moved.detach().requires_grad_()
            outputs = self.network(moved)
            errors = self.errors(outputs, moved)
            distances = (moved - images).abs().sum(dim=(1, 2, 3))
            (slopes,) = torch.autograd.grad((errors + self.weight * distances).sum(), moved)
        return slopes, outputs.detach(), errors.detach()

    def errors(self, outputs: Tensor, images: Tensor) -> Tensor:
        """(B,) summed over all pixels: a mean would make the steps as many times shorter."""
        return self.residual(outputs, images).sum(dim=(1, 2))

    def training_loss(self, views: Tensor) -> Tensor:
        """() the loss of AE-L2 or AE-SSIM, or squared errors and the divergence, both summed over all elements."""
        if self.kind == "ae_ssim":
            return 1 - ssim(self.network(views), views)
        if self.kind == "ae_l2":
            difference: Tensor = self.network(views) - views
            return difference.square().mean()
        means, log_variances = self.network.encode(views).chunk(2, dim=1)
        outputs = self.network.decode(sample(means, log_variances))
        return (self.errors(outputs, views) + divergence(means, log_variances)).mean()

    def parts(self, inputs: Tensor) -> list[Tensor]:
        """The images, or their patches side by side."""
        if not self.resolved["patches"]:
            return [inputs]
        corners = places(inputs.shape[2], inputs.shape[3], PATCH)
        return [inputs[:, :, top : top + PATCH, left : left + PATCH] for top, left in corners]

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H, W)."""
        grey: Tensor = rgb_to_grayscale(images) if self.channels == 1 else images
        return grey

    def residual(self, outputs: Tensor, images: Tensor) -> Tensor:
        """1 - SSIM of grey images, else the squared error summed over the channels, (B, side, side)."""
        return dissimilarity(outputs, images) if self.channels == 1 else (outputs - images).square().sum(dim=1)
