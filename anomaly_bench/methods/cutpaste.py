"""CutPaste: Self-Supervised Learning for Anomaly Detection and Localization.

Chun-Liang Li, Kihyuk Sohn, Jinsung Yoon, Tomas Pfister; CVPR 2021, arXiv 2104.04015.

A ResNet-18 trained from scratch learns to tell normal images from copies with a rectangle (CutPaste) or a thin, turned
one (a scar) of the same image pasted elsewhere. A Gaussian is fitted to its pooled features, of length one, of the
normal images; the image score is the negative log-density without its constant, half the squared Mahalanobis distance.
The map comes from a second network that is trained in the same way on patches: the scores of the patches around a
pixel, weighted by a Gaussian. Or, with one network only, it is Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of
the image score.

The authors published no code for MVTec AD, and re-implementations stay about four points below the paper. Ours are, as
the paper does not say it or we have not seen it: how far images are shifted, the layers of the head, the shrunk
covariance (Ledoit-Wolf), a single Gaussian for the patches of all places, and the width of the map's Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.gaussian import LEAST, Gaussian
from anomaly_bench.components.imagenet import normalised
from anomaly_bench.components.patch_maps import gaussian, spread
from anomaly_bench.components.patches import cut_patches, starts
from anomaly_bench.components.residual_network import resnet18
from anomaly_bench.components.synthetic_anomalies.cuts import JITTER, LARGEST_SCAR, box, cut_paste, scar
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_choice, check_count, check_fitted
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

SHIFT = 0.1  # largest shift of training images, as a share of the side
SCORED = 256  # patches per forward pass


def cut_paste_or_scar(image: Tensor) -> Tensor:
    return cut_paste(image) if float(torch.rand(())) < 0.5 else scar(image)


VARIANTS: dict[str, Sequence[Callable[[Tensor], Tensor]]] = {  # what each class after the normal one looks like
    "cutpaste": (cut_paste,),
    "scar": (scar,),
    "union": (cut_paste_or_scar,),
    "3-way": (cut_paste, scar),
}


class CutPaste(nn.Module):
    """CutPaste as in sections 2 and 3.

    Args:
        epochs, updates: optimiser steps are their product.
        lr, momentum, weight_decay: for training with SGD; the learning rate falls to 0 by a cosine.
        batch: images per step, each with one normal and one or two changed copies.
        variant: "cutpaste", "scar" and "union" (either of them) are binary, "3-way" has a class for each.
        maps: "patches": of a second network; "gradcam": of the network for images.
        patch: side of the patches.
        stride: pixels between the patches that are scored.
        fitted_stride: pixels between the patches that the Gaussian is fitted to.
        width: channels of the first stage of ResNet-18.
    """

    def __init__(
        self,
        epochs: int,
        updates: int = 256,
        lr: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 3e-5,
        batch: int = 32,
        variant: str = "3-way",
        maps: str = "patches",
        patch: int = 64,
        stride: int = 4,
        fitted_stride: int = 32,
        width: int = 64,
    ) -> None:
        check_choice("variant", variant, VARIANTS)
        check_choice("maps", maps, ("patches", "gradcam"))
        if patch < max(stride, fitted_stride, LARGEST_SCAR) or min(stride, fitted_stride) < 1:
            raise UsageError(
                f"method.patch={patch}, method.stride={stride}, method.fitted_stride={fitted_stride}: expected patches "
                f"of at least {LARGEST_SCAR} pixels, the room a scar needs, and strides of 1 to the patches' side"
            )
        super().__init__()
        self.epochs, self.updates, self.batch = epochs, updates, batch
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.variant, self.maps, self.width = variant, maps, width
        self.patch, self.stride, self.fitted_stride = patch, stride, fitted_stride

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create one or two networks for images of the given (3, H, W) shape.

        Raises:
            UsageError: images that are smaller than a patch.
        """
        _, height, width = shapes[0]
        if min(height, width) < self.patch:
            raise UsageError(f"method.patch={self.patch}: images of {height} x {width} pixels; expected none smaller")
        classes = 1 + len(VARIANTS[self.variant])
        self.whole = Classifier(classes, self.width)
        self.patches = Classifier(classes, self.width) if self.maps == "patches" else None

    def fit(self, normals: TrainingSet) -> None:
        """Train the networks, both in each step, and fit their Gaussians to the unchanged images.

        Raises:
            ValueError: fewer than three images, or the loss is not finite.
        """
        check_count(normals, LEAST, "CutPaste's Gaussian")
        optimiser = torch.optim.SGD(
            self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay, fused=True
        )
        loop = Loop(self, optimiser, normals, self.epochs)
        for epoch in loop:
            for numbers in epoch.batches(len(normals), self.batch, self.updates * self.batch):
                optimiser.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * epoch.progress)) / 2
                epoch.step(self.losses(normals.select(numbers)))
        self.fit_gaussians(normals)
        self.facts = loop.facts

    def losses(self, images: Tensor) -> Iterator[Tensor]:
        """The loss () of each network for (B, 3, H, W) images; backpropagate each before requesting the next."""
        views = [shifted(image) for image in images.cpu()]
        yield self.loss(self.whole, views, images.device)
        if self.patches is not None:
            cut = [view[box(view, self.patch, self.patch)] for view in views]
            yield self.loss(self.patches, cut, images.device)

    def loss(self, network: Classifier, views: Sequence[Tensor], device: torch.device) -> Tensor:
        """Cross-entropy () of the classes of all copies of (3, H, W) images."""
        copies, labels = self.copies(views)
        return F.cross_entropy(network(copies.to(device)), labels.to(device))

    def copies(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The images as they are, then changed in each way (K B, 3, H, W), and the number of each way (K B,)."""
        changed = [torch.stack([change(view) for view in views]) for change in VARIANTS[self.variant]]
        copies = torch.cat([torch.stack(list(views)), *changed])
        return copies, torch.arange(1 + len(changed)).repeat_interleave(len(views))

    @torch.no_grad()
    def fit_gaussians(self, normals: TrainingSet) -> None:
        """To the features of all images, and of patches of them."""
        embedded = [self.whole.embed(self.whole.features(images)) for images in normals.images(self.batch)]
        self.whole.gaussian.fit(torch.cat(embedded), normals.name)
        if self.patches is not None:
            parts = [self.embed_patches(images, self.fitted_stride) for images in normals.images(self.batch)]
            self.patches.gaussian.fit(torch.cat(parts).flatten(0, 2), normals.name)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The image score is of the whole image, whatever the map comes from.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        features, size = self.whole.features(images), images.shape[2:]
        if self.patches is None:
            maps = F.interpolate(self.whole.grad_cam(features)[:, None], size, mode="bilinear")[:, 0]
        else:
            embedded = self.embed_patches(images, self.stride)
            grid = self.patches.density(embedded.flatten(0, 2)).view(embedded.shape[:3])
            places = [starts(side, self.patch, self.stride) for side in size]
            maps = spread(grid, size, places, self.patch, gaussian)
        return Scores(self.whole.density(self.whole.embed(features)), maps)

    def embed_patches(self, images: Tensor, stride: int) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, D) of patches every `stride` pixels."""
        assert self.patches is not None
        axes = [torch.tensor(starts(side, self.patch, stride)) for side in images.shape[2:]]
        places = torch.cartesian_prod(torch.arange(images.shape[0]), *axes).to(images.device)
        chunks = torch.split(places, SCORED)
        parts = [cut_patches(images, part[:, 0], part[:, 1], part[:, 2], self.patch) for part in chunks]
        embedded = torch.cat([self.patches.embed(self.patches.features(part)) for part in parts])
        return embedded.view(images.shape[0], len(axes[0]), len(axes[1]), -1)


class Classifier(nn.Module):
    """ResNet-18, a head with two hidden layers that is used in training only, and the Gaussian of the features."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        features = 8 * width
        self.trunk = resnet18(width)
        self.head = nn.Sequential(
            *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, features // 4, bias=False), nn.BatchNorm1d(features // 4), nn.ReLU(inplace=True)),
            nn.Linear(features // 4, classes),
        )
        self.gaussian = Gaussian(features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D, h, w)."""
        features: Tensor = self.trunk(normalised(images).contiguous())
        return features

    def embed(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D), pooled and of length one."""
        return F.normalize(features.mean(dim=(2, 3)))

    def density(self, embedded: Tensor) -> Tensor:
        """(B, D) -> (B,): the negative log-density without its constant."""
        distances: Tensor = self.gaussian(embedded)
        return distances.square() / 2

    def grad_cam(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w): the features weighted by the score's gradient, where that is positive.

        The score sees the features' mean only, so its gradient is the same everywhere, and has a closed form.
        """
        pooled = features.mean(dim=(2, 3))
        length, unit = pooled.norm(dim=1, keepdim=True).clamp(min=1e-12), F.normalize(pooled)
        slope = (unit - self.gaussian.mean) @ self.gaussian.whitener[0] @ self.gaussian.whitener[0].T
        slope = (slope - (slope * unit).sum(dim=1, keepdim=True) * unit) / length
        cells = features.shape[2] * features.shape[3]
        return F.relu(torch.einsum("bd,bdhw->bhw", slope / cells, features))


def shifted(image: Tensor) -> Tensor:
    """Shift a (3, H, W) image by up to a tenth, reflecting its border, and jitter its colours."""
    height, width = image.shape[1:]
    down, right = int(SHIFT * height), int(SHIFT * width)
    padded = F.pad(image, (right, right, down, down), mode="reflect")
    shifted: Tensor = JITTER(padded[box(padded, height, width)])
    return shifted
