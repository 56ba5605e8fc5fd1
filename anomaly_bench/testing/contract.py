"""Contract tests for methods, backbones and datasets, including your own, on small images:

    pytest --pyargs anomaly_bench.testing.contract --method my_method --config-dir my_conf

`--backbone NAME` checks that backbone, and the method on it; `--dataset NAME --data-root DIR` checks a dataset. From
Python: `for check in CHECKS: check(Setup("my_method", folders=[Path("my_conf")]))`. Failures say what to change.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from anomaly_bench.errors import NotFittedError
from anomaly_bench.protocol import Scores, to_tensor
from anomaly_bench.testing import training_checks
from anomaly_bench.testing.setup import BATCH, TRAINING, Setup, assert_close, assert_equal, pick


def check_is_a_method(setup: Setup) -> None:
    method = setup.new()
    name = type(method).__name__
    assert isinstance(method, nn.Module), f"{name} is not a torch.nn.Module: derive it from that and nothing else"
    for needed in ("build(shapes)", "fit(normals)", "score(images)"):
        defined = callable(getattr(method, needed.partition("(")[0], None))
        assert defined, f"{name} has no {needed}: see anomaly_bench.protocol.Method for what it must do"


def check_shapes_and_values(setup: Setup) -> None:
    images = setup.new_images()
    result = setup.one.score(images)
    assert isinstance(result, Scores), f"score returned {type(result).__name__}: return Scores(image, map)"
    expected = {"image": (BATCH,), "map": (BATCH, setup.side, setup.side)}
    for name, part in result._asdict().items():
        if name == "map":
            told = bool(setup.config["method"].get("about", {}).get("maps", True))
            made = part is not None
            assert told == made, (
                f"about.maps is {told}, but score returned {'a map' if made else 'none'}: correct the YAML"
            )
            if part is None:
                continue
        found = tuple(part.shape)
        assert found == expected[name], f"{name} scores of shape {found}, expected {expected[name]}: one value per " + (
            "image" if name == "image" else "pixel; upsample the map to the images' size"
        )
        assert not part.requires_grad, f"{name} scores require grad: put @torch.no_grad() on score, or detach them"
        assert part.dtype == torch.float32, f"{name} scores are {part.dtype}: return float32, using .float()"
        assert part.isfinite().all(), f"{name} scores are not finite: look for a division by 0 or a log of 0"
        assert part.device == images.device, (
            f"{name} scores are on {part.device}, images on {images.device}: keep the tensors that score uses in "
            "buffers, and create new tensors on the images' device"
        )


def check_alone_as_in_a_batch(setup: Setup) -> None:
    images = setup.new_images()
    expected = setup.one.score(images)
    advice = (
        "an image scores differently {}: use no maximum, mean or normalisation over a batch in score, and leave "
        "BatchNorm in evaluation mode"
    )
    order = torch.tensor([2, 0, 3, 1], device=images.device)
    assert_close(setup.one.score(images[order]), pick(expected, order), advice.format("in another order"))
    for index in range(BATCH):
        chosen = torch.tensor([index], device=images.device)
        assert_close(setup.one.score(images[chosen]), pick(expected, chosen), advice.format("alone than in a batch"))


def check_same_seed_same_bits(setup: Setup) -> None:
    advice = (
        "two fits after the same torch.manual_seed differ: draw random numbers with torch, from its global generator "
        "or from one seeded in fit"
    )
    assert_equal(setup.fitted().score(setup.new_images()), setup.one.score(setup.new_images()), advice)


def check_second_fit_forgets(setup: Setup) -> None:
    unlike = setup.opposite(to_tensor(setup.pictures(TRAINING, 500)))
    others = setup.normals(unlike.permute(0, 2, 3, 1).numpy())
    others.steps = 1  # enough to leave traces
    method = setup.fit(setup.new(), others)
    advice = "a second fit depends on the first: create all networks and statistics in build, called before each fit"
    assert_close(setup.fit(method).score(setup.new_images()), setup.one.score(setup.new_images()), advice)


def check_inputs_untouched(setup: Setup) -> None:
    images = setup.new_images()
    copy = images.clone()
    setup.one.score(images)
    assert np.array_equal(setup.pixels, setup.pictures(TRAINING)), (
        "fit changed its images: work on a copy of normals.pixels"
    )
    assert torch.equal(images, copy), "score changed its images: avoid in-place operations on them (-=, clamp_)"


def check_planted_defect_outscores_its_twin(setup: Setup) -> None:
    clean, spot = setup.new_images(), slice(setup.side * 3 // 8, setup.side * 5 // 8)
    defective = setup.spoilt(clean, spot)
    before, after = setup.one.score(clean), setup.one.score(defective)
    advice = (
        "when a red square is added to an image, or a raised one to a scan: higher must mean more anomalous; is a sign "
        "wrong?"
    )
    assert (after.image > before.image).all(), f"the image score does not rise {advice}"
    if before.map is not None and after.map is not None:
        raised = (after.map - before.map)[:, spot, spot].mean(dim=(1, 2))
        assert (raised > 0).all(), f"the map does not rise {advice} Or are its rows and columns swapped?"


def check_score_before_fit(setup: Setup) -> None:
    outcome, method = "returned scores", setup.new()
    method.build(setup.shapes())
    try:
        method.to(setup.device).score(setup.new_images())
    except NotFittedError:
        return
    except Exception as error:  # any kind of failure
        outcome = f"raised {type(error).__name__} ({error})"
    raise AssertionError(f"score before fit {outcome}: call check_fitted(self) first in score")


def check_saved_and_loaded(setup: Setup) -> None:
    from safetensors.torch import load_file, save_file

    advice = (
        "its state dict cannot be saved as safetensors and loaded into a method after build(shapes): create all "
        "parameters and buffers in build, from the shapes alone (row counts known only to fit: see "
        "neighbours.take_row_counts)"
    )
    loaded = setup.new(**getattr(setup.one, "resolved", {}))
    with advised(advice), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file({name: value.contiguous() for name, value in setup.one.state_dict().items()}, file)
        loaded.build(setup.shapes())
        loaded.load_state_dict(load_file(file))
    advice = "it scores differently after saving and loading: keep what score needs in parameters or persistent buffers"
    with advised(advice):
        found = loaded.to(setup.device).eval().score(setup.new_images())
    assert_equal(found, setup.one.score(setup.new_images()), advice)


def check_counts_without_data(setup: Setup) -> None:
    """`build` on the meta device creates as many parameters as the fitted method has."""
    method = setup.new()
    with advised("build(shapes) fails on the meta device: only create networks and buffers in it, and read no values"):
        with torch.device("meta"):
            method.build(setup.shapes())
        found, expected = (sum(parameter.numel() for parameter in made.parameters()) for made in (method, setup.one))
    assert found == expected, f"{found} parameters after build(shapes), {expected} after fit: create all in build"


def check_keeps_float32(setup: Setup) -> None:
    wrong = {
        name: value.dtype
        for name, value in setup.one.state_dict().items()
        if value.is_floating_point() and value.dtype != torch.float32
    }
    assert not wrong, f"not stored as float32: {wrong}; convert what fit stores with .float()"


def check_all_weights_learn(setup: Setup) -> None:
    """For methods with parameters: training changes them all, and gradients reach every layer."""
    training_checks.assert_all_learn(setup.one, setup.training)


def check_loss_falls(setup: Setup) -> None:
    """For methods whose `facts` have a learning curve, as those of `Loop`."""
    training_checks.assert_loss_falls(setup.one)


def check_outputs_differ(setup: Setup) -> None:
    """For methods with parameters: their layers' outputs depend on the image."""
    images = setup.new_images()
    unlike = torch.cat([images[: BATCH // 2], setup.opposite(images[BATCH // 2 :])])
    training_checks.assert_outputs_differ(setup.one, setup.one.score, unlike)


@contextlib.contextmanager
def advised(advice: str) -> Iterator[None]:
    """Turn any exception in the block into an AssertionError that says what to do."""
    try:
        yield
    except Exception as error:  # any kind of failure
        raise AssertionError(f"{advice}; found {type(error).__name__}: {error}") from error


CHECKS: tuple[Callable[[Setup], None], ...] = (
    check_is_a_method,
    check_shapes_and_values,
    check_alone_as_in_a_batch,
    check_same_seed_same_bits,
    check_second_fit_forgets,
    check_inputs_untouched,
    check_planted_defect_outscores_its_twin,
    check_score_before_fit,
    check_saved_and_loaded,
    check_counts_without_data,
    check_keeps_float32,
    check_all_weights_learn,
    check_loss_falls,
    check_outputs_differ,
)


def check_maps(setup: Setup) -> None:
    maps, shapes = setup.network(setup.new_images()), setup.shapes()
    found = [tuple(level.shape[1:]) for level in maps]
    assert found == shapes, f"feature maps have shapes {found}, but shapes(size) returns {shapes}: they must agree"
    for level in maps:
        assert level.dtype == torch.float32, f"a level is {level.dtype}: return float32, using .float()"
        assert level.isfinite().all(), "a level is not finite: do mean, std and weights belong to this network?"
        assert not level.requires_grad, "a level requires grad: a backbone is frozen, run it under torch.no_grad()"


def check_strides(setup: Setup) -> None:
    """Level n has stride 2^(n+1); borders may cost one position."""
    modules = setup.config["backbone"].get("modules")
    if not isinstance(modules, dict):
        return  # a transformer's blocks all have the same stride
    for name, shape in zip(modules, setup.network.shapes((224, 224)), strict=True):
        if name.isdigit():
            side = 224 // 2 ** (int(name) + 1)
            assert all(side - 1 <= found <= side for found in shape[1:]), (
                f"level {name} of a 224 x 224 image has {shape[1]} x {shape[2]} positions, expected {side} x {side}: "
                f"level n has stride 2^(n+1); name another module in backbone.modules"
            )


def check_each_image_by_itself(setup: Setup) -> None:
    images = setup.new_images()
    copy = images.clone()
    first, second = setup.network(images), setup.network(images)
    assert torch.equal(images, copy), "the backbone changed its images: avoid in-place operations on them"
    for level, same, single in zip(first, second, setup.network(images[:1]), strict=True):
        assert torch.equal(level, same), "features of the same images differ: is the network in evaluation mode?"
        error = (level[:1] - single).abs().max()
        assert error <= 1e-4 * level.abs().max(), (
            f"an image's features depend on its batch, by up to {error:.1e}: is the network in evaluation mode?"
        )


BACKBONE_CHECKS: tuple[Callable[[Setup], None], ...] = (check_maps, check_strides, check_each_image_by_itself)


def test_contract(check: Callable[[], None]) -> None:
    """Run by pytest once per requested check; see anomaly_bench.testing.pytest_plugin."""
    check()
