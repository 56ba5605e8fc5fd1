"""AE-L2, AE-SSIM, DRAEM and PEFM against scikit-image, pytorch-msssim, kornia and anomalib."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from anomalib.models.image.cflow.utils import positional_encoding_2d
from anomalib.models.image.draem.torch_model import DiscriminativeSubNetwork, ReconstructiveSubNetwork
from kornia.losses import focal_loss as kornia_focal_loss
from kornia.metrics import ssim as kornia_ssim
from measure import SINGLE, Comparison, Given, Pairs, compare, gradients, in_order, method, randomise
from pytorch_msssim import ssim as msssim
from skimage.metrics import mean_squared_error, structural_similarity
from torch import Tensor, nn

from anomaly_bench.components.losses import RADIUS, focal_loss, ssim_map
from anomaly_bench.components.position_code import position_code


def comparisons() -> Iterator[Comparison]:
    yield from autoencoders()
    yield from draem()
    yield from pefm()


def pictures(channels: int) -> tuple[Tensor, Tensor]:
    """(2, channels, 40, 36) in [0, 1], and the same with noise, a leaf."""
    images = torch.rand(2, channels, 40, 36)
    return images, (images + 0.2 * torch.randn_like(images)).clamp(0, 1).requires_grad_()


def autoencoders() -> Iterator[Comparison]:
    ours, (images, output) = method("ae_l2", None), pictures(3)
    peer = "scikit-image mean_squared_error"
    expected = mean_squared_error(images.numpy(), output.detach().numpy())
    yield compare("ae_l2: squared error", "loss", peer, ours.loss(output, images), expected)
    maps = ours.residual(output, images)
    yield compare("ae_l2: map, summed over colours", "its mean", peer, maps.mean() / 3, expected)
    losses = ours.loss(output, images), F.mse_loss(output, images)
    found = [torch.autograd.grad(loss, output)[0] for loss in losses]
    yield compare("ae_l2: squared error", "gradients", "torch mse_loss", *found)
    ours, (images, output) = method("ae_ssim", None), pictures(1)
    losses = ours.loss(output, images), 1 - msssim(output, images, data_range=1.0)
    yield compare("ae_ssim: 1 - SSIM", "loss", "pytorch-msssim ssim", *losses, SINGLE)
    found = [torch.autograd.grad(loss, output)[0] for loss in losses]
    yield compare("ae_ssim: 1 - SSIM", "gradients", "pytorch-msssim ssim, by torch's autograd", *found, SINGLE)
    each = [similarity(one, other) for one, other in zip(output.detach()[:, 0], images[:, 0], strict=True)]
    yield compare("ae_ssim: map", "maps", "scikit-image", ours.residual(output, images), 1 - np.stack(each))


def similarity(one: Tensor, other: Tensor) -> Any:
    """scikit-image's structural similarity at every pixel."""
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return structural_similarity(one.numpy(), other.numpy(), full=True, **settings)[1]


def draem() -> Iterator[Comparison]:
    """Both networks with fewer channels than published, and the parts of the loss."""
    ours = method("draem", None, "method.width=8", "method.discriminative_width=4")
    ours.build([(3, 64, 64)])
    repairing, telling = ReconstructiveSubNetwork(base_width=8), DiscriminativeSubNetwork(6, 2, base_width=4)
    pairs = in_order(ours.reconstruct, repairing) + u_net(ours.discriminate, telling)
    randomise(pairs)
    images = torch.rand(3, 3, 64, 64)
    place, peer = "draem: reconstructive and discriminative network", "anomalib"
    repaired, other = ours.reconstruct(images), repairing(images)
    logits = ours.discriminate(torch.cat([repaired, images], dim=1))
    theirs = telling(torch.cat([other, images], dim=1))
    remark = "anomalib joins image and reconstruction; here in the authors' order, the reconstruction first"
    yield compare(place, "outputs", peer, [repaired, logits], [other, theirs], remark=remark)
    mask = torch.rand(3, 64, 64) < 0.2
    focal = focal_loss(logits, mask.long(), smooth=0), focal_of(theirs, mask)
    remark = "without the authors' smoothing of 1e-5; every class weighs 1, where anomalib's alpha=1 leaves out class 0"
    yield compare("draem: focal loss", "loss", "kornia focal_loss", *focal, remark=remark)
    smoothed = focal_loss(logits, mask.long())
    remark = "with the authors' smoothing, which kornia's lacks"
    yield compare("draem: focal loss, smoothed", "loss", "kornia focal_loss", smoothed, focal[1], 1e-3, remark)
    inner = slice(RADIUS, -RADIUS)
    likeness = ssim_map(repaired, images, zeros=True)[..., inner, inner]
    remark = "where windows lie in the image; beyond it ours has zeros, as the authors, and kornia its mirror image"
    pair = likeness, kornia_ssim(other, images, 11, padding="valid")
    yield compare("draem: SSIM of the reconstruction", "maps", "kornia ssim", *pair, SINGLE, remark)
    losses = [
        F.mse_loss(one, images) + 1 - value.mean() + loss
        for one, value, loss in zip((repaired, other), pair, focal, strict=True)
    ]
    remark = "of the sum of all three, with what is said of each"
    yield compare(place, "loss", "anomalib's networks, kornia's losses", *losses, SINGLE, remark)
    peer = "anomalib's and kornia's, by torch's autograd"
    yield compare(place, "gradients", peer, *gradients(pairs, *losses), SINGLE, remark)


def focal_of(logits: Tensor, mask: Tensor) -> Tensor:
    """kornia's focal loss; the sum over classes is each pixel's loss, as only the target class is non-zero."""
    return kornia_focal_loss(logits, mask.long(), alpha=None, gamma=2.0, reduction="none").sum(dim=1).mean()


def u_net(ours: Any, theirs: Any) -> Pairs:
    """The paired parameters of the discriminative network, whose decoder's parts are in a different order."""
    encoder, decoder = theirs.encoder_segment, theirs.decoder_segment
    pairs = in_order(ours.first, encoder.block1)
    for number, stage in enumerate(ours.down, 2):
        pairs += in_order(stage, getattr(encoder, f"block{number}"))
    for enlarge, join, name in zip(ours.up, ours.join, ("_b", "1", "2", "3", "4"), strict=True):
        pairs += in_order(enlarge, getattr(decoder, f"up{name}")) + in_order(join, getattr(decoder, f"db{name}"))
    return pairs + in_order(ours.last, decoder.fin_out)


class Convolutions(nn.Module):
    """A projector of PEFM with its authors' settings, as 1 x 1 convolutions on maps; ours works on rows."""

    def __init__(self, first: int, second: int, latent: int) -> None:
        super().__init__()

        def layers(*widths: int) -> list[nn.Module]:
            return [
                part
                for a, b in itertools.pairwise(widths)
                for part in (nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU())
            ]

        def encoder(channels: int) -> nn.Module:
            return nn.Sequential(*layers(channels, channels // 2 + latent, 2 * latent))

        def decoder(channels: int) -> nn.Module:
            middle = channels // 2 + latent
            return nn.Sequential(*layers(latent, 2 * latent, middle), nn.Conv2d(middle, channels, 1))

        self.encode_first, self.encode_second = encoder(first), encoder(second)
        self.shared = nn.Conv2d(2 * latent, latent, 1)
        self.decode_first, self.decode_second = decoder(first), decoder(second)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        towards_second = self.decode_second(self.shared(self.encode_first(first)))
        return self.decode_first(self.shared(self.encode_second(second))), towards_second


def pefm() -> Iterator[Comparison]:
    """One level; the authors' code cannot be installed, so the peer is written from its published settings."""
    levels = [F.normalize(torch.randn(2, channels, 6, 5), dim=1) for channels in (8, 12)]
    ours = method("pefm", Given(levels), "method.latents=[6]")
    ours.build([(8, 6, 5), (12, 6, 5)])
    ours.train()
    codes = [positional_encoding_2d(channels, 6, 5) for channels in (8, 12)]
    code, peer = [position_code(channels, 6, 5) for channels in (8, 12)], "anomalib positional_encoding_2d"
    yield compare("pefm: position code", "outputs", peer, code, codes, SINGLE)
    theirs = Convolutions(8, 12, 6)
    pairs = in_order(ours.projectors[0], theirs)
    randomise(pairs)
    predicted = theirs(levels[0] + codes[0], levels[1] + codes[1])
    errors = [level - each for level, each in zip(levels, predicted, strict=True)]
    peer = "an independent version in torch's convolutions"
    losses = ours.loss(levels), sum(error.square().mean() for error in errors)
    yield compare("pefm: projectors both ways", "loss", peer, *losses, SINGLE)
    yield compare("pefm: projectors both ways", "gradients", peer, *gradients(pairs, *losses), SINGLE)
    with torch.no_grad():
        predicted = theirs.eval()(levels[0] + codes[0], levels[1] + codes[1])
        small = sum((a - b).square().sum(dim=1) for a, b in zip(levels, predicted, strict=True)) / 2
        large = F.interpolate(small[:, None], (24, 20), mode="bilinear")[:, 0]
        maps = ours.eval().score(torch.zeros(2, 3, 24, 20)).map
    yield compare("pefm: mean squared error of both, upsampled", "maps", peer, maps, large, SINGLE)
