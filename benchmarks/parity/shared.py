"""Metrics against scikit-learn, scikit-image and anomalib, and backbones against timm."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from anomalib.metrics.aupro import _AUPRO
from anomalib.models.components import TimmFeatureExtractor
from measure import SINGLE, Comparison, compare
from numpy.typing import NDArray
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from anomaly_bench.metrics.metrics import PRO_LIMIT, evaluate
from anomaly_bench.protocol import Outcome
from anomaly_bench.testing.setup import Setup


def comparisons() -> Iterator[Comparison]:
    yield from metrics()
    yield backbone()


def metrics() -> Iterator[Comparison]:
    """12 maps of 48 x 48 with ties, three of them good."""
    random = np.random.default_rng(0)
    masks = random.random((12, 48, 48)) < 0.01
    for image, (y, x) in enumerate(random.integers(0, 40, (12, 2))):
        masks[image, y : y + 6, x : x + 9] = True
    masks[:3] = False
    maps = np.round(np.exp(random.normal(0, 1, masks.shape)) + 0.5 * masks, 2).astype(np.float32)
    labels = masks.any(axis=(1, 2))
    scores = maps.max(axis=(1, 2))
    found = evaluate(Outcome(labels, scores, maps, masks)).values
    for level, truth, values in (("image", labels, scores), ("pixel", masks.ravel(), maps.ravel())):
        precision, recall, _ = precision_recall_curve(truth, values)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        expected = {
            "auroc": (roc_auc_score(truth, values), "roc_auc_score"),
            "ap": (average_precision_score(truth, values), "average_precision_score"),
            "f1_max": (best, "precision_recall_curve"),
        }
        for name, (value, function) in expected.items():
            metric = f"{level}_{name}"
            yield compare(f"metrics: {metric}", "values", f"scikit-learn {function}", found[metric], value)
    expected_pro = pro(maps, masks)
    peer = "scikit-image label, scikit-learn roc_curve of every region"
    yield compare("metrics: pro", "values", peer, found["pro"], expected_pro)
    other = _AUPRO(fpr_limit=PRO_LIMIT)
    other.update(torch.from_numpy(maps), torch.from_numpy(masks).float())
    yield compare("metrics: pro", "values", "anomalib AUPRO", found["pro"], float(other.compute()), SINGLE)


def pro(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    """The mean, over regions, of the area under the curve of region overlap against false positive rate."""
    normal = maps[~masks]
    areas = []
    for image, mask in zip(maps, masks, strict=True):
        regions = label(mask, connectivity=2)
        for number in range(1, regions.max() + 1):
            values = np.concatenate([image[regions == number], normal])
            truth = np.arange(len(values)) < len(values) - len(normal)
            x, y, _ = roc_curve(truth, values, drop_intermediate=False)
            limited = np.append(x[x < PRO_LIMIT], PRO_LIMIT)
            # the curve is a staircase with several overlaps at one rate; only the pieces between rates have area
            area = np.trapezoid(np.append(y[x < PRO_LIMIT], np.interp(PRO_LIMIT, x, y)), limited)
            areas.append(area / PRO_LIMIT)
    return float(np.mean(areas))


@torch.no_grad()
def backbone() -> Comparison:
    """Levels 1, 2, 3 of a ResNet18 with the same random weights: normalisation of the input, folded batch norms."""
    layers = ["layer1", "layer2", "layer3"]
    theirs = TimmFeatureExtractor(backbone="resnet18", layers=layers, pre_trained=False).double().eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "resnet18.pth")
        torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), file)
        theirs.feature_extractor.load_state_dict(torch.load(file, weights_only=True), strict=False)
        ours = Setup("padim", "r18", (f"backbone.weights={file}",)).network
    images = torch.rand(2, 3, 64, 64)
    found = list(theirs((images - ours.mean) / ours.std).values())
    place, peer = "backbones: ResNet18, levels 1 to 3", "anomalib TimmFeatureExtractor"
    return compare(place, "outputs", peer, ours(images), found, SINGLE, "batch normalisation is folded into ours")
