"""A point in an image is found at its place in the map of every kind of backbone, on sides that the cells tile; others
are refused."""

from __future__ import annotations

import pytest
import torch

from anomaly_bench.backbones.build import find_weights, make_network
from anomaly_bench.backbones.tiling import require_tiles
from anomaly_bench.components.upsampling import smooth_upsample
from anomaly_bench.config.compose import compose
from anomaly_bench.errors import UsageError

KINDS = {  # backbone -> overrides, levels with their strides, sides that tile
    "lite0": ((), {1: 4, 2: 8}, (128, 160)),
    "effb4": ((), {1: 4, 2: 8}, (128, 160)),
    "r18": ((), {1: 4, 2: 8}, (128, 160)),
    "vgg16": (("+backbone.options={mlp_ratio:0.01}",), {1: 4, 2: 8}, (128, 160)),
    "deit_base": (("+backbone.options.depth=1",), {"block0": 16}, (128, 160)),
    "cait_m48": (("+backbone.options={img_size:160,depth:1}",), {"block0": 16}, (160,)),
}


def network(name, levels, words=()):
    """With weights where they are part of the installation, else with random ones."""
    words += () if name == "lite0" else ("backbone.weights=random",)
    config = compose("config", [f"backbone={name}", *words])
    return make_network(config["backbone"], find_weights(config)[name], "fp32", list(levels))


def displacements(made, side, level):
    """How far the centre of a level's answer, as a map, is from a bright point of 2 x 2 pixels at three places.

    They lie alike within the cells of every stride up to 16.
    """
    grey = torch.full((1, 3, side, side), 0.5)
    before, pixels = made(grey)[level], torch.arange(side) + 0.5
    for place in ((38, 70), (70, 102), (86, 54)):
        planted = grey.clone()
        planted[:, :, place[0] : place[0] + 2, place[1] : place[1] + 2] = 1
        answer = (made(planted)[level] - before).square().sum(dim=1)
        answer[answer < answer.max() / 10] = 0  # of deep levels every cell answers a little
        map = smooth_upsample(answer, (side, side), sigma=0)[0]
        for axis in (0, 1):
            yield float((map.sum(dim=1 - axis) * pixels).sum() / map.sum()) - place[axis] - 1


@pytest.mark.parametrize("name", KINDS)
def test_a_planted_point_is_found_at_its_place(name):
    """Half a cell off by the padding, less than that by the point's place in its cell; and alike everywhere."""
    words, levels, sides = KINDS[name]
    made = network(name, levels, words)
    for side in sides:
        require_tiles(name, made, (side, side), 3)
        for index, stride in enumerate(levels.values()):
            found = list(displacements(made, side, index))
            assert max(map(abs, found)) <= 3 / 4 * stride, (side, stride, found)
            assert max(found) - min(found) <= stride / 4, (side, stride, found)


@pytest.mark.parametrize(
    ("name", "levels", "size", "expected"),
    [
        ("lite0", [1, 2, 3], (161, 161), "multiples of 16, such as 160 x 160 or 176 x 176"),
        ("effb4", [1, 2], (380, 380), "multiples of 8, such as 376 x 376 or 384 x 384"),
        ("r18", [1, 2, 3, 4], (240, 256), "multiples of 32, such as 224 x 256 or 256 x 288"),
        ("vgg16", [1], (129, 130), "multiples of 4, such as 128 x 128 or 132 x 132"),
    ],
)
def test_sides_that_cells_do_not_tile_are_refused_with_the_nearest_that_they_do(name, levels, size, expected):
    with torch.device("meta"):
        made = network(name, levels, ("backbone.weights=random",))
    with pytest.raises(UsageError, match=f"{name}: its cells do not tile images of {size[0]} x {size[1]} .*{expected}"):
        require_tiles(name, made, size, 3)


def test_a_network_whose_cells_tile_no_side_is_not_refused():
    made = network("alexnet", [1, 2])
    assert not any(made.tiles((side, side)) for side in range(224, 260))
    require_tiles("alexnet", made, (256, 256), 3)


def test_why_others_are_refused():
    """At 129 pixels the shift depends on the place by more than a quarter of a cell."""
    found = list(displacements(network("lite0", [1, 2]), 129, 1))
    assert max(found) - min(found) > 8 / 4


def test_a_run_refuses_them_for_methods_with_maps_only(command, tree):
    words = ("dataset=folder", f"data_root={tree}", "category=cog", "input.resize=68", "speed=false", "gallery=0")
    where = (f"results={tree.parent / 'results'}", "threads=1")
    status, _, err = command(*words, *where, "method=padim", "method.dimensions=5")
    assert status == 2
    assert "lite0: its cells do not tile images of 68 x 68 pixels" in err
    assert "multiples of 16, such as 64 x 64 or 80 x 80" in err
    status, _, err = command(*words, *where, "method=mahalanobis_ad")
    assert status == 0, err
