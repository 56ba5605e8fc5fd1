"""Blended patches: Poisson's equation against a sparse solve and OpenCV, patches by their rules, labels by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from anomaly_bench.components.synthetic_anomalies import blends
from anomaly_bench.components.synthetic_anomalies.blends import Patches

RANDOM = np.random.default_rng(0)
TEXTURE = RANDOM.integers(60, 200, (64, 72, 3), np.uint8)
OTHER = RANDOM.integers(60, 200, (64, 72, 3), np.uint8)
RULES = Patches(rows=(0.2, 0.4), columns=(0.2, 0.4))


def slow_clone(target, patch, mixed):
    """Pixel by pixel; float64, not cut off."""
    height, width = target.shape[:2]
    result = target.astype(float)
    numbers = {(i, j): n for n, (i, j) in enumerate(np.ndindex(height - 2, width - 2))}
    for channel in range(3):
        inside, around = patch[..., channel].astype(float), target[..., channel].astype(float)

        def step(i, j, down, right, inside=inside, around=around):
            """The wanted difference between a pixel and its neighbour below or to the right."""
            field = around
            if 3 <= i < height - 3 and 3 <= j < width - 3:
                ours, theirs = (abs((f[i, j + 1] - f[i, j]) - (f[i + 1, j] - f[i, j])) for f in (inside, around))
                field = inside if not mixed or ours > theirs else around
            return field[i + down, j + right] - field[i, j]

        matrix, values = lil_matrix((len(numbers), len(numbers))), np.zeros(len(numbers))
        for (i, j), number in numbers.items():
            i, j = i + 1, j + 1
            values[number] = step(i, j, 1, 0) - step(i - 1, j, 1, 0) + step(i, j, 0, 1) - step(i, j - 1, 0, 1)
            matrix[number, number] = -4
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                place = near[0] - 1, near[1] - 1
                if place in numbers:
                    matrix[number, numbers[place]] = 1
                else:
                    values[number] -= around[near]
        result[1:-1, 1:-1, channel] = spsolve(matrix.tocsr(), values).reshape(height - 2, width - 2)
    return result


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [(14, 19), (9, 8)])
def test_blending_solves_poissons_equation(size, mixed):
    target, patch = TEXTURE[: size[0], : size[1]], OTHER[: size[0], : size[1]]
    expected = slow_clone(target, patch, mixed)
    found = blends.seamless_clone(target, patch, mixed)
    assert np.abs(found - np.floor(expected.clip(0, 255) + 1e-6)).max() == 0
    assert np.abs(found.astype(int) - target).max() > 10
    ring = np.ones(size, bool)
    ring[1:-1, 1:-1] = False
    assert np.array_equal(found[ring], target[ring])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [(31, 20), (24, 41)])
def test_blending_is_opencvs_to_one_grey_level(size, mixed):
    cv2 = pytest.importorskip("cv2")
    height, width = size
    mask = np.full(size, 255, np.uint8)
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    patch, top, left = OTHER[:height, :width], 15, 12
    point = left + width - width // 2, top + height // 2
    mode = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    expected = cv2.seamlessClone(patch.copy(), TEXTURE.copy(), mask, point, mode)
    found = TEXTURE.copy()
    shift = 1 + width % 2
    inner = slice(top + 1, top + height - 1), slice(left + shift, left + shift + width - 2)
    found[inner] = blends.seamless_clone(TEXTURE[inner], patch[1:-1, 1:-1], mixed)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_blends_without_a_trace():
    """The image itself; and with mixed gradients anything even. An even patch alone wipes out the texture."""
    constant, inner = np.full_like(TEXTURE, 90), (slice(10, 40), slice(10, 40))
    for patch, mixed, trace in (
        (TEXTURE, False, False),
        (TEXTURE, True, False),
        (constant, True, False),
        (constant, False, True),
    ):
        cloned = blends.seamless_clone(TEXTURE[inner], patch[inner], mixed).astype(int)
        assert (np.abs(cloned - TEXTURE[inner]).max() > 2) == trace
        torch.manual_seed(0)
        _, labels = blends.blend_patches(TEXTURE, patch, replace(RULES, mixed=mixed, resize=(1, 1)))
        if patch is constant:
            assert labels.any() == trace


def test_only_the_region_changes():
    torch.manual_seed(0)
    region = np.zeros(TEXTURE.shape[:2], bool)
    for _ in range(30):
        objects = [np.ones_like(region)] * 2
        result, changed = blends.blend_one(TEXTURE, region, OTHER, objects, RULES)
        assert changed.any()
        assert not region.any()
        rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
        assert changed.sum() == len(rows) * len(columns)
        assert np.array_equal(result[~changed], TEXTURE[~changed])
        labels = blends.labels(TEXTURE, result, changed, RULES)
        assert labels.any()
        assert not labels[~changed].any()


def test_sides_stay_within_their_bounds():
    """The bounds at 224 and 256 pixels, as whole sides of the final patch."""
    torch.manual_seed(0)
    for side, shares, expected in (
        (224, (0.03, 0.4), (7, 90)),
        (224, (0.03, 0.12), (7, 27)),
        (256, (0.03, 0.4), (8, 102)),
    ):
        bounds = [[round(share * side) for share in shares]] * 2
        assert tuple(bounds[0]) == expected
        whole, image = np.ones((side, side), bool), np.zeros((side, side, 3), np.uint8)
        sizes = []
        for _ in range(300):
            box = blends.cut(whole, bounds, 0.0)
            patch, own = blends.resized(image[box], whole[box], bounds, (0.5, 2))
            assert patch.shape[:2] == own.shape
            place = blends.destination(whole, own, 0.0)
            assert tuple(part.stop - part.start for part in place) == own.shape
            assert all(part.start >= 1 and part.stop <= side - 1 for part in place)
            sizes += own.shape
        assert expected[0] <= min(sizes) <= expected[0] + 8
        assert max(sizes) == expected[1]


def test_patches_of_objects_lie_on_objects():
    """With a grey background of 200: boxes with enough of the source's object, and places on the image's object."""
    torch.manual_seed(0)
    image, other = np.full((64, 64, 3), 200, np.uint8), np.full((64, 64, 3), 200, np.uint8)
    image[20:60, 10:50], other[5:45, 20:60] = 40, 90
    rules = Patches(background=(200, 60), share=0.7, rows=(0.1, 0.4), columns=(0.1, 0.4))
    mine, theirs = (blends.object_of(each, rules.background) for each in (image, other))
    assert mine[22:58, 12:48].all()
    assert not mine[:19].any()
    bounds = [[6, 26], [6, 26]]
    for _ in range(50):
        box = blends.cut(theirs, bounds, rules.share)
        assert theirs[box].mean() > 0.7
        place = blends.destination(mine, theirs[box], rules.share)
        assert mine[place].sum() > 0.25 * theirs[box].sum()
    assert blends.cut(np.zeros_like(mine), bounds, 0.7) is None
    empty, region = np.full_like(image, 200), np.zeros_like(mine)
    result, changed = blends.blend_one(image, region, empty, [mine, np.zeros_like(mine)], rules)
    assert result is image
    assert changed is region


def test_labels_follow_the_formula():
    """Half at the midpoint, little for small changes; medians of squares and discs."""
    region = np.zeros((64, 64), bool)
    region[12:52, 12:52] = True
    image = np.full((64, 64, 3), 100, np.uint8)
    for softness, midpoint, change, expected in (
        (12, 24, 24, 0.5),
        (12, 24, 10, 0.2375),
        (1, 3, 10, 0.9991),
        (2, 4, 4, 0.5),
        (3, 7, 2, 0.1588),
    ):
        changed = image + np.where(region, change, 0)[..., None].astype(np.uint8)
        made = blends.labels(image, changed, region, Patches(softness=softness, midpoint=midpoint))
        assert made[32, 32] == pytest.approx(expected, abs=1e-4)
        assert not made[:11].any()
        one = blends.labels(image, image + np.uint8(1), region, Patches())
        assert not one.any(), "a grey level is the tolerance"
    for softness, midpoint, least in ((2, 4, 0.1192), (3, 7, 0.0884), (1, 3, 0.0474), (6, 15, 0.0759)):
        assert 1 / (1 + np.exp(midpoint / softness)) == pytest.approx(least, abs=1e-4)


def test_labels_of_noise_follow_a_slow_version(monkeypatch):
    region = np.zeros((64, 72), bool)
    region[0:30, 20:72] = True
    rules = Patches()
    change = np.abs(TEXTURE.astype(float) - OTHER) * region[..., None]
    inside = median_filter((change.mean(axis=2) > 45).astype(np.uint8), 5, mode="nearest") > 0
    monkeypatch.setattr(blends, "TOLERANCE", 45)
    found = blends.labels(TEXTURE, OTHER, region, rules)
    rows, columns = np.mgrid[-5:6, -5:6]
    smooth = median_filter(change.mean(axis=2) * inside, footprint=rows**2 + columns**2 <= 25, mode="nearest")
    expected = inside / (1 + np.exp(-(smooth - 7) / 3))
    assert 0.02 < inside.mean() < 0.98
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_medians_of_masks():
    for share in (0.3, 0.5, 0.7):
        mask = RANDOM.random((40, 31)) < share
        for side in (5, 7):
            expected = median_filter(mask.astype(np.uint8), side, mode="nearest") > 0
            assert np.array_equal(blends.majority(mask, side), expected)


def test_the_global_seed_determines_the_patches():
    def draw():
        torch.manual_seed(3)
        return blends.blend_patches(TEXTURE, OTHER, RULES)

    for first, second in zip(draw(), draw(), strict=True):
        assert np.array_equal(first, second)


def test_the_first_patch_is_certain_and_others_are_drawn(monkeypatch):
    torch.manual_seed(0)
    counts, calls = [], []
    monkeypatch.setattr(blends, "blend_one", lambda image, region, *rest: (calls.append(1) or image, region))
    for _ in range(200):
        calls.clear()
        blends.blend_patches(TEXTURE, OTHER, RULES)
        counts.append(len(calls))
    assert set(counts) == {1, 2, 3}
    assert 1.8 < np.mean(counts) < 2.2
