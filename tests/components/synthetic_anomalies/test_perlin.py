from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench.components.synthetic_anomalies import perlin
from anomaly_bench.errors import UsageError


def slow_perlin(size, angles):
    """Pixel by pixel: dot products with the cell's corner gradients, blended by the fade curve."""
    rows, columns = angles.shape[0] - 1, angles.shape[1] - 1
    result = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * rows / size[0], j * columns / size[1]
            top, left = int(y), int(x)
            u, v = x - left, y - top
            dots = {}
            for a in (0, 1):
                for b in (0, 1):
                    angle = angles[top + a, left + b]
                    dots[a, b] = math.cos(angle) * (u - b) + math.sin(angle) * (v - a)
            s, t = (6 * w**5 - 15 * w**4 + 10 * w**3 for w in (u, v))
            above, below = ((1 - s) * dots[a, 0] + s * dots[a, 1] for a in (0, 1))
            result[i, j] = math.sqrt(2) * ((1 - t) * above + t * below)
    return result


@pytest.mark.parametrize(("size", "rows", "columns"), [((12, 16), 3, 4), ((10, 7), 1, 2), ((8, 8), 8, 1)])
def test_perlin_noise_follows_its_definition(size, rows, columns):
    torch.manual_seed(0)
    angles = perlin.draw_angles(rows, columns)
    np.testing.assert_allclose(perlin.perlin(size, angles).numpy(), slow_perlin(size, angles.numpy()), atol=1e-5)


def test_noise_is_zero_at_the_lattice():
    torch.manual_seed(1)
    assert perlin.perlin((16, 16), perlin.draw_angles(4, 4))[::4, ::4].abs().max() < 1e-6


def test_masks_vary_in_coverage():
    torch.manual_seed(0)
    shares = torch.stack([perlin.perlin_mask((64, 64)).float().mean() for _ in range(60)])
    assert shares.min() == 0
    assert shares.max() > 0.1
    assert 0.01 < shares.mean() < 0.3


def test_half_of_the_images_change_and_only_inside_the_mask():
    torch.manual_seed(0)
    image = torch.rand(3, 32, 32)
    pairs = [perlin.simulate(image, perlin.generated_texture) for _ in range(100)]
    assert 30 < sum(torch.equal(changed, image) for changed, _ in pairs) < 80
    for changed, mask in pairs:
        assert torch.equal(changed[:, ~mask], image[:, ~mask])
        assert 0 <= changed.min() <= changed.max() <= 1
    assert any((changed != image).any(dim=0)[mask].float().mean() > 0.9 for changed, mask in pairs if mask.any())


def test_global_seed_determines_the_anomalies():
    def draw():
        torch.manual_seed(5)
        return [perlin.simulate(torch.full((3, 32, 32), 0.5), perlin.generated_texture)[0] for _ in range(6)]

    assert all(map(torch.equal, draw(), draw()))


@pytest.mark.parametrize("number", range(len(perlin.AUGMENTATIONS)))
def test_every_change_keeps_shape_and_type_and_changes_something(number):
    torch.manual_seed(0)
    image = perlin.generated_texture((32, 40))
    changed = [perlin.AUGMENTATIONS[number](image) for _ in range(4)]
    assert all(each.shape == image.shape and each.dtype == torch.uint8 for each in changed)
    assert any(not torch.equal(each, image) for each in changed)


def drawn(number, image, count):
    torch.manual_seed(0)
    return [perlin.AUGMENTATIONS[number](image) for _ in range(count)]


def test_ranges_of_sharpness_bits_and_contrast_are_imgaugs():
    """Sharpness 0 (smoothed) to 2, posterised to 1 to 8 bits, 0 to 20 % cut off at either end; each value is drawn."""
    ramp = torch.linspace(0, 255, 4000).round().to(torch.uint8).view(1, 40, 100).repeat(3, 1, 1)
    bits = {len(each.unique()) for each in drawn(5, ramp, 200)}
    assert bits == {2**count for count in range(1, 9)}
    cut = {int(100 * (each[0] == 0).float().mean()) for each in drawn(7, ramp, 400)}
    assert cut == set(range(21))
    image = torch.full((3, 9, 9), 100, dtype=torch.uint8)
    image[:, 4, 4] = 113  # which smoothing with Pillow's kernel (5 of 13 in the middle) makes 105, and sharpness 2 121
    middles = [int(each[0, 4, 4]) for each in drawn(2, image, 200)]
    assert (min(middles), max(middles)) == (105, 120), "fractions are cut off"


def test_contrast_is_stretched_as_pillow_does():
    torch.manual_seed(3)
    image = perlin.generated_texture((32, 40))
    for cutoff in (0, 7, 20):
        values = np.sort(image[0].numpy().ravel())[len(image[0].flatten()) * cutoff // 100 :]
        low, high = values[0], np.sort(image[0].numpy().ravel())[::-1][image[0].numel() * cutoff // 100]
        expected = (image[0].double().numpy() - low) * 255 / (int(high) - int(low))
        found = perlin.autocontrast(image, cutoff)[0].numpy()
        assert np.abs(found - expected.clip(0, 255)).max() <= 1


def test_generated_textures_differ():
    torch.manual_seed(0)
    made = [perlin.generated_texture((32, 32)) for _ in range(5)]
    assert all(texture.shape == (3, 32, 32) and texture.float().std() > 5 for texture in made)
    assert not torch.equal(made[0], made[1])


def test_textures_of_a_folder(tmp_path):
    for number, colour in enumerate(("red", "blue")):
        (tmp_path / "dots").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), colour).save(tmp_path / "dots" / f"{number}.jpg")
    texture = perlin.folder_texture(tmp_path)
    torch.manual_seed(0)
    found = [texture((8, 6)) for _ in range(20)]
    assert all(each.shape == (3, 8, 6) for each in found)
    assert {bool(each[0].float().mean() > 128) for each in found} == {True, False}


@pytest.mark.parametrize("folder", ["missing", ""])
def test_folder_without_textures(tmp_path, folder):
    with pytest.raises(UsageError, match=r"anomaly_source=.*no images there; expected a folder such as DTD's"):
        perlin.folder_texture(tmp_path / folder)
