from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.methods.reverse_distillation import Residual, ReverseDistillation, check_levels, distance
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import Setup, new_images, pictures


def count(backbone: str) -> int:
    method = Setup("reverse_distillation", backbone, ("backbone.weights=random",))
    made = method.new()
    with torch.device("meta"):
        made.build(method.network.shapes((256, 256)))
    return sum(parameter.numel() for parameter in made.parameters())


def test_parameters_of_the_published_network():
    """WRN50's 352 MB checkpoint has 8.39 M more, unused parameters (4096 -> 2048, and its norm)."""
    trained = count("wrn50")
    assert trained == pytest.approx(83.8e6, rel=1e-3)
    dead = 4096 * 2048 + 2 * 2048
    assert 4 * (trained + dead) / 2**20 == pytest.approx(351.7, abs=0.1)


def test_parameters_of_the_basic_blocks_by_hand():
    """R18: fusion, embedding and decoder written out; each convolution has a batch norm."""

    def conv(inputs, outputs, kernel):
        return inputs * outputs * kernel**2 + 2 * outputs

    fusion = conv(64, 128, 3) + 2 * conv(128, 256, 3)
    embedding = conv(768, 512, 3) + 3 * conv(512, 512, 3) + conv(768, 512, 1)
    decoder = 0
    for inputs, outputs in ((512, 256), (256, 128), (128, 64)):
        decoder += 2 * conv(inputs, outputs, 2) + 3 * conv(outputs, outputs, 3)
    assert count("r18") == fusion + embedding + decoder


def test_loss_uses_whole_maps():
    """1 - cos of flattened maps: batch mean, summed over levels; not the paper's mean over positions."""
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(3, c, 4, 4, generator=generator) for c in (2, 5)] for _ in range(2)]
    expected = 0.0
    for theirs, ours in zip(*pairs, strict=True):
        for a, b in zip(theirs.double().numpy(), ours.double().numpy(), strict=True):
            expected += (1 - (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())) / 3
    assert float(distance(*pairs)) == pytest.approx(expected, rel=1e-6)
    assert float(distance(pairs[0], pairs[0])) == pytest.approx(0, abs=1e-6)


class Fixed(ReverseDistillation):
    """A method whose decoder returns given levels."""

    def decode(self, levels):
        return self.decoded


def test_scores_follow_the_equations():
    generator = torch.Generator().manual_seed(1)
    theirs, ours = ([torch.randn(2, c, n, n, generator=generator) for c, n in ((3, 8), (4, 4))] for _ in range(2))
    method = Fixed(lambda images: theirs, epochs=1, sigma=2.0)
    method.decoded = ours
    result = method.eval().score(torch.zeros(2, 3, 16, 16))
    for index in range(2):
        total = np.zeros((16, 16))
        for a, b in zip(theirs, ours, strict=True):
            x, y = a[index].double().numpy(), b[index].double().numpy()
            cosine = (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
            total += corners_kept(1 - cosine, 16)
        expected = gaussian_filter(total, 2.0)
        assert np.allclose(result.map[index].numpy(), expected, atol=1e-5)
        assert float(result.image[index]) == pytest.approx(expected.max(), abs=1e-5)


def corners_kept(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with align_corners=True."""
    places, known = np.linspace(0, len(grid) - 1, size), np.arange(len(grid))
    rows = np.stack([np.interp(places, known, column) for column in grid.T], 1)
    return np.stack([np.interp(places, known, row) for row in rows])


@pytest.mark.parametrize("expansion", [1, 4])
@pytest.mark.parametrize(("grid", "side"), [("up", 16), ("down", 4), ("same", 8)])
def test_residual_blocks_have_the_announced_shapes(expansion, grid, side):
    block = Residual(8, 12, expansion, 2.0, grid)
    assert block(torch.randn(2, 8, 8, 8)).shape == (2, 12, side, side)
    assert not isinstance(block.shortcut, nn.Identity)


@pytest.mark.parametrize(
    "shapes",
    [
        [(8, 16, 16), (8, 8, 8)],
        [(8, 16, 16), (8, 8, 8), (8, 8, 8)],
        [(8, 12, 12), (8, 6, 6), (8, 3, 3)],
    ],
)
def test_unsupported_levels(shapes):
    with pytest.raises(UsageError, match=r"grids .* multiples of 32, such as 224 or 256"):
        check_levels(shapes)


def test_incompatible_input_is_rejected(tree, tmp_path, command):
    words = (f"data_root={tree}", f"results={tmp_path / 'r'}", "input.resize=48", "speed=false", "threads=1")
    status, _, err = command("method=reverse_distillation", "dataset=folder", *words)
    assert status == 2
    assert "12 x 12, 6 x 6, 3 x 3" in err
    assert "Traceback" not in err


def test_an_unknown_block():
    with pytest.raises(UsageError, match=r"method\.block=bottelneck: no such choice; did you mean bottleneck"):
        ReverseDistillation(None, epochs=1, block="bottelneck")


@pytest.mark.slow
def test_the_loss_falls_and_the_teacher_sees_every_image_once():
    setup = Setup("reverse_distillation", "lite0", ("method.epochs=6", "method.lr=0.002"))
    method, calls = setup.new(), []
    network = method.backbone
    method.backbone = lambda images: calls.append(len(images)) or network(images)
    setup.fit(method, TrainingSet("waves", pictures(20)))
    assert calls == [16, 4]
    losses = method.facts["training"]["curve"]["loss"]  # two steps are an epoch
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    assert method.score(new_images()).map.min() >= 0


@pytest.mark.parametrize(("backbone", "ends"), [("r18", ["relu"] * 3), ("lite0", ["linear"] * 3)])
def test_decoder_stages_end_as_the_teachers_levels(backbone, ends):
    words = ("backbone.weights=random",) if backbone == "r18" else ()
    setup = Setup("reverse_distillation", backbone, ("method.epochs=1", *words))
    method = setup.fitted()
    assert method.facts["ends"] == ends
    levels = setup.network(new_images())
    for level, decoded, end in zip(levels, method.decode(levels), ends, strict=True):
        assert bool((level < 0).any()) == bool((decoded < 0).any()) == (end == "linear")
    loaded = setup.new(**method.resolved)
    loaded.build(setup.shapes())
    loaded.load_state_dict(method.state_dict())
    assert torch.equal(loaded.eval().score(new_images()).map, method.score(new_images()).map)


def test_ends_are_chosen_for_each_level():
    shapes = [(8, 16, 16), (8, 8, 8), (8, 4, 4)]
    method = ReverseDistillation(None, epochs=1, ends=["linear", "relu", "relu"])
    method.build(shapes)
    levels = method.eval().decode([torch.randn(2, *shape) for shape in shapes])
    assert [bool((level < 0).any()) for level in levels] == [True, False, False]
    with pytest.raises(UsageError, match=r"method\.ends=line: no such choice; did you mean linear"):
        ReverseDistillation(None, epochs=1, ends=["line"] * 3)
    with pytest.raises(UsageError, match=r"method\.ends=\['relu'\]: expected 3, one for each level"):
        ReverseDistillation(None, epochs=1, ends=["relu"]).build(shapes)
