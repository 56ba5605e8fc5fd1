"""GradCon: an autoencoder whose gradients point the same way for all normal images.

Gukyeong Kwon, Mohit Prabhushankar, Dogancan Temel, Ghassan AlRegib; ECCV 2020, arXiv 2007.09507.

The gradient of the reconstruction error with respect to the decoder's weights is compared with the mean gradient of the
training so far: a regulariser while training, and with the error itself the score. As in the authors' code, the mean is
that of the gradients of the total loss, over all steps, and the epoch of the lowest loss on held-out images is kept
(they look at every epoch, but save only every fifth). There is no anomaly map.

The published numbers are those of protocol D of `dataset=cifar10`, which holds out the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from anomaly_bench.components.small_images import resized
from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

SIDE = 28  # pixels: what the network takes
ENCODER = (32, 32, 64, 64)  # output channels
DECODER = ((64, 2), (32, 1), (32, 2), (3, 1))  # output channels and padding


class GradCon(nn.Module):
    """GradCon with the convolutional autoencoder.

    Args:
        epochs, lr, batch: for training with Adam.
        weight: of the gradients' alignment in the training loss.
        score_weight: of the gradients' alignment in the score.
        held_out: share of the training images on which the best epoch is chosen, if the dataset holds out none.
        seed: for this split.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-3,
        batch: int = 64,
        weight: float = 0.03,
        score_weight: float = 0.12,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.epochs, self.lr, self.batch = epochs, lr, batch
        self.weight, self.score_weight, self.held_out, self.seed = weight, score_weight, held_out, seed

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the network for images of C channels, and a mean gradient of zero."""
        channels = shapes[0][0]
        down: list[nn.Module] = []
        for inputs, outputs in zip((channels, *ENCODER), ENCODER, strict=False):
            down += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=2), nn.ReLU()]
        up: list[nn.Module] = []
        inputs = ENCODER[-1]
        for outputs, padding in (*DECODER[:-1], (channels, DECODER[-1][1])):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=padding), nn.ReLU()]
            inputs = outputs
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up[:-1], nn.Sigmoid())
        for number, weight in enumerate(self.weights.values()):
            self.register_buffer(f"mean_gradient_{number}", torch.zeros_like(weight))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The decoder's weights, without biases."""
        return {name: value for name, value in self.decoder.named_parameters() if name.endswith("weight")}

    @property
    def mean_gradients(self) -> list[Tensor]:
        """Of the decoder's weights, over all steps so far."""
        return [self.get_buffer(f"mean_gradient_{number}") for number in range(len(DECODER))]

    def fit(self, normals: TrainingSet) -> None:
        """Train, and keep the epoch with the lowest loss on held-out images.

        Raises:
            ValueError: fewer than two images and none held out by the dataset, or the loss is not finite.
        """
        trained, held_out = normals.hold_out(self.held_out, self.seed)
        images, others = self.prepared(trained), self.prepared(held_out)
        loop = Loop(self, torch.optim.Adam(self.parameters(), self.lr, fused=True), normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(images), self.batch):
                epoch.step(self.loss(images[numbers.to(images.device)], first=loop.steps == 0))
                self.add_gradients(loop.steps)
            loop.keep_best(self.mean_loss(others), self)
        loop.load_best(self)
        with torch.no_grad():
            loop.spread = output_spread(self.decoder(self.encoder(others[: self.batch])), others[: self.batch])
        self.facts = loop.facts

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The reconstruction error, minus the weighted alignment of its gradient with the mean gradient (equation 6).

        Args:
            images: (B, C, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        images = resized(images, (SIDE, SIDE))
        codes = self.encoder(images)
        errors = (self.decoder(codes) - images).square().mean(dim=(1, 2, 3))
        gradients = self.gradients(codes, images)
        alignments = [
            F.cosine_similarity(gradient.flatten(1), mean.flatten()[None])
            for gradient, mean in zip(gradients, self.mean_gradients, strict=True)
        ]
        return Scores(errors - self.score_weight * torch.stack(alignments).mean(dim=0), None)

    def gradients(self, codes: Tensor, images: Tensor) -> list[Tensor]:
        """(B, *weight.shape) gradients of each image's own reconstruction error, for each of the decoder's weights."""
        fixed = {name: value.detach() for name, value in self.decoder.named_parameters()}

        def error(weights: dict[str, Tensor], code: Tensor, image: Tensor) -> Tensor:
            return F.mse_loss(functional_call(self.decoder, {**fixed, **weights}, (code[None],))[0], image)

        weights = {name: fixed[name] for name in self.weights}
        gradients: dict[str, Tensor] = vmap(grad(error), (None, 0, 0))(weights, codes, images)
        return list(gradients.values())

    def loss(self, images: Tensor, first: bool = False) -> Tensor:
        """() reconstruction error of a batch, minus the weighted alignment of its gradient with the mean gradient.

        Args:
            first: there is no mean gradient yet.
        """
        error = F.mse_loss(self.decoder(self.encoder(images)), images)
        if first:
            return error
        gradients = torch.autograd.grad(error, list(self.weights.values()), create_graph=True)
        alignments = [
            F.cosine_similarity(gradient.flatten(), mean.flatten(), dim=0)
            for gradient, mean in zip(gradients, self.mean_gradients, strict=True)
        ]
        return error - self.weight * torch.stack(alignments).mean()

    @torch.no_grad()
    def add_gradients(self, count: int) -> None:
        """Make the gradients of the last of `count` steps part of the mean gradients."""
        for weight, mean in zip(self.weights.values(), self.mean_gradients, strict=True):
            assert weight.grad is not None
            mean.lerp_(weight.grad, 1 / count)

    def mean_loss(self, images: Tensor) -> float:
        """The loss of held-out images, the mean over batches by their sizes."""
        losses = [float(self.loss(batch).detach()) * len(batch) for batch in torch.split(images, self.batch)]
        return sum(losses) / len(images)

    def prepared(self, normals: TrainingSet) -> Tensor:
        """(N, C, 28, 28), all images."""
        return torch.cat([resized(images, (SIDE, SIDE)) for images in normals.images(self.batch)])
