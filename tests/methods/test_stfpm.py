from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from anomaly_bench.backbones import student as student_module
from anomaly_bench.errors import UsageError
from anomaly_bench.methods.stfpm import STFPM
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import Setup, new_images, pictures


def levels(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, n, n, generator=generator) for c, n in ((3, 8), (4, 4), (5, 2))]


class Given(nn.Module):
    """A student with fixed features."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, images):
        return self.levels


def method(teacher, student):
    made = STFPM(lambda images: teacher, epochs=1)
    made.student = Given(student)
    return made.eval()


def slow_distances(teacher, student):
    """Squared distances between unit-length features, position by position."""
    made = []
    for a, b in zip(teacher, student, strict=True):
        x, y = (level.double().numpy() for level in (a, b))
        x, y = (level / np.sqrt((level**2).sum(1, keepdims=True)) for level in (x, y))
        made.append(((x - y) ** 2).sum(1))
    return made


def test_distances_follow_the_equation():
    images = torch.zeros(2, 3, 16, 16)
    made = method(levels(0), levels(1))
    for found, expected in zip(
        made.distances(images, made.directions(images)), slow_distances(levels(0), levels(1)), strict=True
    ):
        assert np.allclose(found.numpy(), expected, atol=1e-6)
        assert expected.max() <= 4


def test_maps_are_products_on_the_first_grid():
    result = method(levels(0), levels(1)).score(torch.zeros(2, 3, 16, 16))
    product = 1.0
    for distance in slow_distances(levels(0), levels(1)):
        product = product * F.interpolate(torch.tensor(distance)[:, None], (8, 8), mode="bilinear")
    expected = F.interpolate(product, (16, 16), mode="bilinear")[:, 0].numpy()
    assert np.allclose(result.map.numpy(), expected, atol=1e-5)
    assert np.allclose(result.image.numpy(), expected.max(axis=(1, 2)), atol=1e-5)


def test_parameters_of_the_student():
    setup = Setup("stfpm", "r18", ("backbone.weights=random",))
    made = setup.new()
    with torch.device("meta"):
        made.build(setup.network.shapes((256, 256)))
    assert sum(parameter.numel() for parameter in made.parameters()) == pytest.approx(2.78e6, rel=2e-3)


def fitted(*overrides, count=20, validation=None):
    setup = Setup("stfpm", "lite0", ("method.epochs=5", "method.batch=8", *overrides))
    made, calls = setup.new(), []
    network = made.backbone
    made.build = lambda shapes: setattr(made, "student", network.trainable_copy())
    made.backbone = lambda images: calls.append(len(images)) or network(images)
    normals = TrainingSet("waves", pictures(count))
    normals.validation = validation
    setup.fit(made, normals)
    return made, calls


@pytest.mark.slow
def test_the_loss_falls_and_the_teacher_sees_every_image_once():
    made, calls = fitted()
    assert sum(calls) == 20
    losses = made.facts["training"]["curve"]["loss"]
    assert losses[-1] < losses[0]
    assert 1 <= made.facts["best_epoch"] <= 5


def test_a_validation_set_chooses_the_epoch_and_all_training_images_are_trained_on():
    made, calls = fitted(validation=TrainingSet("waves", pictures(3)))
    assert sum(calls) == 20 + 3
    assert made.facts["training"]["samples"] == 5 * 20, "none of them is split off"
    assert 1 <= made.facts["best_epoch"] <= 5


def test_best_epoch_on_held_out_images_is_kept():
    """If held-out scores worsen after an early epoch, its weights are kept, not the last."""
    levels = []
    original = STFPM.mean_map

    def rising(self, held, known):
        levels.append((original(self, held, known), {k: v.clone() for k, v in self.state_dict().items()}))
        return float(len(levels) if len(levels) != 2 else 0.5)  # the second is the lowest

    STFPM.mean_map = rising
    try:
        made, _ = fitted()
    finally:
        STFPM.mean_map = original
    assert made.facts["best_epoch"] == 2
    assert all(torch.equal(value, levels[1][1][name]) for name, value in made.state_dict().items())
    assert not all(torch.equal(value, levels[-1][1][name]) for name, value in made.state_dict().items())


def test_student_has_the_teachers_architecture_but_its_own_weights():
    setup = Setup("stfpm", "r18", ("backbone.weights=random",))
    student = setup.network.trainable_copy().eval()
    with torch.no_grad():
        ours, theirs = student(new_images()), setup.network(new_images())
    assert [level.shape for level in ours] == [level.shape for level in theirs]
    assert not torch.allclose(ours[0], theirs[0])
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in student.modules()), "it learns with its normalisation"


@pytest.mark.parametrize("backbone", ["r18", "r50", "lite0"])
def test_the_students_norms_start_at_one_as_torchvisions(backbone):
    student = Setup("stfpm", backbone, ("backbone.weights=random",)).network.trainable_copy()
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)


def test_the_student_of_a_resnet_is_drawn_as_torchvisions():
    """Convolutions of equal shape have equal deviations, within 5 %."""
    student = Setup("stfpm", "r18", ("backbone.weights=random",)).network.trainable_copy().network
    theirs = dict(torchvision.models.resnet18(weights=None).named_parameters())
    ours = {name: value for name, value in student.named_parameters() if value.dim() == 4}
    assert len(ours) == 15
    for name, value in ours.items():
        assert float(value.std().detach() / theirs[name].std().detach()) == pytest.approx(1, rel=0.05), name


def test_copy_of_the_teacher_scores_zero():
    setup = Setup("stfpm", "r18", ("backbone.weights=random", "+backbone.options={zero_init_last: false}"))
    made = setup.new()
    made.build(())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the seed of random backbones
        made.student = setup.network.trainable_copy()
    assert made.eval().score(new_images()).map.max() < 1e-8


def test_one_training_image_is_too_few():
    with pytest.raises(ValueError, match="1 training image; expected at least 2, as some are held out"):
        fitted(count=1)


def test_transformers_have_no_pyramid():
    with pytest.raises(UsageError, match="it is a transformer"):
        _ = Setup("stfpm", "dinov2_s", ("backbone.weights=random", "input.resize=224")).network


@pytest.mark.parametrize("backbone", ["r18", "lite0"])
def test_checkpointing_trains_the_same_student_in_less_memory(backbone, monkeypatch):
    teacher = Setup("stfpm", backbone, ("backbone.weights=random",)).network

    def steps(student):
        optimiser, bytes_kept = torch.optim.SGD(student.parameters(), 0.1), []

        def keep(tensor):
            bytes_kept.append(tensor.nbytes)
            return tensor

        torch.manual_seed(0)
        for images in torch.rand(3, 4, 3, 64, 64):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = torch.stack([level.square().mean() for level in student(images)]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return student.state_dict(), sum(bytes_kept)

    anew = teacher.trainable_copy()
    monkeypatch.setattr(student_module, "blocks", lambda network: [])
    kept = teacher.trainable_copy()
    kept.load_state_dict(anew.state_dict())
    (ours, bytes_ours), (theirs, bytes_theirs) = steps(anew), steps(kept)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert bytes_ours < 0.5 * bytes_theirs
