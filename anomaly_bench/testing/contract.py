"""What every method, backbone and dataset must do, checked on small images; your own ones too:

    pytest --pyargs anomaly_bench.contract --method my_method --config-dir my_conf

`--backbone NAME` checks that backbone, and the method on it; `--dataset NAME --data-root DIR` a dataset. From Python:
`for check in CHECKS: check(Setup("my_method", folders=[Path("my_conf")]))`. A check that fails says what to change.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly_bench.backbones.build import find_weights, make_backbone
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import construct
from anomaly_bench.data.check import examine
from anomaly_bench.data.remembered import content_hash
from anomaly_bench.errors import NotFittedError, shorten
from anomaly_bench.hardware.torch_setup import compute_exactly
from anomaly_bench.protocol import Scores, TrainingSet, to_tensor

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset

TRAINING, BATCH = 24, 4  # images
EPOCHS = 4  # of a method that trains
READS_ALL = "mahalanobis_ad"  # the method of a setup whose backbone is checked at all of its levels


@dataclass(frozen=True)
class Setup:
    """A method on a backbone.

    Attributes:
        method, backbone: their names; a method that has `epochs` trains 4, unless an override says another number.
        overrides: further keys, as on the command line.
        folders: of one's own YAML.
        device: where all of it runs.
        side: pixels of the images, for a backbone that does not take 64.
    """

    method: str
    backbone: str = "lite0"
    overrides: tuple[str, ...] = ()
    folders: Sequence[Path] = ()
    device: str = "cpu"
    side: int = 64

    @functools.cached_property
    def config(self) -> Any:
        words = [f"method={self.method}", f"backbone={self.backbone}", *self.overrides]
        config = compose("config", words, self.folders)
        if "epochs" in config["method"] and not any(word.startswith("method.epochs=") for word in self.overrides):
            config["method"]["epochs"] = EPOCHS
        return config

    @functools.cached_property
    def network(self) -> Any:
        if not self.config["method"].get("uses_backbone", True):
            return None
        compute_exactly()
        made = make_backbone(self.config, find_weights(self.config), self.config["precision"])
        return made if torch.get_default_device().type == "meta" else made.to(self.device)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) of what `build` is told of the contract's images."""
        size = (self.side, self.side)
        return [(3, *size)] if self.network is None else list(self.network.shapes(size))

    def new(self) -> Any:
        """A fresh method."""
        network = {} if self.network is None else {"backbone": self.network}
        return construct(self.config["method"], "method", **network).to(self.device)

    def fitted(self, normals: TrainingSet | None = None) -> Any:
        torch.manual_seed(0)
        method = self.new()
        method.fit(normals or self.normals())
        return method.eval()

    @functools.cached_property
    def one(self) -> Any:
        """One fitted method that several checks look at."""
        return self.fitted()

    def normals(self, pixels: NDArray[np.uint8] | None = None) -> TrainingSet:
        """TRAINING images to fit on."""
        return TrainingSet("contract", pictures(TRAINING, side=self.side) if pixels is None else pixels, self.device)

    def unseen(self) -> Tensor:
        return unseen(self.side).to(self.device)


def pictures(count: int, first: int = 0, side: int = 64) -> NDArray[np.uint8]:
    """(count, side, side, 3): a soft grating with noise, another for each number."""
    rows, columns = np.mgrid[:side, :side]
    made = []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin((columns + rows / 3) / 4 + random.uniform(-0.2, 0.2)) * 40 + 128
        made.append(wave[..., None] + random.normal(0, 6, (side, side, 3)))
    return np.stack(made).clip(0, 255).astype(np.uint8)


def unseen(side: int = 64) -> Tensor:
    """(BATCH, 3, side, side) that no method was fitted on."""
    return to_tensor(pictures(BATCH, 1000, side))


@torch.no_grad()
def score(method: Any, images: Tensor) -> Scores:
    result: Scores = method.score(images)
    return result


def check_is_a_method(setup: Setup) -> None:
    method = setup.new()
    name = type(method).__name__
    assert isinstance(method, nn.Module), f"{name} is no torch.nn.Module: derive it from that, and from nothing else"
    for needed in ("build(shapes)", "fit(normals)", "score(images)"):
        there = callable(getattr(method, needed.partition("(")[0], None))
        assert there, f"{name} has no {needed}: see anomaly_bench.protocol.Method for what it must do"


def check_shapes_and_values(setup: Setup) -> None:
    images = setup.unseen()
    result = score(setup.one, images)
    assert isinstance(result, Scores), f"score returned {type(result).__name__}: return Scores(image, map)"
    expected = {"image": (BATCH,), "map": (BATCH, setup.side, setup.side)}
    for name, part in result._asdict().items():
        if name == "map" and part is None:
            continue
        found = tuple(part.shape)
        assert found == expected[name], f"{name} scores of shape {found}, expected {expected[name]}: one value per " + (
            "image" if name == "image" else "pixel; upsample the map to the images' size"
        )
        assert part.dtype == torch.float32, f"{name} scores are {part.dtype}: return them as float32, by .float()"
        assert part.isfinite().all(), f"{name} scores are not finite: look for a division by 0, or for log of 0"
        assert part.device == images.device, (
            f"{name} scores on {part.device} of images on {images.device}: keep what score uses in buffers, "
            "and make new tensors on the images' device"
        )


def check_alone_as_in_a_batch(setup: Setup) -> None:
    images = setup.unseen()
    together = score(setup.one, images)
    advice = (
        "an image scores otherwise {}: take no maximum, mean or normalisation over a batch in score, and leave "
        "BatchNorm in evaluation mode"
    )
    order = torch.tensor([2, 0, 3, 1], device=images.device)
    assert_close(score(setup.one, images[order]), pick(together, order), advice.format("in another order"))
    for index in range(BATCH):
        chosen = torch.tensor([index], device=images.device)
        assert_close(score(setup.one, images[chosen]), pick(together, chosen), advice.format("alone than in a batch"))


def check_same_seed_same_bits(setup: Setup) -> None:
    advice = (
        "two fits after the same torch.manual_seed differ: draw random numbers with torch, from its global generator "
        "or one that is seeded in fit"
    )
    assert_equal(score(setup.fitted(), setup.unseen()), score(setup.one, setup.unseen()), advice)


def check_second_fit_forgets(setup: Setup) -> None:
    torch.manual_seed(0)
    method = setup.new()
    method.fit(setup.normals(255 - pictures(TRAINING, 500, setup.side)))
    torch.manual_seed(0)
    method.fit(setup.normals())
    advice = "a second fit remembers the first: let fit call build, which makes networks and statistics anew"
    assert_close(score(method.eval(), setup.unseen()), score(setup.one, setup.unseen()), advice)


def check_inputs_untouched(setup: Setup) -> None:
    pixels, images = pictures(TRAINING, side=setup.side), setup.unseen()
    before = pixels.copy(), images.clone()
    method = setup.fitted(setup.normals(pixels))
    assert np.array_equal(pixels, before[0]), "fit changed its images: work on a copy of normals.pixels"
    score(method, images)
    assert torch.equal(images, before[1]), "score changed its images: use no operation in place on them (-=, clamp_)"


def check_planted_defect_outscores_its_twin(setup: Setup) -> None:
    clean = setup.unseen()
    defective, spot = clean.clone(), slice(setup.side * 3 // 8, setup.side * 5 // 8)
    defective[:, :, spot, spot] = torch.tensor([1.0, 0.0, 0.0], device=clean.device).view(3, 1, 1)
    before, after = score(setup.one, clean), score(setup.one, defective)
    advice = "where a red square is planted in an image: higher must mean more anomalous; is a sign wrong?"
    assert (after.image > before.image).all(), f"the image score does not rise {advice}"
    if before.map is not None and after.map is not None:
        raised = (after.map - before.map)[:, spot, spot].mean(dim=(1, 2))
        assert (raised > 0).all(), f"the map does not rise {advice} Or are its rows and columns exchanged?"


def check_score_before_fit(setup: Setup) -> None:
    found = "returned scores"
    try:
        score(setup.new(), setup.unseen())
    except NotFittedError:
        return
    except Exception as error:  # whatever a method stumbles over
        found = f"raised {type(error).__name__} ({error})"
    raise AssertionError(f"score before fit {found}: raise anomaly_bench.errors.NotFittedError(NAME) there")


def check_saved_and_loaded(setup: Setup) -> None:
    from safetensors.torch import load_file, save_file

    advice = (
        "its state dict cannot be saved as safetensors and loaded into a method that build(shapes) has made: make each "
        "parameter and buffer in build, from the shapes alone (rows that fit counts: see neighbours.take_row_counts)"
    )
    loaded = setup.new()
    with advised(advice), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file({name: value.contiguous() for name, value in setup.one.state_dict().items()}, file)
        loaded.build(setup.shapes)
        loaded.load_state_dict(load_file(file))
    advice = "saved and loaded it scores otherwise: keep all that score needs in parameters and persistent buffers"
    with advised(advice):
        found = score(loaded.to(setup.device).eval(), setup.unseen())
    assert_equal(found, score(setup.one, setup.unseen()), advice)


def check_counts_without_data(setup: Setup) -> None:
    """`build` on the meta device has the parameters of the fitted method."""
    method = setup.new()
    with advised("build(shapes) cannot run on the meta device: let it make networks and buffers, and read no values"):
        with torch.device("meta"):
            method.build(setup.shapes)
        found, expected = (sum(parameter.numel() for parameter in made.parameters()) for made in (method, setup.one))
    assert found == expected, f"build(shapes) makes {found} parameters, fit {expected}: make all of them in build"


def check_keeps_float32(setup: Setup) -> None:
    wrong = {
        name: value.dtype
        for name, value in setup.one.state_dict().items()
        if value.is_floating_point() and value.dtype != torch.float32
    }
    assert not wrong, f"kept in another precision than float32: {wrong}; convert what fit keeps by .float()"


@contextlib.contextmanager
def advised(advice: str) -> Iterator[None]:
    """Whatever is raised in the block becomes an AssertionError that says what to do."""
    try:
        yield
    except Exception as error:  # whatever a method stumbles over
        raise AssertionError(f"{advice}; found {type(error).__name__}: {error}") from error


def pick(scores: Scores, order: Tensor) -> Scores:
    return Scores(scores.image[order], None if scores.map is None else scores.map[order])


def assert_equal(found: Scores, expected: Scores, advice: str) -> None:
    """The same bits."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)), advice


def assert_close(found: Scores, expected: Scores, advice: str) -> None:
    """Within 1e-4 of the expected map's range (of the image scores' size where there is no map)."""
    span = expected.image.abs().max() if expected.map is None else expected.map.max() - expected.map.min()
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            off = (a - b).abs().max()
            assert off <= 1e-4 * span, f"{advice}; off by {float(off / span):.1e} of the scores' range"


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
)


def check_maps(setup: Setup) -> None:
    maps, shapes = setup.network(setup.unseen()), setup.shapes
    found = [tuple(each.shape[1:]) for each in maps]
    assert found == shapes, f"maps of shapes {found}, but shapes(size) says {shapes}: they must agree"
    for each in maps:
        assert each.dtype == torch.float32, f"a level is {each.dtype}: return float32, by .float()"
        assert each.isfinite().all(), "a level is not finite: are mean, std and the weights the network's own?"
        assert not each.requires_grad, "a level requires a gradient: a backbone is frozen, run it under torch.no_grad()"


def check_strides(setup: Setup) -> None:
    """Level n has stride 2^(n+1), up to one position that a border may cost."""
    modules = setup.config["backbone"].get("modules")
    if not isinstance(modules, dict):
        return  # a transformer's blocks have one stride
    for name, shape in zip(modules, setup.network.shapes((224, 224)), strict=True):
        if name.isdigit():
            side = 224 // 2 ** (int(name) + 1)
            assert all(side - 1 <= found <= side for found in shape[1:]), (
                f"level {name} of a 224 x 224 image has {shape[1]} x {shape[2]} positions, expected {side} x {side}: "
                f"level n has stride 2^(n+1); name another module in backbone.modules"
            )


def check_each_image_by_itself(setup: Setup) -> None:
    images = setup.unseen()
    before = images.clone()
    together, again = setup.network(images), setup.network(images)
    assert torch.equal(images, before), "the backbone changed its images: use no operation in place on them"
    for level, same, alone in zip(together, again, setup.network(images[:1]), strict=True):
        assert torch.equal(level, same), "the same images give other features: is the network in evaluation mode?"
        off = (level[:1] - alone).abs().max()
        assert off <= 1e-4 * level.abs().max(), (
            f"an image's features change with the others in its batch, by {off:.1e}: is it in evaluation mode?"
        )


BACKBONE_CHECKS: tuple[Callable[[Setup], None], ...] = (check_maps, check_strides, check_each_image_by_itself)


def check_names(dataset: Dataset) -> None:
    for name in ("name", "title", "root", "categories", "available", "task", "digests"):
        assert hasattr(dataset, name), f"the dataset has no {name}: see anomaly_bench.data.dataset.Dataset"
    names = list(dataset.categories)
    same = [name for name in names if [each.casefold() for each in names].count(name.casefold()) > 1]
    assert not same, f"categories {shorten(same)} differ in case only: Windows and macOS take them for one; rename them"
    assert dataset.available, f"no category has a folder in {dataset.root}: check data_root"


def check_tasks(dataset: Dataset) -> None:
    for name in dataset.available:
        task = dataset.task(name)
        assert task == dataset.task(name), f"{name}: listed twice, the images differ: sort them by name"
        for part in (task.fit, task.validation, *task.tests.values()):  # test sets may share their normal images
            assert len({image.id for image in part}) == len(part), f"{name}: an image is listed twice: list each once"
        files = [image.id for image in task.samples]
        foreign = [file for file in files if "\\" in file or file.startswith(("/", ".."))]
        assert not foreign, f"{name}: {shorten(foreign)}: make `id` relative to the dataset, by as_posix()"
        defects = [image.id for image in (*task.fit, *task.validation) if image.label is not None]
        assert not defects, f"{name}: {shorten(defects)} in `fit` have a defect: fit on normal images only"
        assert all([task.tests, *task.tests.values()]), f"{name}: a test set is empty: `tests` is {{name: images}}"
        wrong = [image.id for image in task.samples if len(image.sources) != len(task.planes)]
        assert not wrong, f"{name}: {shorten(wrong)}: give each image one source for each plane of the task"
        digests = dataset.digests(task)
        lacking = [str(file) for file in task.files if file not in digests]
        assert not lacking, f"{name}: no digest of {shorten(lacking)}: digests(task) has each of task.files"
        _, problems = examine(dataset, name, {})
        assert not problems, "; ".join(problems)


def check_no_image_is_fitted_and_tested(dataset: Dataset) -> None:
    for name in dataset.available:
        task = dataset.task(name)
        digests = dataset.digests(task)
        fitted = {content_hash(image.sources, digests) for image in task.fit}
        tested = (image for test in task.tests.values() for image in test)
        leaked = [image.id for image in tested if content_hash(image.sources, digests) in fitted]
        assert not leaked, f"{name}: {shorten(leaked)} of the test set are training images too: leave them out of one"


DATASET_CHECKS: tuple[Callable[[Dataset], None], ...] = (
    check_names,
    check_tasks,
    check_no_image_is_fitted_and_tested,
)


def test_contract(check: Callable[[], None]) -> None:
    """What pytest runs: each check that its options ask for; see anomaly_bench.pytest_plugin."""
    check()
