"""PaDiM, PatchCore, SPADE and MahalanobisAD against anomalib, scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from anomalib.models.components import KCenterGreedy, TimmFeatureExtractor
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from measure import EXACT, SINGLE, Comparison, compare, method, shapes
from scipy.ndimage import gaussian_filter
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from anomaly_bench.components.coreset import k_centre
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

BORDER = 16  # pixels where anomalib's blur mirrors without the last pixel; scipy's, like ours, repeats it


class Levels(nn.Module):
    """Anomalib's feature extractor, a ResNet18 with random weights, as one of our backbones."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone="resnet18", layers=layers, pre_trained=False).double().eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.extractor(images.double()).values())


def comparisons() -> Iterator[Comparison]:
    yield from padim()
    yield from patchcore()
    yield from spade()
    yield from mahalanobis_ad()


def fitted(name: str, network: nn.Module, *overrides: str, images: int = 20) -> tuple[Any, Tensor, Tensor]:
    """Our method, fitted on generated images; these images, and unseen ones with a planted defect."""
    ours = method(name, network, *overrides)
    train, test = pictures(images), pictures(3, first=900)
    test[0, 20:30, 20:30] = 0
    ours.build(shapes(network(to_tensor(train[:1]))))
    ours.fit(TrainingSet("parity", train))
    return ours.eval(), to_tensor(train), to_tensor(test)


def inner(maps: Tensor) -> Tensor:
    return maps[..., BORDER:-BORDER, BORDER:-BORDER]


def padim() -> Iterator[Comparison]:
    layers = ["layer1", "layer2", "layer3"]
    network = Levels(layers)
    ours, train, test = fitted("padim", network, "method.dimensions=30", "method.eps=0.01001")
    theirs = PadimModel("resnet18", layers, pre_trained=False, n_features=30)
    theirs.idx, theirs.feature_extractor = ours.chosen, network.extractor
    theirs(train.double())  # in training mode: it keeps the embeddings
    theirs.fit()
    remark = "eps is 0.01 + 1e-5, as anomalib adds both"
    inverse = ours.whitener @ ours.whitener.mT
    gaussian, place = theirs.gaussian, "padim: Gaussians of 256 positions, 30 dimensions"
    yield compare(place, "means", "anomalib PadimModel", ours.mean.T, gaussian.mean)
    peer = "anomalib MultiVariateGaussian"
    yield compare(place, "inverse covariances", peer, inverse, gaussian.inv_covariance, SINGLE, remark)
    found = theirs.eval()(test.double())
    border = f"without {BORDER} pixels on each side, where anomalib mirrors the border another way"
    maps = inner(ours.score(test).map), inner(found.anomaly_map[:, 0])
    yield compare("padim: Mahalanobis distances, upsampled and blurred", "maps", peer, *maps, SINGLE, border)


def patchcore() -> Iterator[Comparison]:
    layers = ["layer2", "layer3"]
    network = Levels(layers)
    ours, _, test = fitted("patchcore", network, "method.ratio=0.2", "method.reweight=true", "method.pooling=mean")
    theirs = PatchcoreModel(layers, "resnet18", pre_trained=False, num_neighbors=9).eval()
    theirs.feature_extractor, theirs.memory_bank = network.extractor, ours.bank
    features = {name: theirs.feature_pooler(each) for name, each in network.extractor(test.double()).items()}
    embedding = theirs.reshape_embedding(theirs.generate_embedding(features))
    place = "patchcore: locally aware patches, pooling=mean"
    yield compare(place, "embeddings", "anomalib PatchcoreModel", ours.embed(network(test)), embedding)
    result = ours.score(test)
    found = theirs(test.double())
    place = "patchcore: re-weighted image score (equation 7)"
    yield compare(place, "scores", "anomalib PatchcoreModel", result.image, found.pred_score, SINGLE)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(ours.bank.numpy())
    nearest = np.square(search.kneighbors(embedding.numpy())[0]).reshape(3, 1, *ours.grid)
    large = F.interpolate(torch.from_numpy(nearest), size=test.shape[2:], mode="bilinear")
    smooth = np.stack([gaussian_filter(each, 4) for each in large[:, 0].numpy()])
    peer = "scikit-learn NearestNeighbors, scipy gaussian_filter"
    yield compare("patchcore: squared distances to the bank", "maps", peer, result.map, smooth, SINGLE)
    yield coreset()


def coreset() -> Comparison:
    """anomalib's selection without projection; its points are shifted so that both start from the same one."""
    points, count = torch.randn(600, 12).float(), 60
    ours = k_centre(points, count, seed=0)
    torch.manual_seed(0)
    shift = int(torch.randint(len(points), (1,))) - int(ours[0])
    sampler = KCenterGreedy(embedding=points.roll(shift, dims=0), sampling_ratio=count / len(points))
    sampler.model.fit, sampler.model.transform = (lambda x: None), (lambda x: x)
    torch.manual_seed(0)
    theirs = (torch.tensor(sampler.select_coreset_idxs()) - shift) % len(points)
    remark = "without anomalib's random projection, and with the same first point"
    return compare("patchcore: greedy coreset", "chosen points", "anomalib KCenterGreedy", ours, theirs, EXACT, remark)


def spade() -> Iterator[Comparison]:
    network = Levels(["layer1", "layer2", "layer3", "layer4"])
    ours, train, test = fitted("spade", network, "method.neighbours=4", images=12)
    *gallery, deepest = network(train)
    *queries, pooled = network(test)
    search = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(deepest.mean(dim=(2, 3)).numpy())
    distances, chosen = search.kneighbors(pooled.mean(dim=(2, 3)).numpy())
    result, peer = ours.score(test), "scikit-learn NearestNeighbors"
    place = "spade: mean squared distance to the nearest images"
    yield compare(place, "scores", peer, result.image, np.square(distances).mean(axis=1), SINGLE)
    known, asked = (joined(levels) for levels in (gallery, queries))
    maps = []
    for patches, images in zip(asked, chosen, strict=True):
        rows = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known[images].flatten(0, 2).numpy())
        nearest = np.square(rows.kneighbors(patches.flatten(0, 1).numpy())[0]).reshape(1, 1, *patches.shape[:2])
        large = F.interpolate(torch.from_numpy(nearest), size=test.shape[2:], mode="bilinear")
        maps.append(gaussian_filter(large[0, 0].numpy(), 4))
    peer = f"{peer}, scipy gaussian_filter"
    remark = "on features whose deeper levels are replicated, which is our reading of the paper"
    place = "spade: squared distance to the nearest patch of those images"
    yield compare(place, "maps", peer, result.map, np.stack(maps), SINGLE, remark)


def joined(levels: list[Tensor]) -> Tensor:
    """(B, h, w, D), deeper levels replicated."""
    grid = levels[0].shape[2:]
    return torch.cat([F.interpolate(level, grid, mode="nearest") for level in levels], dim=1).permute(0, 2, 3, 1)


def mahalanobis_ad() -> Iterator[Comparison]:
    network = Levels(["layer1", "layer2", "layer3", "layer4"])
    ours, train, test = fitted("mahalanobis_ad", network)
    total: Any = 0.0
    for known, asked in zip(network(train), network(test), strict=True):
        found = LedoitWolf().fit(known.mean(dim=(2, 3)).numpy())
        total = total + np.sqrt(found.mahalanobis(asked.mean(dim=(2, 3)).numpy()))
    peer = "scikit-learn LedoitWolf.mahalanobis, the class that the authors' code calls"
    yield compare("mahalanobis_ad: sum over four levels", "scores", peer, ours.score(test).image, total, SINGLE)
