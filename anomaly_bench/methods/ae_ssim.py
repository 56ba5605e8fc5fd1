"""AE-SSIM: an autoencoder that is trained and scored by structural similarity.

Paul Bergmann, Sindy Loewe, Michael Fauser, David Sattlegger, Carsten Steger; 2019, arXiv 1807.02011.

Images are grey, so a defect of colour alone is not seen. See anomaly_bench/autoencoder.py for the network and the
training, which AE-L2 shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from anomaly_bench.components.autoencoder import AutoEncoder, residual_map, side_of, train
from anomaly_bench.components.losses import ssim, ssim_map
from anomaly_bench.errors import NotFittedError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class AESSIM(nn.Module):
    """AE-SSIM.

    Args:
        epochs, lr, weight_decay, batch: of the training by Adam.
        samples: random views of the training images in an epoch.
        latent: numbers that an image or patch is narrowed down to.
        patches: patches of 128 pixels, as published for textures; False: whole images, as for objects; None: as the
            task's group says, whole images where it has none.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        weight_decay: float = 1e-5,
        batch: int = 128,
        samples: int = 10000,
        latent: int = 128,
        patches: bool | None = None,
    ) -> None:
        super().__init__()
        self.epochs, self.lr, self.weight_decay, self.batch = epochs, lr, weight_decay, batch
        self.samples, self.latent, self.patches = samples, latent, patches

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Make the network for images of the (3, H, W) shape.

        Raises:
            UsageError: a size that it cannot take.
        """
        self.network = AutoEncoder(1, side_of(shapes[0], bool(self.patches)), self.latent)

    def fit(self, normals: TrainingSet) -> None:
        """Train on random views.

        Raises:
            ValueError: a loss that is not finite.
        """
        if self.patches is None:
            self.patches = normals.group == "textures"
        self.resolved = {"patches": self.patches}
        self.build([(3, *normals.size)])
        self.to(normals.device)
        loop = train(
            self,
            self.network,
            normals,
            mean_dissimilarity,
            grey,
            self.patches,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch=self.batch,
            samples=self.samples,
        )
        self.facts = {**loop.facts, "patches": self.patches}

    def score(self, images: Tensor) -> Scores:
        """1 - SSIM at every pixel; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        if not hasattr(self, "network"):
            raise NotFittedError("AESSIM")
        maps = residual_map(self.network, grey(images), dissimilarity, bool(self.patches), self.batch)
        return Scores(maps.amax(dim=(1, 2)), maps)


def grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), weights of ITU-R 601."""
    changed: Tensor = rgb_to_grayscale(images)
    return changed


def dissimilarity(output: Tensor, images: Tensor) -> Tensor:
    """1 - SSIM at every pixel, (B, 1, H, W) twice -> (B, H, W)."""
    return 1 - ssim_map(output, images)[:, 0]


def mean_dissimilarity(output: Tensor, images: Tensor) -> Tensor:
    """() 1 - mean SSIM (equation 9)."""
    return 1 - ssim(output, images)
