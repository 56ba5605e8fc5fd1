"""PatchCore against a slow version written from the paper's equations and the behaviour of the authors' code."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from scipy.ndimage import gaussian_filter

from anomaly_bench.components import neighbours
from anomaly_bench.console import Reporter
from anomaly_bench.errors import TooLarge, UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.methods import patchcore
from anomaly_bench.methods.patchcore import PatchCore
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures


def joined(levels):
    """(B, h, w, D) float64: means over 3 x 3 patches, one at a time; deeper levels resized."""
    parts = []
    for level in levels:
        padded = np.pad(level.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = level.shape[2:]
        windows = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        parts.append(torch.from_numpy(np.mean(windows, axis=0)))
    grid = levels[0].shape[2:]
    return torch.cat([F.interpolate(each, grid, mode="bilinear") for each in parts], 1).permute(0, 2, 3, 1).numpy()


def pooled(levels, dimensions):
    """(B, h, w, dimensions) in the order of the authors' code: unfold, resize, pool each patch, pool the levels."""
    grid, parts = levels[0].shape[2:], []
    for level in levels:
        values = F.unfold(level.double(), 3, padding=1).view(len(level), -1, *level.shape[2:])  # C * 9 channels
        values = F.interpolate(values, grid, mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
        parts.append(F.adaptive_avg_pool1d(values[:, None], dimensions)[:, 0])
    return F.adaptive_avg_pool1d(torch.cat(parts, 1)[:, None], dimensions).view(len(levels[0]), *grid, -1).numpy()


def greedy(points, count, first):
    chosen, distances = [first], np.full(len(points), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distances.argmax()))
    return chosen


@pytest.mark.parametrize(("pooling", "dimensions"), [("authors", 1024), ("authors", 64), ("mean", 152)])
@pytest.mark.parametrize("reweight", [False, True])
def test_scores_and_maps_follow_the_equations(pooling, dimensions, reweight):
    words = (f"method.pooling={pooling}", "method.ratio=0.05", f"method.reweight={str(reweight).lower()}")
    words += ("method.projection=null",)
    words += (f"method.dimensions={dimensions}",) if pooling == "authors" else ()
    setup = Setup("patchcore", overrides=words)
    train, test = pictures(24), pictures(3, first=900)
    test[0, 20:30, 20:30] = 0
    method = setup.fitted(TrainingSet("slow", train))

    def embed(pixels):
        levels = setup.network(to_tensor(pixels))
        return joined(levels) if pooling == "mean" else pooled(levels, dimensions)

    known, tested = embed(train).reshape(-1, dimensions), embed(test)
    count = int(0.05 * len(known))
    first = int(np.square(known - method.bank[0].numpy()).sum(axis=1).argmin())
    bank = known[greedy(known, count, first)]
    np.testing.assert_allclose(method.bank, bank, atol=1e-3)
    distances = np.square(tested[:, :, :, None] - bank).sum(axis=-1)  # (3, h, w, M)
    nearest = distances.min(axis=3)
    result = method.score(to_tensor(test))
    large = F.interpolate(torch.from_numpy(nearest)[:, None], size=(64, 64), mode="bilinear")
    expected = np.stack([gaussian_filter(each, 4) for each in large[:, 0].numpy()])
    np.testing.assert_allclose(result.map, expected, rtol=2e-3)
    scores = nearest.max(axis=(1, 2))
    if reweight:
        rows = tested.reshape(3, -1, bank.shape[1])
        scores = [equation_7(one, bank, patches) for one, patches in zip(distances, rows, strict=True)]
    np.testing.assert_allclose(result.image, scores, rtol=2e-3)


def test_the_coreset_is_chosen_in_a_random_projection():
    """With as many dimensions as the embedding has, or none, it is not projected."""
    train = TrainingSet("projected", pictures(8))
    method = Setup("patchcore", overrides=("method.ratio=0.05", "method.dimensions=160")).fitted(train)
    embedding = method.embed(method.backbone(to_tensor(pictures(8))))
    projection = method.projected(embedding)
    assert projection.shape == (len(embedding), 128)
    first = int((embedding - method.bank[0]).square().sum(dim=1).argmin())
    chosen = greedy(projection.double().numpy(), len(method.bank), first)
    assert method.bank.numpy() == pytest.approx(embedding[chosen].numpy(), abs=1e-4)
    apart, kept = (torch.pdist(points).numpy() for points in (embedding[chosen], projection[chosen]))
    assert np.corrcoef(apart, kept)[0, 1] > 0.9, "a projection keeps distances"
    for words in ("null", "160"):
        method = Setup("patchcore", overrides=("method.dimensions=160", f"method.projection={words}")).new()
        assert method.projected(embedding) is embedding


def equation_7(distances, bank, patches):
    """The re-weighted score of one image, from (h, w, M) squared distances."""
    distances = distances.reshape(-1, len(bank))
    place = distances.min(axis=1).argmax()
    star = distances[place].argmin()
    around = np.square(bank - bank[star]).sum(axis=1).argsort()[: patchcore.AROUND]
    assert star in around
    apart = np.linalg.norm(bank[around] - patches[place], axis=1)
    return (1 - np.exp(apart[0]) / np.exp(apart).sum()) * apart[0]


def test_reweighting_is_stable_for_large_distances():
    """exp(1000) overflows, but the weight still lies between 1 - 1/9 and 1."""
    method = Setup("patchcore", overrides=("method.reweight=true",)).fitted()
    method.bank *= 1000
    method.norms *= 1e6
    patches = method.bank[[3, 5]] + 500
    found = neighbours.nearest(patches, method.bank)
    scores, plain = method.reweighted(patches, found, 2), found.distances[:, 0].sqrt()
    assert ((1 - 1 / 9) * plain * 0.999 <= scores).all()
    assert (scores <= plain).all()


def test_embeddings_of_wrn50_are_1024_and_the_bank_is_as_large_as_computed():
    """240 images, 1 %: 7.4 MiB."""
    setup = Setup("patchcore", "wrn50", ("backbone.weights=random",))
    method = setup.new()
    with torch.device("meta"):
        method.build(setup.network.shapes((224, 224)))
    assert method.bank.shape == (0, 1024)
    assert int(240 * method.grid[0] * method.grid[1] * 0.01) * 1024 * 4 / 2**20 == pytest.approx(7.4, abs=0.1)


@pytest.mark.parametrize(("backbone", "dimensions"), [("lite0", 152), ("r18", 384)])
def test_fewer_channels_are_pooled_to_as_many_values_or_kept(backbone, dimensions):
    """The authors' code pools to 1024 whatever the number of channels; `mean` keeps their number."""
    for words, expected in (((), 1024), (("method.pooling=mean",), dimensions)):
        setup = Setup("patchcore", backbone, ("backbone.weights=random", *words))
        method = setup.new()
        method.build(setup.network.shapes((64, 64)))
        assert method.bank.shape[1] == method.embed(setup.network(setup.new_images()))[0].numel() == expected


def test_bins_by_hand():
    """18 values in 4 bins (of 5 with one shared), and 4 values in 6 bins, some of them repeated."""
    assert (patchcore.bins(18, 4) @ torch.arange(18.0).double()).tolist() == [2.0, 6.0, 11.0, 15.0]
    assert (patchcore.bins(4, 6) @ torch.arange(4.0).double()).tolist() == [0.0, 0.5, 1.0, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("dimensions", [48, 50, 7])
@pytest.mark.parametrize("channels", [(8, 12), (8, 12, 5), (3,), (96, 40)])
def test_pooling_by_convolution_is_that_of_the_authors(channels, dimensions):
    """Also where a bin holds values of two levels: 50 and 7 dimensions of three levels, 7 of two."""
    levels = [torch.rand(2, count, 8 >> place, 8 >> place) for place, count in enumerate(channels)]
    method = patchcore.PatchCore(torch.nn.Identity(), 0.1, 0, dimensions=dimensions)
    method.build([level.shape[1:] for level in levels])
    assert method.embed(levels).numpy() == pytest.approx(pooled(levels, dimensions).reshape(-1, dimensions), abs=2e-6)


def test_seed_determines_the_first_entry():
    first, second, other = (Setup("patchcore", overrides=(f"seed={seed}",)).fitted() for seed in (0, 0, 1))
    assert first.bank.equal(second.bank)
    assert not first.bank[0].equal(other.bank[0])


def test_one_training_image_is_enough():
    method = Setup("patchcore", overrides=("method.ratio=0.1",)).fitted(TrainingSet("single", pictures(1)))
    assert method.bank.shape == (6, 1024)
    assert method.score(to_tensor(pictures(2))).map.isfinite().all()


def test_a_coreset_of_less_than_one_patch():
    with pytest.raises(ValueError, match=r"single: method.ratio=0.01 of 64 patches is 0; expected at least 1"):
        Setup("patchcore").fitted(TrainingSet("single", pictures(1)))


def test_one_patch_cannot_be_reweighted():
    words = ("method.ratio=0.02", "method.reweight=true")
    with pytest.raises(ValueError, match=r"is 1; expected at least 2, a ratio of 0.031"):
        Setup("patchcore", overrides=words).fitted(TrainingSet("single", pictures(1)))


def test_a_wrong_pooling_or_width():
    with pytest.raises(UsageError, match=r"method.pooling=authros: no such choice; did you mean authors"):
        Setup("patchcore", overrides=("method.pooling=authros",)).new()
    for key in ("dimensions", "projection"):
        with pytest.raises(UsageError, match=rf"method.{key}=0: expected at least 1"):
            Setup("patchcore", overrides=(f"method.{key}=0",)).new()


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5])
def test_invalid_ratio(ratio):
    with pytest.raises(UsageError, match=f"method.ratio={ratio}: expected a fraction"):
        Setup("patchcore", overrides=(f"method.ratio={ratio}",)).new()


def test_memory_is_refused_before_the_second_batch(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 6 * 10**6)
    seen = []
    with pytest.raises(TooLarge, match=r"1536 patches x 1024, with a bank of 15, needs 7 MB.*input.resize"):
        Setup("patchcore", overrides=("method.batch=8",)).fitted(
            TrainingSet("many", pictures(24), advance=lambda images: seen.append(images))
        )
    assert seen == []


def test_different_image_size_is_rejected():
    with pytest.raises(ValueError, match="score images of the same size"):
        Setup("patchcore").one.score(torch.rand(1, 3, 96, 96))


def test_selection_has_its_own_progress_bar():
    screen, reporter = io.StringIO(), Reporter()
    reporter.console = Console(file=screen, force_terminal=True, width=100)
    with reporter.stage("fitting", 24) as advance:
        Setup("patchcore").fitted(TrainingSet("cog", pictures(24), advance=advance, stage=reporter.stage))
    assert reporter.bars is None
    assert "fitting" in screen.getvalue()


def test_progress_counts_every_selected_patch():
    import contextlib

    steps = []

    @contextlib.contextmanager
    def stage(title, total):
        steps.append((title, total))
        yield lambda done: steps.append(done)

    method = Setup("patchcore").fitted(TrainingSet("cog", pictures(24), stage=stage))
    assert steps[0] == ("cog: coreset", 15)
    assert sum(steps[1:]) == len(method.bank) == 15


def test_training_image_scores_zero_with_a_full_bank():
    train = pictures(3)
    method = Setup("patchcore", overrides=("method.ratio=1",)).fitted(TrainingSet("all", train))
    assert isinstance(method, PatchCore)
    assert method.score(to_tensor(train)).map.abs().max() < 1e-5 * method.norms.max()
