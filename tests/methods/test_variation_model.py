"""The variation model in closed form, and its alignment against known turns and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from setups import setup

from anomaly_bench.components.grey import to_grey
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.variation_model import find_poses, inverse, warp
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.contract import CHECKS
from anomaly_bench.testing.setup import Setup, pictures

ALIGNED = ("method.align=true",)


def made(*words):
    return Setup("variation_model", overrides=words)


def greys(pixels):
    return (pixels.astype(np.float64) / 255) @ [0.299, 0.587, 0.114]


def part(side=96):
    """(1, side, side): a smooth part without any symmetry, on a dark background."""
    image = np.full((side, side), 0.1)
    image[side // 4 : side * 3 // 4, side // 3 : side * 2 // 3] = 0.6
    image[side // 4 : side // 3, side // 3 : side * 4 // 5] = 0.9
    image[side // 2 : side * 5 // 8, side // 5 : side // 2] = 0.3
    return torch.from_numpy(gaussian_filter(image, 1.5)).float()[None]


def moved(image, degrees, x, y):
    """The image as a camera sees it whose object is turned and shifted."""
    pose = torch.tensor([[np.radians(degrees), x, y]], dtype=torch.float32)
    edge = float(image.amin())
    return warp(image[:, None] - edge, inverse(pose))[0][:, 0] + edge


@pytest.mark.parametrize("batch", [1, 8])
def test_mean_and_deviation_are_numpys(batch):
    pixels = pictures(12)
    method = made(f"method.batch={batch}").fitted(TrainingSet("twelve", pixels))
    known = greys(pixels)
    np.testing.assert_allclose(method.mean, known.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(method.deviation, known.std(axis=0), atol=1e-6)
    turned = made().fitted(TrainingSet("twelve", pixels[::-1].copy()))
    torch.testing.assert_close(turned.mean, method.mean)
    torch.testing.assert_close(turned.deviation, method.deviation)


def test_thirty_images_are_drawn_with_the_seed():
    pixels = pictures(40)
    first, same, other = (made(word).fitted(TrainingSet("forty", pixels)) for word in ("seed=0", "seed=0", "seed=1"))
    assert torch.equal(first.mean, same.mean)
    assert not torch.equal(first.mean, other.mean)


def test_the_map_is_the_distance_in_deviations():
    method = made().one
    assert (method.deviation > 1 / 255).any()
    mean = method.mean[None, None].expand(1, 3, -1, -1)
    assert method.score(mean).map.abs().max() < 1e-4
    off = mean + 3 * method.deviation.clamp(min=1 / 255)
    found = method.score(off)
    torch.testing.assert_close(found.map, torch.full_like(found.map, 3.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.image, found.map.amax(dim=(1, 2)))


def test_a_floor_of_five_is_halcons_decision():
    method = made("method.floor=5.0").one
    images = to_tensor(pictures(4, first=900))
    difference = (to_grey(images)[:, 0] - method.mean).abs() * 255
    limit = torch.clamp(2 * method.deviation * 255, min=10.0)
    clear = (difference - limit).abs() > 1e-3
    assert torch.equal((method.score(images).map > 2)[clear], (difference > limit)[clear])
    assert (difference > limit).any()


def test_images_and_floor_on_another_scale_give_the_same_map():
    pixels, tested = pictures(6) // 2, pictures(2, first=900) // 2
    plain = made("method.floor=1.0").fitted(TrainingSet("six", pixels))
    double = made("method.floor=2.0").fitted(TrainingSet("six", pixels * 2))
    torch.testing.assert_close(
        plain.score(to_tensor(tested)).map, double.score(to_tensor(tested * 2)).map, rtol=1e-3, atol=1e-3
    )


def test_constant_pixels_are_divided_by_the_floor():
    grey = np.full((3, 32, 32, 3), 100, np.uint8)
    method = made().fitted(TrainingSet("grey", grey))
    found = method.score(to_tensor(grey[:1] + 4)).map
    torch.testing.assert_close(found, torch.full_like(found, 4.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("degrees", "x", "y"), [(10, 5, 0), (0, 0, 0), (-130, -3, 4), (75.5, 2.5, -1.5)])
def test_a_turned_and_shifted_image_is_aligned_back(degrees, x, y):
    image = part()
    poses, aligned = find_poses(moved(image, degrees, x, y), image[0])
    assert aligned.all()
    angle, *shift = poses[0].tolist()
    assert abs((np.degrees(angle) - degrees + 180) % 360 - 180) < 0.5
    assert shift == pytest.approx([x, y], abs=0.5)
    back, inside = warp(moved(image, degrees, x, y)[:, None], poses)
    assert ((back[:, 0] - image).abs() * inside).max() < 0.1


def test_an_image_aligned_with_itself_stays():
    poses, aligned = find_poses(part(), part()[0])
    assert aligned.all()
    torch.testing.assert_close(poses, torch.zeros(1, 3), atol=1e-3, rtol=0)


def test_an_image_of_something_else_is_not_aligned():
    noise = torch.rand(2, 96, 96, generator=torch.Generator().manual_seed(0))
    poses, aligned = find_poses(noise, part()[0])
    assert not aligned.any()
    assert not poses.any()
    assert find_poses(torch.full((1, 96, 96), 0.5), part()[0])[0].isfinite().all()


def test_a_pose_and_its_inverse_cancel():
    image = F.pad(part(64), (16, 16, 16, 16), value=float(part(64)[0, 0, 0]))[:, None]
    pose = torch.tensor([[0.4, 3.0, -2.0]])
    there, _ = warp(image, pose)
    back, _ = warp(there, inverse(pose))
    assert (back - image)[..., 24:-24, 24:-24].abs().max() < 0.06
    torch.testing.assert_close(inverse(inverse(pose)), pose)


def test_alignment_finds_a_defect_that_the_plain_model_misses():
    poses = [(degrees, degrees % 3 - 1, degrees % 5 - 2) for degrees in range(-20, 20, 4)]
    images = torch.cat([moved(part(), *pose) for pose in poses])
    pixels = (images[..., None].expand(-1, -1, -1, 3) * 255).round().byte().numpy()
    defect = part()
    defect[:, 60:66, 40:46] += 0.15
    tested = moved(defect, 12, 1, -2)[:, None].expand(-1, 3, -1, -1)
    where = moved(defect - part(), 12, 1, -2)[0] > 0.1
    shares = []
    for align in ("true", "false"):
        method = made(f"method.align={align}").fitted(TrainingSet("parts", pixels))
        found = method.score(tested).map[0]
        shares.append(float((found[~where] < found[where].median()).float().mean()))
    assert shares[0] > 0.99 > shares[1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract_with_alignment(check):
    check(setup("variation_model", words=ALIGNED))


def test_only_the_papers_categories_are_aligned():
    for name, rows in (("bottle", 1), ("cable", 0)):
        method = made().fitted(TrainingSet(name, pictures(3)))
        assert len(method.reference) == rows
        assert ("unaligned_images" in getattr(method, "facts", {})) == bool(rows)


def test_too_few_images_and_wrong_settings():
    with pytest.raises(ValueError, match=r"1 training image.*at least 2"):
        made().fitted(TrainingSet("single", pictures(1)))
    with pytest.raises(UsageError, match=r"method\.images=1"):
        made("method.images=1").new()
