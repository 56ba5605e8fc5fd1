"""STFPM and Reverse Distillation against anomalib."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.components.backbone import get_decoder
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerator as ReverseMap
from anomalib.models.image.reverse_distillation.components.bottleneck import OCBE
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from anomalib.models.image.stfpm.anomaly_map import AnomalyMapGenerator as StfpmMap
from anomalib.models.image.stfpm.loss import STFPMLoss
from measure import SINGLE, Comparison, Given, Pairs, compare, gradients, in_order, method, randomise, shapes
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from anomaly_bench.methods.reverse_distillation import distance
from anomaly_bench.testing.setup import Setup

BORDER = 16  # pixels where anomalib's blur pads the border differently
LAYERS = ["layer1", "layer2", "layer3"]


def comparisons() -> Iterator[Comparison]:
    yield from stfpm()
    yield from reverse_distillation()


def stfpm() -> Iterator[Comparison]:
    """A ResNet18 student with random weights, with given teacher features."""
    setup = Setup("stfpm", "r18", ("backbone.weights=random",))
    ours = setup.new()
    ours.build(setup.shapes)
    ours.double().train()
    theirs = TimmFeatureExtractor(backbone="resnet18", layers=LAYERS, pre_trained=False, requires_grad=True)
    theirs.double().train()
    images = torch.rand(3, 3, 64, 64)
    pairs = in_order(ours.student.network, theirs)
    randomise(pairs)
    student = ours.student(images)
    found = theirs((images - ours.student.mean) / ours.student.std)
    yield compare("stfpm: student, ResNet18", "outputs", "anomalib TimmFeatureExtractor", student, list(found.values()))
    teacher = dict(zip(LAYERS, [torch.randn_like(level) for level in student], strict=True))
    ours.backbone = Given(teacher.values())
    distances = ours.distances(images, ours.directions(images))
    loss = torch.stack([each.mean() for each in distances]).sum()
    remark = "anomalib halves it and sums over the batch; ours is multiplied by half the batch"
    halved, other = loss * len(images) / 2, STFPMLoss()(teacher, found)
    yield compare("stfpm: squared distance of directions", "loss", "anomalib STFPMLoss", halved, other, remark=remark)
    peer = "anomalib's, by torch's autograd"
    yield compare("stfpm: student, ResNet18", "gradients", peer, *gradients(pairs, halved, other))
    distances = ours.distances(images, ours.directions(images))
    product = StfpmMap().compute_anomaly_map(teacher, theirs((images - ours.student.mean) / ours.student.std), (16, 16))
    remark = "on the first level's grid, as the authors' code; anomalib halves each of three distances"
    place = "stfpm: product of the levels' distances"
    yield compare(place, "maps", "anomalib", ours.product(distances) / 8, product[:, 0], SINGLE, remark)


def reverse_distillation() -> Iterator[Comparison]:
    """Bottleneck and decoder of a ResNet18; those of a Wide ResNet50 without gradients, because of its size."""
    levels = [torch.randn(2, channels, side, side) for channels, side in ((64, 16), (128, 8), (256, 4))]
    ours = method("reverse_distillation", Given(levels))
    ours.build(shapes(levels))
    pairs, bottleneck, decoder = mirrored(ours, OCBE(BasicBlock, 2).double(), get_decoder("resnet18").double())
    place = "reverse_distillation: bottleneck and decoder, ResNet18"
    found, theirs = ours.decode(levels), decoder(bottleneck(levels))
    yield compare(place, "outputs", "anomalib OCBE, de_resnet18", found, theirs)
    losses = distance(levels, found), ReverseDistillationLoss()(levels, theirs)
    yield compare("reverse_distillation: cosine distance of whole maps", "loss", "anomalib", *losses)
    yield compare(place, "gradients", "anomalib's, by torch's autograd", *gradients(pairs, *losses))
    with torch.no_grad():
        bottleneck.eval(), decoder.eval()
        maps = ours.eval().score(torch.zeros(2, 3, 64, 64)).map
        other = ReverseMap((64, 64), mode=AnomalyMapGenerationMode.ADD)(levels, decoder(bottleneck(levels)))[:, 0]
    inner = slice(BORDER, -BORDER)
    remark = f"without {BORDER} pixels on each side, where anomalib mirrors the border another way"
    place = "reverse_distillation: sum of cosine distances, blurred"
    pair = maps[:, inner, inner], other[:, inner, inner]
    yield compare(place, "maps", "anomalib, mode add", *pair, SINGLE, remark)
    yield wide()


@torch.no_grad()
def wide() -> Comparison:
    levels = [torch.randn(1, channels, side, side) for channels, side in ((256, 8), (512, 4), (1024, 2))]
    ours = method("reverse_distillation", Given(levels), backbone="wrn50")
    ours.build(shapes(levels))
    made = OCBE(Bottleneck, 3, width_per_group=128).double(), get_decoder("wide_resnet50_2").double()
    _, bottleneck, decoder = mirrored(ours, *made)
    bottleneck.eval(), decoder.eval(), ours.eval()
    remark = "with the authors' width of 128; anomalib's own choice for this network is 64"
    place, peer = "reverse_distillation: bottleneck and decoder, Wide ResNet50", "anomalib OCBE, de_wide_resnet50_2"
    return compare(place, "outputs", peer, ours.decode(levels), decoder(bottleneck(levels)), remark=remark)


def mirrored(ours: Any, bottleneck: nn.Module, decoder: nn.Module) -> tuple[Pairs, nn.Module, nn.Module]:
    """Our parameters paired with anomalib's and made equal, without its unused convolution."""
    first = [bottleneck.conv1, bottleneck.bn1, bottleneck.conv2, bottleneck.bn2]
    pairs = in_order(ours.bottleneck.first, first)
    pairs += in_order(ours.bottleneck.second, [bottleneck.conv3, bottleneck.bn3])
    pairs += in_order(ours.bottleneck.embed, bottleneck.bn_layer) + in_order(ours.decoder, decoder)
    randomise(pairs)
    return pairs, bottleneck, decoder
