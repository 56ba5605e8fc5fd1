"""CFLOW-AD, FastFlow, CS-Flow and DifferNet against anomalib and FrEIA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from anomalib.models.image.cflow.anomaly_map import AnomalyMapGenerator as CflowMap
from anomalib.models.image.cflow.utils import cflow_head, get_logp, positional_encoding_2d
from anomalib.models.image.csflow.anomaly_map import AnomalyMapGenerator as CsFlowMap
from anomalib.models.image.csflow.anomaly_map import AnomalyMapMode
from anomalib.models.image.csflow.loss import CsFlowLoss
from anomalib.models.image.csflow.torch_model import CrossScaleFlow, CsFlowModel
from anomalib.models.image.fastflow.anomaly_map import AnomalyMapGenerator as FastflowMap
from anomalib.models.image.fastflow.loss import FastflowLoss
from anomalib.models.image.fastflow.torch_model import create_fast_flow_block
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock, GLOWCouplingBlock, PermuteRandom
from measure import (
    SINGLE,
    Comparison,
    Given,
    Pairs,
    compare,
    gradients,
    in_order,
    method,
    randomise,
    shapes,
    single_precision,
)
from torch import Tensor, nn

from anomaly_bench.components.position_code import position_code


def comparisons() -> Iterator[Comparison]:
    yield from cflow()
    yield from couplings_of_freia()
    yield from fastflow()
    yield from cs_flow()
    yield from differnet()


def one_sided(ours: Any, theirs: Any) -> Pairs:
    """The paired parameters of `OneSided` blocks and AllInOneBlocks; the latter get our permutations."""
    pairs: Pairs = []
    for block, other in zip(ours, theirs.double(), strict=True):  # they make some parameters in float32
        matrix = block.rotation if block.soft else torch.eye(len(block.order))[block.order]
        other.w_perm.data.copy_(matrix.view_as(other.w_perm))
        pairs += [(block.scale, [other.global_scale]), (block.offset, [other.global_offset])]
        pairs += in_order(block.subnet, other.subnet)
    return pairs


def cflow() -> Iterator[Comparison]:
    """CFLOW-AD's decoders on fibres of two levels of one grid, so that no map is interpolated."""
    levels = [torch.randn(2, channels, 6, 6) for channels in (12, 20)]
    ours = method("cflow_ad", Given(levels), "method.blocks=4", "method.code=16")
    ours.build(shapes(levels))
    heads = [cflow_head(16, 4, 1.9, level.shape[1], permute_soft=True) for level in levels]
    pairs = [pair for flow, head in zip(ours.flows, heads, strict=True) for pair in one_sided(flow, head)]
    randomise(pairs)
    place, peer = "cflow_ad: decoders, 4 blocks", "anomalib cflow_head"
    losses, ends, likelihoods = [], [], []
    for index, (level, head) in enumerate(zip(levels, heads, strict=True)):
        fibres, codes = ours.fibres_of(level)
        codes = codes.repeat(len(level), 1)
        z, log_det = head(fibres, [codes])
        log_p = get_logp(level.shape[1], z, log_det) / level.shape[1]
        ends.append((ours.flows[index](fibres, codes), (z, log_det)))
        losses.append((ours.loss(index, fibres, codes), -F.logsigmoid(log_p).mean()))
        likelihoods.append((ours.log_likelihood(index, fibres, codes), log_p))
    yield compare(place, "outputs", peer, [one[0] for one, _ in ends], [other[0] for _, other in ends])
    yield compare(place, "log-determinants", peer, [one[1] for one, _ in ends], [other[1] for _, other in ends])
    log_p = [each for _, each in likelihoods]
    peer = "anomalib get_logp"
    yield compare("cflow_ad: likelihood per dimension", "outputs", peer, [each for each, _ in likelihoods], log_p)
    mine, others = (torch.stack(each).sum() for each in zip(*losses, strict=True))
    yield compare("cflow_ad: -log sigmoid of it", "loss", "anomalib get_logp, torch logsigmoid", mine, others)
    peer = "anomalib's, by torch's autograd"
    yield compare("cflow_ad: decoders, 4 blocks", "gradients", peer, *gradients(pairs, mine, others))
    code, other = position_code(16, 5, 7), positional_encoding_2d(16, 5, 7)
    yield compare("cflow_ad: position code", "outputs", "anomalib positional_encoding_2d", code, other, SINGLE)
    ours.largest = torch.stack([each.max() for each in log_p]).detach()
    summed = len(levels) * (-ours.eval().score(torch.zeros(2, 3, 6, 6)).map).exp()
    found = CflowMap(["a", "b"])(distribution=log_p, height=[6, 6], width=[6, 6], image_size=(6, 6))
    remark = "ours is -log of the levels' mean likelihood: its exponential, summed, and taken from the largest"
    yield compare("cflow_ad: map on the grid", "maps", "anomalib", summed.max() - summed, found, remark=remark)


def couplings_of_freia() -> Iterator[Comparison]:
    """The coupling that CFLOW-AD and FastFlow share, against the library that CFLOW-AD's authors used."""
    from anomaly_bench.components.flows import Flow, OneSided

    def subnet(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Linear(before, 2 * before), nn.ReLU(), nn.Linear(2 * before, after))

    ours, theirs = Flow(OneSided(14, subnet, 1.9, soft=True, condition=6) for _ in range(3)), SequenceINN(14)
    for _ in range(3):
        theirs.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(6,),
            subnet_constructor=subnet,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=True,
        )
    pairs = one_sided(ours, theirs)
    randomise(pairs)
    x, condition = torch.randn(9, 14), torch.randn(9, 6)
    found, (z, log_det) = ours(x, condition), theirs(x, [condition])
    peer, place = "FrEIA AllInOneBlock", "cflow_ad: coupling with rotation and condition"
    yield compare(place, "outputs", peer, found[0], z)
    yield compare(place, "log-determinants", peer, found[1], log_det)
    losses = [(each[0].square().sum() - each[1].sum()) for each in (found, (z, log_det))]
    yield compare(place, "gradients", peer, *gradients(pairs, losses[0], losses[1]))


def fastflow() -> Iterator[Comparison]:
    """Flows of two levels with the same grid, with the kernels and widths of the YAML."""
    levels = [torch.randn(2, channels, 8, 8) for channels in (8, 12)]
    ours = method("fastflow", Given(levels), "method.steps=4", backbone="wrn50")
    ours.build(shapes(levels))
    with single_precision():
        theirs = [create_fast_flow_block([*level.shape[1:]], False, 1.0, 4) for level in levels]
    pairs = [pair for flow, other in zip(ours.flows, theirs, strict=True) for pair in one_sided(flow, other)]
    randomise(pairs)
    found = [flow(level) for flow, level in zip(ours.flows, levels, strict=True)]
    other = [flow(level) for flow, level in zip(theirs, levels, strict=True)]
    place, peer = "fastflow: flows, 4 steps, kernels 3 and 1", "anomalib create_fast_flow_block"
    yield compare(place, "outputs", peer, [each[0] for each in found], [each[0] for each in other])
    yield compare(place, "log-determinants", peer, [each[1] for each in found], [each[1] for each in other])
    hidden, log_dets = [each[0] for each in other], [each[1] for each in other]
    losses = ours.loss(levels), FastflowLoss()(hidden, log_dets)
    yield compare("fastflow: negative log-likelihood", "loss", "anomalib FastflowLoss", *losses)
    yield compare(place, "gradients", "anomalib's, by torch's autograd", *gradients(pairs, *losses))
    likelihood = (-ours.eval().score(torch.zeros(2, 3, 8, 8)).map).exp()
    remark = "ours is -log of the levels' mean likelihood: minus its exponential"
    found_map = FastflowMap((8, 8))(hidden)[:, 0]
    yield compare("fastflow: map on the grid", "maps", "anomalib", -likelihood, found_map, SINGLE, remark)


def cross_convolutions(ours: Any, theirs: Any) -> Pairs:
    """The parameters of one subnet of CS-Flow."""
    pairs = [(ours.gamma, [theirs.gamma0, theirs.gamma1, theirs.gamma2])]
    for own, names in (
        (ours.first, ("conv_scale0_0", "conv_scale1_0", "conv_scale2_0")),
        (ours.second, ("conv_scale0_1", "conv_scale1_1", "conv_scale2_1")),
        (ours.up, ("up_conv10", "up_conv21")),
        (ours.down, ("down_conv01", "down_conv12")),
    ):
        pairs += in_order(own, [getattr(theirs, name) for name in names])
    return pairs


def cs_flow() -> Iterator[Comparison]:
    """All four blocks, with the published kernels, clamp and channels; fewer hidden channels, grids of 8, 4 and 2."""
    maps = [torch.randn(2, 304, side, side) for side in (8, 4, 2)]
    ours = method("cs_flow", Given(maps[:1]), "method.hidden=16")
    ours.build([(304, 8, 8)])
    theirs = CrossScaleFlow((3, 256, 256), 4, 3.0, 16)
    modules = list(theirs.graph.module_list)
    permutations = [each for each in modules if hasattr(each, "perm")]
    couplings = [each for each in modules if hasattr(each, "cross_convolution1")]
    pairs: Pairs = []
    for block, permutation, coupling in zip(ours.flow, permutations, couplings, strict=True):
        permutation.perm = list(block.orders)
        pairs += cross_convolutions(block.from_second, coupling.cross_convolution2)
        pairs += cross_convolutions(block.from_first, coupling.cross_convolution1)
    randomise(pairs)
    (z, log_det), (others, summed) = ours.flow(maps), theirs(maps)
    place, peer = "cs_flow: flow of three scales, 4 blocks", "anomalib CrossScaleFlow"
    yield compare(place, "outputs", peer, z, list(others))
    remark = "anomalib gives every image the sum over the batch; ours are summed for this"
    yield compare(place, "log-determinants", peer, log_det.sum().expand(2), summed, remark=remark)
    first = [each[:1] for each in maps]
    losses = ours.loss(first), CsFlowLoss()(*theirs(first))
    remark = "one image: of a batch anomalib counts every image's log-determinant as often as there are images"
    yield compare("cs_flow: likelihood per element", "loss", "anomalib CsFlowLoss", *losses, remark=remark)
    yield compare(place, "gradients", "anomalib's, by torch's autograd", *gradients(pairs, *losses), remark=remark)
    score = CsFlowModel._compute_anomaly_scores(others)
    elements = torch.cat([each.flatten(1) for each in z], dim=1)
    yield compare("cs_flow: image score", "scores", "anomalib", elements.square().mean(dim=1) / 2, score)
    ours.scales = lambda images: maps
    made = ours.eval().score(torch.zeros(2, 3, 32, 32))
    found = CsFlowMap((3, 32, 32), AnomalyMapMode.MAX)(others)[:, 0]
    yield compare("cs_flow: map of the largest scale", "maps", "anomalib", made.map, found, SINGLE)


def differnet() -> Iterator[Comparison]:
    """The flow's blocks against FrEIA's, with the clamp of the authors' code."""
    ours = method("differnet", Given([]), "method.blocks=3", "method.hidden=24")
    ours.build([(10, 1, 1)])
    theirs = SequenceINN(30)

    def subnet(before: int, after: int) -> nn.Module:
        hidden = [layer for size in (before, 24, 24) for layer in (nn.Linear(size, 24), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(24, after))

    def clamp(raw: Tensor) -> Tensor:
        return 0.636 * torch.atan(raw / ours.clamp)

    pairs: Pairs = []
    for number, block in enumerate(ours.flow):
        theirs.append(PermuteRandom, seed=number)
        theirs.append(GLOWCouplingBlock, subnet_constructor=subnet, clamp=ours.clamp, clamp_activation=clamp)
        permutation, coupling = theirs.module_list[-2:]
        permutation.perm.data.copy_(block.orders[0])
        pairs += in_order(block.from_second, coupling.subnet2) + in_order(block.from_first, coupling.subnet1)
    randomise(pairs)
    vectors = torch.randn(7, 30)
    (found,), log_det = ours.flow([vectors])
    z, other = theirs(vectors)
    place, peer = "differnet: flow, 3 blocks", "FrEIA GLOWCouplingBlock and PermuteRandom"
    remark = "with the clamp of the authors' code, which FrEIA 0.2 does not have by itself: it is given as a function"
    yield compare(place, "outputs", peer, found, z, remark=remark)
    yield compare(place, "log-determinants", peer, log_det, other, remark=remark)
    losses = ours.loss(vectors), (z.square().sum(dim=1) / 2 - other).mean() / 30
    yield compare(place, "loss", "FrEIA's outputs in the likelihood", *losses)
    yield compare(place, "gradients", "FrEIA's, by torch's autograd", *gradients(pairs, *losses))
