"""Uninformed Students: dense descriptors against single patches, the published networks, scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from setups import setup
from torch import nn

from anomaly_bench.components.distillation import correlations, random_patch
from anomaly_bench.components.patch_network import LAYERS, SLOPE, PatchNetwork
from anomaly_bench.errors import UsageError
from anomaly_bench.methods import uninformed_students as module
from anomaly_bench.methods.uninformed_students import Scale, UninformedStudents
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import pictures

TEST = to_tensor(pictures(3, 500))
PARAMETERS = {17: 2_996_480, 33: 1_616_000, 65: 1_386_624}
REACH = {17: (8, 8), 33: (16, 15), 65: (32, 27)}  # pixels before and after the middle one


@pytest.fixture(scope="module")
def fitted():
    made = setup("uninformed_students")
    normals = made.normals()
    normals.steps = 20
    return made.fit(made.new(patches=[17, 33], students=3, crop=None), normals)


def as_published(patch, describer):
    """The network for one patch, from its layers and plain pools."""
    layers: list = []
    for layer in describer.layers:
        layers += [layer, nn.LeakyReLU(5e-3)] if isinstance(layer, nn.Conv2d) else [nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("patch", LAYERS)
def test_parameters_of_the_published_networks(patch):
    with torch.device("meta"):
        describer = PatchNetwork(patch, 128)
        assert as_published(patch, describer)(torch.empty(2, 3, patch, patch)).shape == (2, 128, 1, 1)
    assert sum(parameter.numel() for parameter in describer.parameters()) == PARAMETERS[patch]


@pytest.mark.parametrize("stride", module.STRIDES)
@pytest.mark.parametrize("patch", LAYERS)
def test_dense_descriptors_are_those_of_each_patch(patch, stride):
    torch.manual_seed(0)
    scale = Scale(patch, 2, 4).double()
    image, network = torch.randn(1, 3, 72, 80, dtype=torch.float64), as_published(patch, scale.teacher)
    view, step = scale.teacher.view(image, stride)
    found = scale.teacher(view, step)[0].detach()
    assert found.shape == (4, 72 // stride, 80 // stride)
    before, largest = patch // 2, float(found.abs().max())
    whole = F.pad(image, [before + 5] * 4, mode="reflect")[:, :, 5:, 5:]  # more than is needed after the image
    for row in range(found.shape[1]):
        for column in {0, 1, row % found.shape[2], found.shape[2] - 1}:
            top, left = stride // 2 + stride * row, stride // 2 + stride * column
            expected = network(whole[:, :, top : top + patch, left : left + patch])[0, :, 0, 0]
            assert float((found[:, row, column] - expected).abs().max().detach()) < 1e-12 * largest


@pytest.mark.parametrize("patch", LAYERS)
def test_pixels_that_a_descriptor_depends_on(patch):
    scale = Scale(patch, 2, 2)
    image = torch.randn(1, 3, 100, 100, requires_grad=True)
    view, step = scale.teacher.view(image, 1)
    with torch.no_grad():
        for layer in scale.teacher.layers:
            for parameter in layer.parameters():
                parameter.abs_()
    described = scale.teacher(view.abs(), step)
    assert described.shape[2:] == (100, 100)
    found = set()
    for seed in range(20):  # a pool passes the gradient of one pixel only
        torch.manual_seed(seed)
        values = torch.rand(1, 3, 100, 100, requires_grad=True)
        view, _ = scale.teacher.view(values, 1)
        (gradient,) = torch.autograd.grad(scale.teacher(view, 1)[0, :, 50, 40].sum(), values)
        found |= {tuple(place) for place in gradient[0].abs().sum(dim=0).nonzero().tolist()}
    before, after = REACH[patch]
    rows, columns = ({place[axis] for place in found} for axis in (0, 1))
    assert (min(rows), max(rows), min(columns), max(columns)) == (50 - before, 50 + after, 40 - before, 40 + after)


def test_variance_and_error_by_hand():
    """Equal students, students that equal the teacher, and two that are as far from it on both sides."""
    scale = Scale(17, 3, 4)
    image = torch.randn(1, 3, 20, 24)
    for student in scale.students:
        student.load_state_dict(scale.students[0].state_dict())
    assert (scale.terms(image, 1)[:, 1] == 0).all()
    for student in scale.students:
        student.load_state_dict(scale.teacher.state_dict())
    assert (scale.terms(image, 1) == 0).all()
    target = scale.targets(*scale.teacher.view(image, 1))
    away = torch.tensor([1.0, 0.0, -2.0, 0.5])[:, None, None]
    scale.students = nn.ModuleList([Given(target + away), Given(target - away)])
    error, variance = scale.terms(image, 1)[0]
    torch.testing.assert_close(variance, torch.full_like(variance, float(away.square().sum())))
    assert error.max() < 1e-10


class Given(nn.Module):
    def __init__(self, described):
        super().__init__()
        self.described = described

    def forward(self, view, stride):
        return self.described


def test_scores_follow_the_equations(fitted):
    """Descriptor by descriptor in NumPy; the variance as the mean square minus the square of the mean."""
    images = (TEST[:1] - fitted.mean) / fitted.std
    maps = []
    for scale in fitted.scales:
        view, step = scale.teacher.view(images, fitted.stride)
        teacher = scale.targets(view, step).detach().double().numpy()[0]
        students = [student(view, step).detach().double().numpy()[0] for student in scale.students]
        rows, columns = teacher.shape[1:]
        found = torch.zeros(rows, columns, dtype=torch.float64)
        for row in range(rows):
            for column in range(columns):
                target = teacher[:, row, column]
                each = [student[:, row, column] for student in students]
                mean = sum(each) / len(each)
                error = ((mean - target) ** 2).sum()
                variance = sum((one**2).sum() for one in each) / len(each) - (mean**2).sum()
                terms = zip((error, variance), scale.score_mean.flatten(), scale.score_std.flatten(), strict=True)
                found[row, column] = sum((value - float(mean)) / float(std) for value, mean, std in terms)
        maps.append(F.interpolate(found[None, None], (64, 64), mode="bilinear")[0, 0])
    expected = torch.stack(maps).mean(dim=0)
    result = fitted.score(TEST[:1])
    torch.testing.assert_close(result.map[0].double(), expected, rtol=1e-3, atol=1e-3)
    assert float(result.image) == float(result.map.max())


def test_targets_and_scores_are_standardised(fitted):
    """Over the positions of the images that they come from: training images for targets, held-out ones for scores."""
    trained, held_out = fitted.split(setup("uninformed_students").normals())
    assert (len(trained), len(held_out)) == (22, 2)
    for scale in fitted.scales:
        images = torch.cat(list(fitted.parts(trained)))
        targets = scale.targets(*scale.teacher.view(images, fitted.stride)).detach().transpose(0, 1).flatten(1)
        torch.testing.assert_close(targets.mean(dim=1), torch.zeros(len(targets)), rtol=0, atol=1e-3)
        torch.testing.assert_close(targets.std(dim=1, correction=0), torch.ones(len(targets)), rtol=1e-3, atol=0)
        terms = scale.terms(torch.cat(list(fitted.parts(held_out))), fitted.stride).detach().transpose(0, 1).flatten(1)
        torch.testing.assert_close(terms.mean(dim=1), scale.score_mean.flatten(), rtol=1e-4, atol=0)
        torch.testing.assert_close(terms.std(dim=1, correction=0), scale.score_std.flatten(), rtol=1e-3, atol=0)
    maps = [scale.map(each, fitted.stride) for scale in fitted.scales for each in fitted.parts(held_out)]
    assert float(torch.cat([each.flatten() for each in maps]).mean().detach()) == pytest.approx(0, abs=1e-3)


def test_correlations_by_hand():
    torch.testing.assert_close(correlations(torch.randn(6, 1).expand(6, 128)), torch.ones(128, 128))
    columns = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).T[:, 1:]
    torch.testing.assert_close(correlations(columns + 3), torch.eye(2))
    values = torch.randn(9, 5)
    torch.testing.assert_close(correlations(values), torch.corrcoef(values.T))
    assert (correlations(torch.full((3, 2), 0.1), least=1e-6).abs() < 0.1).all()


def test_patches_of_the_teachers():
    """Crops of images whose sides are 4 to 16 patches; one in ten is grey."""
    torch.manual_seed(0)
    rows = torch.linspace(0, 1, 128)
    ramp = torch.stack([rows, 1 - rows, 0 * rows])[:, :, None].expand(3, 128, 128)
    drawn = [random_patch(ramp, 17) for _ in range(300)]
    assert {tuple(patch.shape) for patch in drawn} == {(3, 17, 17)}
    grey = [bool((patch[0] == patch[2]).all()) for patch in drawn]
    assert 15 <= sum(grey) <= 45
    colourful = [patch[0, :, 0] for patch, dull in zip(drawn, grey, strict=True) if not dull]
    spans = [float(values[-1] - values[0]) * 127 / 16 for values in colourful]
    assert 128 / 17 / 16 * 0.9 < min(spans) < 0.6 < 1.6 < max(spans) < 128 / 17 / 4 * 1.1


def test_teachers_come_first_and_get_the_published_share_of_a_budget():
    method = UninformedStudents(None, epochs=100, teacher_steps=50_000)
    assert method.steps_of_teachers(200, None) == 50_000
    assert method.steps_of_teachers(200, 700) == 500
    assert method.steps_of_teachers(200, 2) == 1


def test_one_step_of_the_students(fitted, monkeypatch):
    """All positions of a cell are visited in turn, and the loss is the squared distance, summed over channels."""
    monkeypatch.setattr(torch, "randint", lambda *words, **keys: torch.tensor(3))
    losses = list(fitted.students_losses(TEST[:1]))
    images, expected = (TEST[:1] - fitted.mean) / fitted.std, []
    for scale in fitted.scales:
        view = F.pad(images, [scale.patch // 2] * 4, mode="reflect")[:, :, 3:, 3:]
        target = (scale.teacher(view, 8) - scale.target_mean) / scale.target_std
        expected += [(student(view, 8) - target).square().sum(dim=1).mean() for student in scale.students]
    assert len(losses) == 2 * 3
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected))


def test_crops_have_the_descriptors_of_the_whole_image(fitted, monkeypatch):
    for scale in fitted.scales:
        whole = scale.teacher(*scale.teacher.view(TEST, 1))
        part = scale.teacher(*scale.teacher.view(TEST, 4, (5, 9), 24))
        torch.testing.assert_close(part, whole[:, :, 5 : 5 + 24 : 4, 9 : 9 + 24 : 4], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(fitted, "crop", 16)
    monkeypatch.setattr(torch, "randint", lambda high, *words, **keys: torch.tensor(high - 1))
    images = (TEST[:1] - fitted.mean) / fitted.std
    for number, found in enumerate(fitted.students_losses(TEST[:1])):
        scale = fitted.scales[number // 3]
        view = scale.teacher.view(images, fitted.stride, (48, 48))
        target = scale.targets(*view)
        expected = (scale.students[number % 3](*view) - target).square().sum(dim=1).mean()
        torch.testing.assert_close(found, expected)


def test_images_no_larger_than_a_patch_have_one_descriptor():
    made = setup("uninformed_students")
    normals = TrainingSet("small", pictures(12, side=32))
    normals.steps = 4
    method = made.fit(made.new(students=5), normals)
    assert len(method.scales[0].students) == 5
    result = method.score(TEST[:, :, :32, :32])
    torch.testing.assert_close(result.map, result.image[:, None, None].expand(3, 32, 32))
    patch = F.interpolate(method.normalised(TEST[:, :, :32, :32]), (33, 33), mode="bilinear", antialias=True)
    scale = method.scales[0]
    found = scale.teacher(*scale.teacher.view(method.normalised(TEST[:, :, :32, :32]), 8))
    torch.testing.assert_close(found, as_published(33, scale.teacher)(patch))


def test_a_folder_of_photographs_teaches(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 200)).save(tmp_path / f"{number}.png")
    made = setup("uninformed_students", words=(f"method.teacher_images={tmp_path}",))
    method = made.new()
    method.build(made.shapes())
    seen = method.lesson(made.normals())
    assert seen.shape[1:] == (3, 64, 64)
    assert {round(float(value) * 255) for value in seen[:, 0].unique()} <= {0, 80, 160}
    normals = made.normals()
    normals.steps = 4
    assert made.fitted(normals).score(TEST).map.isfinite().all()
    with pytest.raises(UsageError, match=r"method.teacher_images=.*nowhere: no images there"):
        setup("uninformed_students", words=(f"method.teacher_images={tmp_path}/nowhere",)).new()


def test_few_images_are_not_split(caplog):
    made = setup("uninformed_students")
    normals = TrainingSet("few", pictures(2))
    normals.steps = 4
    made.fitted(normals)
    assert "few: none of less than 10 training images is held out" in caplog.text


def test_wrong_settings():
    for settings, message in (
        ({"patches": [17, 32]}, r"method.patches=\[17, 32\]: expected some of \[17, 33, 65\]"),
        ({"students": 1}, "method.students=1: expected at least 2"),
        ({"teacher_steps": 0}, "method.teacher_steps=0: expected at least 1"),
        ({"stride": 4, "crop": 3}, "method.crop=3: expected at least method.stride=4 pixels, or null"),
        ({"stride": 3}, "method.stride=3: expected 1, 2, 4 or 8 pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            UninformedStudents(None, epochs=1, **settings)
    with pytest.raises(UsageError, match="Uninformed Students: 2 levels; expected one of one network"):
        UninformedStudents(None, epochs=1).build([(3, 4, 4)] * 2)
    assert math.isclose(SLOPE, 5e-3)
