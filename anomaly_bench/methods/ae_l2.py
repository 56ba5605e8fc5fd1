"""AE-L2: an autoencoder whose squared error is the anomaly map.

Paul Bergmann, Sindy Loewe, Michael Fauser, David Sattlegger, Carsten Steger; 2019, arXiv 1807.02011.

See anomaly_bench/autoencoder.py for the network and the training, which AE-SSIM shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from anomaly_bench.components.autoencoder import AutoEncoder, residual_map, side_of, train
from anomaly_bench.errors import NotFittedError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet


class AEL2(nn.Module):
    """AE-L2.

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
        self.network = AutoEncoder(3, side_of(shapes[0], bool(self.patches)), self.latent)

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
            mean_error,
            nn.Identity(),
            self.patches,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch=self.batch,
            samples=self.samples,
        )
        self.facts = {**loop.facts, "patches": self.patches}

    def score(self, images: Tensor) -> Scores:
        """The squared error at every pixel; the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        if not hasattr(self, "network"):
            raise NotFittedError("AEL2")
        maps = residual_map(self.network, images, squared_error, bool(self.patches), self.batch)
        return Scores(maps.amax(dim=(1, 2)), maps)


def squared_error(output: Tensor, images: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, H, W), summed over the channels (equation 1)."""
    return (output - images).square().sum(dim=1)


def mean_error(output: Tensor, images: Tensor) -> Tensor:
    """() mean squared error."""
    return (output - images).square().mean()
