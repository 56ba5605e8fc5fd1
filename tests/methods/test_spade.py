"""SPADE against brute force over all patches, written from the paper's equations."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from anomaly_bench import evaluate
from anomaly_bench.components import cell_search
from anomaly_bench.errors import TooLarge, UsageError
from anomaly_bench.hardware import memory
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup, pictures


def replicated(values, height, width):
    """(B, h, w, C) replicated to a larger grid."""
    rows = np.arange(height) * values.shape[1] // height
    columns = np.arange(width) * values.shape[2] // width
    return values[:, rows][:, :, columns]


def features(setup, pixels):
    """The map's levels (B, h, w, C) float64, and the pooled last level (B, C)."""
    *levels, deepest = [level.double().permute(0, 2, 3, 1).numpy() for level in setup.network(to_tensor(pixels))]
    return levels, deepest.mean(axis=(1, 2))


def together(levels):
    """(B, h, w, D): each level brought to the previous level's grid, up to the first."""
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = np.concatenate([level, replicated(whole, *level.shape[1:3])], axis=-1)
    return whole


def distance_map(queries, gallery):
    """(h, w) squared distances from (h, w, D) to the nearest in (K, h, w, D)."""
    patches = gallery.reshape(-1, gallery.shape[-1])
    flat = [np.square(patches - query).sum(axis=1).min() for query in queries.reshape(-1, queries.shape[-1])]
    return np.array(flat).reshape(queries.shape[:2])


def smooth(values, size):
    large = F.interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear")[0, 0].numpy()
    return gaussian_filter(large, 4)


@pytest.mark.parametrize("pyramid", ["joined", "mean"])
@pytest.mark.parametrize("size", [(64, 64), (68, 72)])
def test_scores_and_maps_follow_the_equations(pyramid, size):
    """At 68 x 72 the grids are 17 x 18, 9 x 9 and 5 x 5, so cell sizes vary."""
    setup = Setup("spade", overrides=("method.neighbours=4", f"method.pyramid={pyramid}"))
    images = np.pad(pictures(12), ((0, 0), (0, size[0] - 64), (0, size[1] - 64), (0, 0)), mode="reflect")
    train, test = images[:10], images[10:].copy()
    test[0, 20:30, 20:30] = 0
    method = setup.fitted(TrainingSet("slow", train))
    known, known_pooled = features(setup, train)
    tested, tested_pooled = features(setup, test)
    result = method.score(to_tensor(test))
    for index in range(2):
        distances = np.square(known_pooled - tested_pooled[index]).sum(axis=1)
        chosen = distances.argsort()[:4]
        assert float(result.image[index]) == pytest.approx(distances[chosen].mean(), rel=1e-4)
        if pyramid == "joined":
            levels = [(together(tested)[index], together(known)[chosen])]
        else:
            levels = [(mine[index], theirs[chosen]) for mine, theirs in zip(tested, known, strict=True)]
        expected = np.mean([smooth(distance_map(*level), size) for level in levels], axis=0)
        np.testing.assert_allclose(result.map[index], expected, rtol=1e-3)


def test_block_size_does_not_change_scores(monkeypatch):
    setup = Setup("spade", overrides=("method.neighbours=6",))
    images = to_tensor(pictures(2, first=700))
    expected = setup.one.score(images).map
    monkeypatch.setattr(cell_search, "cache_bytes", lambda device: 1)
    torch.testing.assert_close(setup.one.score(images).map, expected, rtol=1e-5, atol=1e-3)


def test_stored_features_are_as_large_as_computed():
    """WR50 at 224 px, levels 1 to 3 and 2048 pooled channels: 5.37 MiB per image."""
    setup = Setup("spade", "wrn50", ("backbone.weights=random",))
    method = setup.new()
    with torch.device("meta"):
        method.build(setup.network.shapes((224, 224)))
    floats = sum(value[None].expand(1, *value.shape).shape[2:].numel() for value in method.state_dict().values())
    assert floats * 4 / 2**20 == pytest.approx(5.37, abs=0.01)


def test_more_neighbours_than_images(caplog, tree, tmp_path):
    """K is reduced with a warning and recorded."""
    with caplog.at_level(logging.WARNING):
        words = {"data_root": str(tree), "category": "cog", "results": str(tmp_path), "speed": False, "gallery": 0}
        (record,) = evaluate("input.resize=64", method="spade", dataset="folder", **words)
    assert "cog: method.neighbours=50 reduced to 6, the number of training images" in caplog.text
    assert record.cost["neighbours"] == 6


def test_one_training_image():
    method = Setup("spade").fitted(TrainingSet("single", pictures(1)))
    result = method.score(to_tensor(pictures(3)))
    assert result.image[0] < 1e-5 * result.image[1]
    assert result.map[0].max() < 1e-3 * result.map[1].max()


def test_memory_is_refused_before_the_second_batch(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 10**5)
    seen = []
    with pytest.raises(TooLarge, match=r"many: the gallery of 24 images needs 1 MB.*fewer training images"):
        Setup("spade", overrides=("method.batch=8",)).fitted(TrainingSet("many", pictures(24), advance=seen.append))
    assert seen == []


def test_different_image_size_is_rejected():
    with pytest.raises(ValueError, match="score images of the same size"):
        Setup("spade").one.score(torch.rand(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method.neighbours=0", "method.neighbours=0: expected at least 1"),
        ("method.pyramid=meen", "method.pyramid=meen: no such choice; did you mean mean"),
        ("method.levels=[1,4]", "method.levels: 2 levels; SPADE needs"),
    ],
)
def test_invalid_settings(words, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        Setup("spade", overrides=(words,)).fitted()
