"""AnoGAN: the difference between an image and the closest one that a generator of normal images can make.

Thomas Schlegl, Philipp Seeböck, Sebastian M. Waldstein, Ursula Schmidt-Erfurth, Georg Langs; IPMI 2017,
arXiv 1703.05921; as the baseline of Paul Bergmann et al.: MVTec AD, CVPR 2019.

A generative adversarial network learns the normal images. For each image, gradient descent looks for the noise whose
picture is closest to it, in pixels and in features of the discriminator. What remains is the anomaly map.

The authors published no code. The layers, the training and the search are those of the public TensorFlow code that the
baseline used, the search's 300 steps of 0.02 are the baseline's. As in that code, the discriminator's norms use the
statistics of the single image while searching. There, each image starts from the noise that was found for the one
before; here, all images start from the same noise, drawn with the weights, so that scores do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.autoencoder import PATCH, mean_map, side_of, view
from anomaly_bench.components.gan import agree, frozen
from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Epoch, Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

BETAS = 0.5, 0.999  # of Adam, in training and in the search
STRIDE = 16  # of the networks
SLOPE = 0.2  # of the leaky ReLUs


class AnoGAN(nn.Module):
    """AnoGAN on whole images of objects, or on patches of textures.

    Args:
        epochs, lr, batch: for training with Adam.
        samples: random views of the training images per epoch.
        size: of the networks' square images, in pixels; images or patches are resized to it.
        latent: elements of the noise.
        width: channels at the first stride.
        moves, rate: steps of the search with Adam, and its learning rate.
        weight: of the features in the search's loss; the rest is that of the pixels.
        patches: True: 128-pixel patches, as published for textures; False: whole images, as for objects; None: chosen
            by the task's group, whole images if it has none.
    """

    start: Tensor  # (latent,) noise from which each search starts

    def __init__(
        self,
        epochs: int,
        lr: float = 2e-4,
        batch: int = 64,
        samples: int = 10000,
        size: int = 128,
        latent: int = 64,
        width: int = 64,
        moves: int = 300,
        rate: float = 0.02,
        weight: float = 0.1,
        patches: bool | None = None,
    ) -> None:
        if size < 2 * STRIDE or size % STRIDE:
            raise UsageError(f"method.size={size}: expected a multiple of {STRIDE} of at least {2 * STRIDE}")
        super().__init__()
        self.epochs, self.lr, self.batch, self.samples = epochs, lr, batch, samples
        self.size, self.latent, self.width = size, latent, width
        self.moves, self.rate, self.weight, self.patches = moves, rate, weight, patches

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create generator and discriminator, and draw where searches start.

        Raises:
            UsageError: images smaller than a patch.
        """
        self.shape = shapes[0]
        self.choose(bool(self.patches))
        self.generator = generator(self.latent, self.size, self.shape[0], self.width)
        self.critic = critic(self.shape[0], self.size, self.width)
        self.register_buffer("start", uniform(1, self.latent)[0])
        self.apply(initialise).to(memory_format=torch.channels_last)

    def choose(self, patches: bool) -> None:
        """Whole images or patches."""
        if patches:
            side_of(self.shape, patches)
        self.resolved = {"patches": patches}

    def fit(self, normals: TrainingSet) -> None:
        """Train on `samples` random views of the images per epoch: one step of the discriminator, two of the generator.

        Raises:
            UsageError: textures smaller than a patch.
            ValueError: the loss is not finite.
        """
        if self.patches is None:
            self.choose(normals.group == "textures")
        judges, generates = (
            torch.optim.Adam(network.parameters(), self.lr, BETAS, fused=True)
            for network in (self.critic, self.generator)
        )
        loop = Loop(self, [judges, generates], normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.samples, whole=True):
                views = view(normals.select(numbers), self.resolved["patches"])
                self.step(self.prepared(views), epoch)
        with torch.no_grad():
            images = self.prepared(normals.select(torch.arange(min(self.batch, len(normals)))))
            loop.spread = output_spread(self.generator(uniform(len(images), self.latent).to(images)), images)
        self.facts = {**loop.facts, **self.resolved}

    def step(self, images: Tensor, epoch: Epoch) -> None:
        """The three steps of a batch, all with the same noise."""
        judges, generates = epoch.loop.optimisers
        noise = uniform(len(images), self.latent).to(images)
        made = self.generator(noise).detach()
        epoch.step(agree(self.critic(images), 1) + agree(self.critic(made), 0), judges)
        with frozen(self.critic):
            for _ in range(2):
                epoch.step(agree(self.critic(self.generator(noise)), 1), generates, curve=False)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The L2 norm of every pixel's difference from what the search finds; the image score is the map's maximum.

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        maps = mean_map(self.differences, images, self.resolved["patches"], self.batch, PATCH)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def differences(self, images: Tensor) -> Tensor:
        """(B, C, H, W) whole images or patches -> (B, H, W)."""
        shown = self.prepared(images)
        maps = (shown - self.generator(self.search(shown))).norm(dim=1, keepdim=True)
        return F.interpolate(maps, images.shape[2:], mode="bilinear")[:, 0]

    def search(self, images: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, latent) noise: the last, not the best, of each image's own search."""
        features = self.features(images)
        with torch.enable_grad():
            noise = self.start.repeat(len(images), 1).requires_grad_()
            optimiser = torch.optim.Adam([noise], self.rate, BETAS)
            for _ in range(self.moves):
                losses = self.losses(images, features, self.generator(noise))
                (noise.grad,) = torch.autograd.grad(losses.sum(), noise)
                optimiser.step()
        return noise.detach()

    def losses(self, images: Tensor, features: Tensor, made: Tensor) -> Tensor:
        """(B,) sums over pixels and over features of absolute differences, weighted."""
        pixels = (images - made).abs().sum(dim=(1, 2, 3))
        return (1 - self.weight) * pixels + self.weight * (features - self.features(made)).abs().sum(dim=(1, 2, 3))

    def features(self, images: Tensor) -> Tensor:
        """(B, 8 * width, size / 16, size / 16) of the discriminator, whose norms take each image by itself."""
        for layer in self.critic[:-2]:
            if isinstance(layer, nn.BatchNorm2d):
                images = F.instance_norm(images, weight=layer.weight, bias=layer.bias, eps=layer.eps)
            else:
                images = layer(images)
        return images

    def prepared(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, size, size) in [-1, 1]."""
        return 2 * resized(images, (self.size, self.size)) - 1


def generator(latent: int, side: int, channels: int, width: int) -> nn.Sequential:
    """(B, latent) -> (B, channels, side, side) in [-1, 1]."""
    grid, widest = side // STRIDE, 8 * width
    layers: list[nn.Module] = [nn.Linear(latent, widest * grid**2), nn.Unflatten(1, (widest, grid, grid))]
    for inputs in (widest, widest // 2, widest // 4, width):
        last = inputs == width
        layers += [nn.BatchNorm2d(inputs), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(inputs, channels if last else inputs // 2, 5, 2, padding=2, output_padding=1))
    return nn.Sequential(*layers, nn.Tanh())


def critic(channels: int, side: int, width: int) -> nn.Sequential:
    """(B, channels, side, side) -> (B, 1)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers += [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(inputs, outputs, 5, 2)]  # as TensorFlow pads
        layers += [nn.LeakyReLU(SLOPE)] if outputs == width else [nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width * (side // STRIDE) ** 2, 1))


def initialise(layer: nn.Module) -> None:
    """Normal initial weights of deviation 0.02, those of convolutions cut at two deviations; biases of zero."""
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(layer, (nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def uniform(count: int, latent: int) -> Tensor:
    """(count, latent) in [-1, 1), drawn on the CPU, so that all devices train alike."""
    return 2 * torch.rand(count, latent) - 1
