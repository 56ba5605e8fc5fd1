"""Requirements on every method with `method.epochs`, beyond the contract."""

from __future__ import annotations

import contextlib

import pytest
import torch
from setups import METHODS, PRETRAINED, each, setup

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.setup import assert_equal

EPOCHS, BATCH = 3, 8
NODES = {method: packaged_node("method", method) for method in METHODS}
TRAINING = [method for method in METHODS if "epochs" in NODES[method]]
FROZEN = [method for method in TRAINING if NODES[method].get("uses_backbone", True)]
HOLDING_OUT = [method for method in TRAINING if "held_out" in NODES[method]]
TWO_NEEDED = ("cutpaste", "fyd", "geom")  # fit distributions to the training images
# more steps than 5 and those of a batch
SEVERAL = {
    "anogan": 7,
    "cavga_ru": 7,
    "cflow_ad": 40,
    "depth_gan": 7,
    "f_anogan": 7,
    "ganomaly": 7,
    "ocgan": 8,
    "pnet": 7,
    "scadn": 7,
    "voxel_gan": 7,
}


class Killed(Exception):
    pass


def stages(kill_after=None):
    """Stages of `TrainingSet` that raise after a number of epochs."""

    @contextlib.contextmanager
    def stage(title, total):
        done = 0

        def advance(count, note=""):
            nonlocal done
            done += count
            if "training" in title and kill_after is not None and done >= kill_after:
                raise Killed

        yield advance

    return stage


def make(method, **changed):
    """An unfitted method with few epochs."""
    made = setup(method, "lite0").new()
    made.epochs, made.batch = EPOCHS, BATCH
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def fit(method, made, normals):
    return setup(method, "lite0").fit(made, normals)


def normals(method, count=12, **keys):
    return TrainingSet("cog", setup(method, "lite0").pictures(count), **keys)


def new_images(method):
    return setup(method, "lite0").new_images()


@pytest.mark.parametrize("method", each(TRAINING))
def test_killed_fit_resumes_with_the_same_result(method, tmp_path):
    unbroken = fit(method, make(method), normals(method))
    checkpoint = tmp_path / "c.checkpoint"
    with pytest.raises(Killed):
        fit(method, make(method), normals(method, stage=stages(kill_after=2), checkpoint=checkpoint))
    assert len(torch.load(checkpoint, weights_only=True)["losses"]) == 2
    resumed = fit(method, make(method), normals(method, checkpoint=checkpoint))
    found, expected = resumed.score(new_images(method)), unbroken.score(new_images(method))
    assert_equal(found, expected, "what a fit draws must come from torch's generator, seeded anew in each epoch")
    assert resumed.facts == unbroken.facts
    assert resumed.facts["training"]["epochs"] == EPOCHS


@pytest.mark.parametrize("method", each(FROZEN))
def test_later_epochs_run_no_backbone_pass(method):
    def passes(epochs):
        made, calls = make(method, epochs=epochs), []
        backbone = made.backbone

        def counted(images):
            calls.append(len(images))
            return backbone(images)

        for name in ("trainable_copy", "trainable_stages", "mean", "std"):
            setattr(counted, name, getattr(backbone, name, None))
        made.backbone = counted
        fit(method, made, normals(method))
        return sum(calls)

    assert passes(1) == passes(EPOCHS)


@pytest.mark.parametrize("method", each(name for name in TRAINING if name not in (*HOLDING_OUT, *TWO_NEEDED)))
def test_one_training_image_is_enough(method):
    made = fit(method, make(method), normals(method, 1))
    assert made.score(new_images(method)).image.isfinite().all()


@pytest.mark.parametrize("method", [method for method in TRAINING if method not in PRETRAINED])  # untouched then
def test_zero_epochs_are_rejected(method):
    with pytest.raises(UsageError, match=r"method.epochs=0: expected"):
        fit(method, make(method, epochs=0), normals(method))


@pytest.mark.parametrize("method", each(TRAINING))
def test_a_budget_counts_steps_whatever_the_number_of_images(method):
    """The budget ends the training with the batch that reaches its steps; some methods take several per batch."""
    counted = []
    for count in (8, 12):
        task = normals(method, count)
        task.steps = 5
        made = fit(method, make(method, batch=4), task)
        counted.append(made.facts["training"]["steps"])
    assert counted == [5, 5] if method not in SEVERAL else all(5 <= steps < SEVERAL[method] for steps in counted)


def test_every_method_that_trains_has_a_published_schedule():
    has = {name for name in METHODS if "schedule" in setup(name, "lite0").config["method"]["about"]}
    assert has >= set(TRAINING)


def test_rates_that_change_follow_the_budget(monkeypatch):
    """DRAEM's drops after 80 and 90 % of the steps; CFLOW-AD's cosine ends where the budget does."""
    seen = []
    step = torch.optim.Adam.step

    def watched(self, *words, **keys):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *words, **keys)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    task = normals("draem")
    task.steps = 10
    fit("draem", make("draem", batch=4), task)
    assert seen == pytest.approx([1e-4] * 8 + [2e-5, 4e-6])
    seen.clear()
    task.steps = 200
    fit("cflow_ad", make("cflow_ad", batch=1), task)
    assert min(seen[-5:]) < 2e-4 / 20
