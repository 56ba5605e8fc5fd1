"""What every method with `method.epochs` must do, besides the contract."""

from __future__ import annotations

import contextlib

import pytest
import torch
from test_contract import METHODS, setup

from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.contract import assert_equal, pictures, score, unseen

EPOCHS, BATCH = 3, 8
TRAINING = [method for method in METHODS if "epochs" in setup(method, "lite0").config["method"]]
FROZEN = [method for method in TRAINING if setup(method, "lite0").config["method"].get("uses_backbone", True)]


class Killed(Exception):
    pass


def stages(kill_after=None):
    """Stages of `TrainingSet` that raise once so many epochs are done."""

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
    """An unfitted method that trains a little."""
    each = setup(method, "lite0")
    torch.manual_seed(0)
    made = each.new()
    made.epochs, made.batch = EPOCHS, BATCH
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def normals(**keys):
    return TrainingSet("cog", pictures(12), **keys)


@pytest.mark.parametrize("method", TRAINING)
def test_a_killed_fit_goes_on_from_its_last_epoch_with_the_same_result(method, tmp_path):
    unbroken = make(method)
    unbroken.fit(normals())
    checkpoint = tmp_path / "c.checkpoint"
    with pytest.raises(Killed):
        make(method).fit(normals(stage=stages(kill_after=2), checkpoint=checkpoint))
    assert len(torch.load(checkpoint, weights_only=True)["losses"]) == 2
    resumed = make(method)
    resumed.fit(normals(checkpoint=checkpoint))
    found, expected = score(resumed.eval(), unseen()), score(unbroken.eval(), unseen())
    assert_equal(found, expected, "what a fit draws must come from torch's generator, seeded anew in each epoch")
    assert resumed.facts == unbroken.facts
    assert len(resumed.facts["losses"]) == EPOCHS


@pytest.mark.parametrize("method", FROZEN)
def test_epochs_after_the_first_pass_no_backbone(method):
    def passes(epochs):
        made, calls = make(method, epochs=epochs), []
        backbone = made.backbone

        def counted(images):
            calls.append(len(images))
            return backbone(images)

        counted.trainable_copy = getattr(backbone, "trainable_copy", None)
        made.backbone = counted
        made.fit(normals())
        return sum(calls)

    assert passes(1) == passes(EPOCHS)


@pytest.mark.parametrize("method", [method for method in TRAINING if method != "stfpm"])  # which holds some out
def test_one_training_image_is_enough(method):
    made = make(method)
    made.fit(TrainingSet("cog", pictures(1)))
    assert score(made.eval(), unseen()).image.isfinite().all()


@pytest.mark.parametrize("method", TRAINING)
def test_no_epochs_are_refused(method):
    with pytest.raises(UsageError, match=r"method.epochs=0: expected"):
        make(method, epochs=0).fit(normals())
