from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.training import Loop, output_spread
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import FeatureArray, TrainingSet

X = torch.linspace(-1, 1, 10)[:, None]


class Stopped(Exception):
    pass


def normals(**keys):
    return TrainingSet("cog", np.zeros((10, 4, 4, 3), np.uint8), **keys)


def fit(epochs=5, stop_in=None, seed=3, make_nan_in=None, batch=4, dropout=0.5, steps=None, samples=None, **keys):
    """A small training run with dropout, killed in epoch `stop_in`; `steps`: of the budget."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))
    task = normals(**keys)
    task.steps = steps
    loop = Loop(module, torch.optim.Adam(module.parameters(), 0.05, fused=True), task, epochs)
    for epoch in loop:
        for chosen in epoch.batches(len(X), batch, samples):
            loss = (module(X[chosen]) - X[chosen] ** 2).square().mean()
            epoch.step(loss * (float("nan") if epoch.number == make_nan_in else 1))
            if epoch.number == stop_in:
                raise Stopped
    return module, loop


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_seed_determines_training():
    assert same(fit()[0], fit()[0])
    assert not same(fit()[0], fit(seed=4)[0])


@pytest.mark.parametrize("stop_in", [0, 1, 4])
def test_killed_training_resumes_bit_identically(tmp_path, stop_in):
    unbroken, loop = fit()
    with pytest.raises(Stopped):
        fit(stop_in=stop_in, checkpoint=tmp_path / "a" / "c")
    assert (tmp_path / "a" / "c").exists() == (stop_in > 0)
    module, resumed = fit(checkpoint=tmp_path / "a" / "c")
    assert same(module, unbroken)
    assert resumed.losses == loop.losses
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c"]


def test_finished_training_is_not_repeated(tmp_path):
    module, _ = fit(checkpoint=tmp_path / "c")
    again, loop = fit(checkpoint=tmp_path / "c", make_nan_in=0)
    assert same(module, again)
    assert len(loop.losses) == 5


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_damaged_or_foreign_checkpoint_is_ignored(tmp_path, content, caplog):
    if content is None:  # the right module, a different optimiser
        module, _ = fit(epochs=1)
        state = {"module": module.state_dict(), "optimisers": [{}], "losses": [1.0], "memo": {}}
        state |= {"steps": 1, "samples": 1, "share": 1.0, "curve": []}
        torch.save(state, tmp_path / "c")
    else:
        (tmp_path / "c").write_bytes(content)
    assert same(fit(checkpoint=tmp_path / "c")[0], fit()[0])
    assert "not a checkpoint of this training" in caplog.text


def test_non_finite_loss_reports_epoch_and_last_loss(tmp_path):
    with pytest.raises(ValueError, match=r"cog: the loss is nan in epoch 3 of 5, the last finite loss was \d"):
        fit(make_nan_in=2)
    with pytest.raises(ValueError, match=r"in epoch 1 of 5, the last finite loss was none"):
        fit(make_nan_in=0, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_batch_larger_than_the_training_set():
    assert len(fit(batch=100)[1].losses) == 5


def test_losses_fall_and_are_reported_as_facts():
    _, loop = fit(epochs=100, dropout=0.0, batch=10)
    told = loop.facts["training"]
    assert (told["epochs"], told["steps"], told["samples"]) == (100, 100, 1000)
    assert told["curve"]["steps"] == list(range(1, 101))
    assert told["curve"]["loss"] == pytest.approx(loop.losses, rel=1e-5)
    assert told["last_tenth"] == pytest.approx(sum(loop.losses[90:]) / sum(loop.losses[80:90]) - 1, abs=1e-4)
    assert told["last_tenth"] < 0
    assert loop.losses[-1] < loop.losses[0] / 3


def test_a_learning_curve_has_few_points_and_keeps_the_mean():
    _, loop = fit(epochs=80)
    curve = loop.facts["training"]["curve"]
    assert len(curve["steps"]) == len(curve["loss"]) == 200
    assert curve["steps"][-1] == loop.steps == 240
    whole = [loss for _, loss in loop.curve]
    assert curve["loss"][0] == pytest.approx(np.mean(whole[:2]), rel=1e-5)
    assert curve["loss"][-1] == pytest.approx(whole[-1], rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 5, 50])
def test_a_budget_ends_the_training_with_the_batch_that_reaches_its_steps(epochs):
    """3 batches of 4, 4 and 2 images are an epoch; `epochs` is passed over."""
    _, loop = fit(epochs=epochs, steps=7)
    told = loop.facts["training"]
    assert (told["steps"], told["samples"], told["epochs"]) == (7, 24, 2.3333)
    assert [steps for steps, _ in loop.curve] == list(range(1, 8))


def test_a_budget_of_all_steps_is_the_whole_training():
    whole, loop = fit(epochs=5)
    module, budgeted = fit(epochs=50, steps=15)
    assert same(module, whole)
    assert budgeted.facts == loop.facts


@pytest.mark.parametrize("stop_in", [1, 2])
def test_a_killed_training_on_a_budget_goes_on_as_if_unbroken(tmp_path, stop_in):
    unbroken, loop = fit(steps=7)
    with pytest.raises(Stopped):
        fit(steps=7, stop_in=stop_in, checkpoint=tmp_path / "c")
    for _ in range(2):  # the second finds it finished
        module, resumed = fit(steps=7, checkpoint=tmp_path / "c")
        assert same(module, unbroken)
        assert resumed.facts == loop.facts


@pytest.mark.parametrize(
    ("keys", "expected"), [({"steps": 6}, range(6)), ({"epochs": 2}, range(6)), ({"steps": 4}, range(4))]
)
def test_progress_counts_the_steps_of_the_budget_or_the_epochs(keys, expected):
    seen = []
    task = normals()
    task.steps = keys.get("steps")
    module = nn.Linear(1, 1)
    loop = Loop(module, torch.optim.SGD(module.parameters(), 0.1), task, keys.get("epochs", 9))
    for epoch in loop:
        for chosen in epoch.batches(len(X), 4):
            seen.append(epoch.progress)
            epoch.step(module(X[chosen]).square().mean())
    assert seen == pytest.approx([step / len(expected) for step in expected])


@pytest.mark.parametrize(
    ("steps", "expected"), [(4, [0, 1, 1, 1, 0, 1, 0]), (None, [0, 1, 1])], ids=["budget", "epochs"]
)
def test_the_bar_moves_with_each_step_of_a_budget(steps, expected):
    """An epoch may last for minutes."""
    seen = []

    @contextlib.contextmanager
    def stage(title, total):
        yield lambda done, note="": seen.append(done)

    fit(epochs=2, steps=steps, stage=stage)
    assert seen == expected


def test_the_bar_ends_with_the_budget_even_if_a_batch_has_several_steps():
    seen = []

    @contextlib.contextmanager
    def stage(title, total):
        yield lambda done, note="": seen.append(done)

    task, module = normals(stage=stage), nn.Linear(1, 1)
    task.steps = 2
    for epoch in Loop(module, torch.optim.SGD(module.parameters(), 0.1), task, 1):
        for chosen in epoch.batches(len(X), 4):
            for _ in range(3):
                epoch.step(module(X[chosen]).square().mean())
    assert sum(seen) == 2


def test_a_schedule_may_be_stated_in_steps():
    module = nn.Linear(1, 1)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    loop = Loop(module, optimiser, normals(), steps=4)
    for epoch in loop:
        for chosen in epoch.batches(len(X), 4):
            epoch.step(module(X[chosen]).square().mean())
    assert loop.facts["training"]["steps"] == 4
    with pytest.raises(UsageError, match=r"method.steps=0: expected"):
        Loop(module, optimiser, normals(), steps=0)
    with pytest.raises(ValueError, match="either epochs or steps"):
        Loop(module, optimiser, normals())


def test_several_passes_in_an_epoch_are_cut_at_its_samples():
    _, loop = fit(epochs=1, samples=26)
    assert (loop.steps, loop.samples) == (7, 26)


def test_the_budget_needs_steps_to_count():
    task = normals()
    task.steps = 3
    module = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"call epoch\.step"):
        list(Loop(module, torch.optim.SGD(module.parameters(), 0.1), task, 1))


def test_the_spread_of_outputs():
    images = torch.rand(6, 3, 8, 8)
    assert output_spread(images, images) == pytest.approx(1)
    assert output_spread(0.5 * images + 0.1, images) == pytest.approx(0.5)
    assert output_spread(images[:1].expand(6, -1, -1, -1), images) == 0, "the network ignores its input"


def test_zero_epochs_are_rejected():
    with pytest.raises(UsageError, match=r"method.epochs=0: expected"):
        fit(epochs=0)


class Adversaries(nn.Module):
    """A GAN on scalars: one network generates them from noise, the other discriminates them from values around 3."""

    def __init__(self):
        super().__init__()
        self.make, self.judge = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))


def fit_adversaries(stop_in=None, **keys):
    torch.manual_seed(0)
    module = Adversaries()
    makes, judges = (torch.optim.Adam(part.parameters(), 0.02) for part in (module.make, module.judge))
    loop = Loop(module, [makes, judges], normals(**keys), 200)
    for epoch in loop:
        true, made = 3 + torch.randn(64, 1), module.make(torch.randn(64, 1))
        apart = F.softplus(-module.judge(true)).mean() + F.softplus(module.judge(made.detach())).mean()
        epoch.step(apart, judges)
        epoch.step(F.softplus(-module.judge(made)).mean(), makes)
        if epoch.number == stop_in:
            raise Stopped
    return module, loop


def test_adversaries_have_one_optimiser_each(tmp_path):
    module, loop = fit_adversaries()
    assert float(module.make.bias.detach()) == pytest.approx(3, abs=1)
    with pytest.raises(Stopped):
        fit_adversaries(stop_in=100, checkpoint=tmp_path / "c")
    resumed, again = fit_adversaries(checkpoint=tmp_path / "c")
    assert same(resumed, module), "the checkpoint holds both optimisers"
    assert again.losses == loop.losses


def test_step_with_several_optimisers_must_name_one():
    module = nn.Linear(1, 1)
    several = [torch.optim.SGD([parameter], 0.1) for parameter in module.parameters()]
    epoch = next(iter(Loop(module, several, normals(), 1)))
    with pytest.raises(ValueError, match="name one of the loop's 2 optimisers"):
        epoch.step(module(X).mean())


def test_an_opponents_loss_stays_out_of_the_curve():
    weight = nn.Parameter(torch.ones(()))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    loop = Loop(nn.ParameterList([weight]), optimiser, normals(), 1)
    for epoch in loop:
        for _ in epoch.batches(2, 1):
            epoch.step(3 * weight)
            epoch.step(-100 * weight, curve=False)
    assert loop.losses == [3]
    assert loop.facts["training"]["curve"] == {"steps": [2, 4], "loss": [3, 3]}


def test_checkpoint_with_other_number_of_optimisers_is_ignored(tmp_path, caplog):
    with pytest.raises(Stopped):
        fit_adversaries(stop_in=2, checkpoint=tmp_path / "c")
    torch.manual_seed(0)
    module = Adversaries()
    optimiser = torch.optim.Adam(module.make.parameters(), 0.02)
    before = copy.deepcopy(module)
    Loop(module, optimiser, normals(checkpoint=tmp_path / "c"), 1).restore()
    assert "not a checkpoint of this training" in caplog.text
    assert same(module, before)
    assert optimiser.state_dict()["state"] == {}


def test_gradient_clipping_limits_steps():
    weight = nn.Parameter(torch.zeros(()))
    module = nn.ParameterList([weight])
    for epoch in Loop(module, torch.optim.SGD(module.parameters(), lr=1.0), normals(), 1, clip=0.5):
        epoch.step(100 * weight)
    assert float(weight.detach()) == pytest.approx(-0.5)


def test_every_epoch_has_each_image_once_in_a_new_order():
    orders = []
    module = nn.Linear(1, 1)
    for epoch in Loop(module, torch.optim.SGD(module.parameters(), lr=0.1), normals(), 2):
        parts = list(epoch.batches(7, 3))
        assert [len(part) for part in parts] == [3, 3, 1]
        orders.append(torch.cat(parts))
    assert all(order.sort().values.equal(torch.arange(7)) for order in orders)
    assert not orders[0].equal(orders[1])


def pixels(count=7):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("large", [False, True])
def test_stored_features_match_one_pass(large, monkeypatch):
    if large:
        monkeypatch.setattr(FeatureArray, "LARGE", 100)  # forces a file
    calls = []

    def backbone(images):
        calls.append(len(images))
        return [images[:, :2], images.mean(dim=1, keepdim=True)[..., ::2, ::2]]

    task = TrainingSet("cog", pixels())
    kept = task.feature_array(backbone, 3)
    assert calls == [3, 3, 1]
    assert kept.shapes == [(2, 8, 8), (1, 4, 4)]
    streamed = [torch.cat(parts) for parts in zip(*task.features(backbone, 7), strict=True)]
    chosen = torch.tensor([5, 0, 5])
    for part, whole, level in zip(kept[chosen], kept[:], streamed, strict=True):
        assert whole.equal(level)
        assert part.equal(level[chosen])


def test_stored_features_of_transformed_images():
    task = TrainingSet("cog", pixels())
    kept = task.feature_array(lambda images: [images], 4, transform=lambda images: images.flip(-1))
    assert kept[:][0].equal(torch.cat(list(task.images(4))).flip(-1))


def test_split_is_a_seeded_partition():
    task = TrainingSet("cog", pixels(10))
    rest, held = task.split(0.2, seed=1)
    assert (len(rest), len(held)) == (8, 2)
    together = {image.tobytes() for part in (rest, held) for image in part.pixels}
    assert together == {image.tobytes() for image in task.pixels}
    assert np.array_equal(task.split(0.2, seed=1)[1].pixels, held.pixels)
    assert not np.array_equal(task.split(0.2, seed=2)[1].pixels, held.pixels)
    assert [len(part) for part in TrainingSet("cog", pixels(2)).split(0.01, 0)] == [1, 1]
    with pytest.raises(ValueError, match="1 training image; expected at least 2"):
        TrainingSet("cog", pixels(1)).split(0.5, 0)


def test_the_best_epoch_is_kept_across_checkpoints(tmp_path):
    losses, states = [3.0, 1.0, 2.0], []

    def run(stop_after):
        torch.manual_seed(0)
        module = nn.Linear(1, 1)
        loop = Loop(module, torch.optim.SGD(module.parameters(), 0.1), normals(checkpoint=tmp_path / "c"), 3)
        for epoch in loop:
            for chosen in epoch.batches(len(X), 4):
                epoch.step((module(X[chosen]) - X[chosen] ** 2).square().mean())
            loop.keep_best(losses[epoch.number], module)
            states.append(copy.deepcopy(module.state_dict()))
            if epoch.number == stop_after:
                raise Stopped
        loop.load_best(module)
        return module, loop

    with pytest.raises(Stopped):
        run(stop_after=2)  # the third epoch is not in the checkpoint
    module, loop = run(stop_after=None)
    assert loop.facts["best_epoch"] == 2
    assert all(torch.equal(module.state_dict()[name], states[1][name]) for name in states[1])
    assert not torch.equal(states[1]["weight"], states[-1]["weight"])


def test_no_epoch_is_chosen_without_held_out_images():
    assert "best_epoch" not in fit()[1].facts


def test_images_that_the_dataset_holds_out_are_used_instead_of_a_split():
    task = TrainingSet("cog", pixels(10))
    assert [len(part) for part in task.hold_out(0.2, seed=1)] == [8, 2]
    task.validation = TrainingSet("cog", pixels(3))
    assert task.hold_out(0.2, seed=1) == (task, task.validation)
