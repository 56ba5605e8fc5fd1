"""Every method in conf/method passes the contract on every kind of backbone that needs no download; breaking the
contract gives an error with advice."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from setups import FAMILIES, METHODS, SLOW_LEARNERS, setup

from anomaly_bench.components.validation import check_fitted
from anomaly_bench.config.instantiate import construct
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.data.folder import folder
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores
from anomaly_bench.testing.contract import (
    BACKBONE_CHECKS,
    CHECKS,
    check_all_weights_learn,
    check_counts_without_data,
    check_each_image_by_itself,
    check_inputs_untouched,
    check_is_a_method,
    check_outputs_differ,
    check_planted_defect_outscores_its_twin,
    check_saved_and_loaded,
    check_second_fit_forgets,
    check_shapes_and_values,
    check_strides,
)
from anomaly_bench.testing.dataset_checks import (
    DATASET_CHECKS,
    check_names,
    check_no_image_is_fitted_and_tested,
    check_tasks,
)
from anomaly_bench.testing.setup import READS_ALL, Setup

BACKBONES = ("lite0", "r18")
NEED_WEIGHTS = ("fcdd", "pefm")


def cases():
    """Everything; slow beyond one method of each family: the second backbone, and the check with the most fits."""
    for method, backbone, check in itertools.product(METHODS, BACKBONES, CHECKS):
        quick = method in FAMILIES or (backbone == BACKBONES[0] and check is not check_second_fit_forgets)
        name = f"{method}-{backbone}-{check.__name__}"
        yield pytest.param(method, backbone, check, id=name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("method", "backbone", "check"), list(cases()))
def test_contract(method, backbone, check):
    if check is check_planted_defect_outscores_its_twin:
        if method in SLOW_LEARNERS:
            pytest.skip(f"{method} detects a defect only after hundreds of steps")
        if method in NEED_WEIGHTS and backbone == "r18":
            pytest.skip("networks with random weights detect no defect")
    made = setup(method, backbone)
    if backbone != BACKBONES[0] and not made.config["method"].get("uses_backbone", True):
        pytest.skip(f"{method} uses no backbone")
    check(made)


@pytest.mark.parametrize("method", METHODS)
def test_one_name_everywhere(method):
    """method=padim is conf/method/padim.yaml is anomaly_bench/methods/padim.py is the name in the record."""
    config = setup(method, "lite0").config["method"]
    assert config["name"] == method
    assert config["_target_"].startswith(f"anomaly_bench.methods.{method}.")
    assert {"title", "revision", "input"} <= config["about"].keys()


@pytest.mark.parametrize("group", ["dataset", "backbone", "table"])
def test_file_names_match_their_contents(group):
    from omegaconf import OmegaConf

    for name in choices(group, [conf_folder()]):
        if name != "folder":  # named after the user's folder
            assert OmegaConf.load(conf_folder() / group / f"{name}.yaml").name == name


def test_every_module_of_a_method_has_a_configuration():
    from pathlib import Path

    import anomaly_bench.methods as package

    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {"__init__"}
    assert modules == set(METHODS)


class Pool:
    """A backbone without weights: mean colours of 4 x 4 pixel patches."""

    def __call__(self, images):
        return [torch.nn.functional.avg_pool2d(images, 4)]

    def shapes(self, size):
        return [(3, size[0] // 4, size[1] // 4)]


class Mean(torch.nn.Module):
    """A method that fulfils the contract: the distance to the mean colour at each position."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def build(self, shapes):
        self.register_buffer("mean", torch.empty(shapes[0]))

    def fit(self, normals):
        levels = torch.cat([levels[0] for levels in normals.features(self.backbone, batch=8)])
        self.keep(levels)

    def keep(self, levels):
        self.mean.copy_(levels.mean(dim=0))

    def score(self, images):
        check_fitted(self)
        maps = (self.backbone(images)[0] - self.mean).norm(dim=1)
        return self.scores(torch.nn.functional.interpolate(maps[:, None], size=images.shape[2:])[:, 0])

    def scores(self, maps):
        return Scores(maps.amax(dim=(1, 2)), maps)


class OfMethod(Setup):
    """A setup for a method without YAML; `method` is its class."""

    config: ClassVar[dict[str, Any]] = {"method": {}}
    network = Pool()

    def new(self):
        return self.method(self.network)


def changed(**functions):
    """A Mean with some functions replaced; each takes the module and the arguments of the original."""
    return type("Changed", (Mean,), functions)


class Repairing(torch.nn.Module):
    """Fulfils the contract with a network: the error of colours passed through a single channel."""

    maximise = False

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def build(self, shapes):
        self.encode, self.decode = torch.nn.Linear(3, 1), torch.nn.Linear(1, 3)

    def fit(self, normals):
        pixels = torch.cat([self.read(images) for images in normals.images(8)])
        optimiser = torch.optim.Adam(self.parameters(), 0.01, maximize=self.maximise)
        losses = []
        for _ in range(30):
            loss = self.errors(pixels).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        self.facts = {"training": {"curve": {"loss": losses}}}

    def read(self, images):
        return self.backbone(images)[0].permute(0, 2, 3, 1)

    def repair(self, pixels):
        return self.decode(self.encode(pixels))

    def errors(self, pixels):
        return (self.repair(pixels) - pixels).square().sum(dim=-1)

    @torch.no_grad()
    def score(self, images):
        check_fitted(self)
        maps = self.errors(self.read(images)).repeat_interleave(4, 1).repeat_interleave(4, 2)
        return Scores(maps.amax(dim=(1, 2)), maps)


def network(**changes):
    """A Repairing with some functions or settings replaced."""
    return type("Changed", (Repairing,), changes)


def vanishing(code):
    """The same, with a 1e-9th of its gradient."""
    return code.detach() + 1e-9 * (code - code.detach())


def with_a_spare_layer(self, shapes):
    Repairing.build(self, shapes)
    self.spare = torch.nn.Linear(2, 2)


def remembering(self, shapes):
    if not hasattr(self, "mean"):
        Mean.build(self, shapes)
        self.mean.zero_()


BROKEN = {  # check: (method, error message)
    "check_is_a_method": (lambda network: object(), "object is not a torch.nn.Module: derive it"),
    "check_shapes_and_values": (
        changed(scores=lambda self, maps: Scores(maps.amax(dim=(1, 2)), maps[:, ::4, ::4])),
        r"map scores of shape \(4, 16, 16\), expected \(4, 64, 64\): one value per pixel",
    ),
    "check_alone_as_in_a_batch": (
        changed(scores=lambda self, maps: Mean.scores(self, maps / maps.amax())),
        "differently in another order|differently alone than in a batch: use no maximum",
    ),
    "check_same_seed_same_bits": (
        changed(keep=lambda self, levels: self.mean.fill_(np.random.default_rng().random())),
        "draw random numbers with torch",
    ),
    "check_second_fit_forgets": (
        changed(build=remembering, keep=lambda self, levels: self.mean.add_(levels.mean(dim=0))),
        "a second fit depends on the first: create all networks and statistics in build.*off by",
    ),
    "check_inputs_untouched": (
        changed(score=lambda self, images: Mean.score(self, images.mul_(0.5))),
        "score changed its images: avoid in-place operations",
    ),
    "check_planted_defect_outscores_its_twin": (
        changed(scores=lambda self, maps: Mean.scores(self, -maps)),
        "the image score does not rise when a red square is added.* is a sign wrong",
    ),
    "check_score_before_fit": (
        changed(score=lambda self, images: Mean.score(self.eval(), images)),
        r"score before fit returned scores: call check_fitted\(self\) first",
    ),
    "check_saved_and_loaded": (
        changed(build=lambda self, shapes: setattr(self, "mean", torch.empty(shapes[0]).fill_(0))),
        "it scores differently after saving and loading: keep what score needs in parameters or persistent buffers",
    ),
    "check_counts_without_data": (
        changed(build=lambda self, shapes: Mean.build(self, shapes) or print(float(self.mean.sum()))),
        "fails on the meta device: only create networks and buffers",
    ),
    "check_keeps_float32": (
        changed(build=lambda self, shapes: self.register_buffer("mean", torch.empty(shapes[0]).double())),
        r"not stored as float32: \{'mean': torch.float64\}; convert",
    ),
    "check_all_weights_learn": (
        network(build=with_a_spare_layer),
        "not changed by training: spare.weight, spare.bias: pass all parameters to the optimiser",
    ),
    "check_loss_falls": (network(maximise=True), "is not below that of the untrained network, .*: is its sign wrong"),
    "check_outputs_differ": (
        network(repair=lambda self, pixels: self.decode(torch.relu(self.encode(pixels) - 10))),
        "unlike images have the same outputs in decode: the network ignores its input; initialise",
    ),
}


def test_every_check_can_fail_with_advice():
    assert [check.__name__ for check in CHECKS] == list(BROKEN)
    for check in CHECKS:
        check(OfMethod(Mean))
        check(OfMethod(Repairing))
        method, message = BROKEN[check.__name__]
        with pytest.raises(AssertionError, match=message):
            check(OfMethod(method))


class Sensitive(Mean):
    """A score based on gradients: the sensitivity of the distance to each pixel."""

    def score(self, images):
        check_fitted(self)
        seen = images.clone().requires_grad_()
        distance = (self.backbone(seen)[0] - self.mean).square().sum()
        (slope,) = torch.autograd.grad(distance, seen)
        return self.scores(slope.norm(dim=1))


def test_score_may_use_gradients():
    for check in CHECKS:
        check(OfMethod(Sensitive))


def test_old_import_name_gives_a_hint(tmp_path, monkeypatch):
    (tmp_path / "written_before.py").write_text("from anomaly_bench.protocol import Normals, Scores\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="Normals was renamed TrainingSet: change the import"):
        construct({"_target_": "written_before.Old", "name": "old"}, "method")


class Empty(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()


MORE = [
    (check_is_a_method, Empty, r"Empty has no build\(shapes\): see anomaly_bench.protocol.Method"),
    (
        check_shapes_and_values,
        changed(scores=lambda self, maps: (maps.amax(dim=(1, 2)), maps)),
        r"returned tuple: return Scores\(image, map\)",
    ),
    (
        check_shapes_and_values,
        changed(scores=lambda self, maps: Mean.scores(self, maps.double())),
        r"image scores are torch\.float64: return float32",
    ),
    (
        check_shapes_and_values,
        changed(scores=lambda self, maps: Mean.scores(self, maps.log().log())),
        "image scores are not finite: look for a division by 0",
    ),
    (
        check_shapes_and_values,
        changed(scores=lambda self, maps: Mean.scores(self, maps * torch.ones((), requires_grad=True))),
        r"image scores require grad: put @torch\.no_grad\(\) on score, or detach",
    ),
    (
        check_inputs_untouched,
        changed(fit=lambda self, normals: (Mean.fit(self, normals), normals.pixels.fill(0))),
        "fit changed its images: work on a copy of normals.pixels",
    ),
    (
        check_counts_without_data,
        changed(keep=lambda self, levels: setattr(self, "extra", torch.nn.Linear(2, 2))),
        r"0 parameters after build\(shapes\), 6 after fit: create all in build",
    ),
    (
        check_saved_and_loaded,
        changed(keep=lambda self, levels: setattr(self, "mean", levels.mean(dim=0, keepdim=True))),
        r"row counts known only to fit: see neighbours.*size mismatch",
    ),
    (
        check_all_weights_learn,
        network(repair=lambda self, pixels: self.decode(vanishing(self.encode(pixels)))),
        "gradients do not reach encode.weight: at most 1e-06 of the largest.* initialise the layers",
    ),
    (check_outputs_differ, network(constant_layers=("decode",)), "not constant: decode of constant_layers"),
]


@pytest.mark.parametrize(("check", "method", "message"), MORE, ids=lambda value: getattr(value, "__name__", ""))
def test_more_ways_to_break_it(check, method, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check(OfMethod(method))


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
def test_backbones_that_run_without_a_network(check):
    for name in ("lite0", "alexnet"):
        check(Setup(READS_ALL, name, () if name == "lite0" else ("backbone.weights=random",)))


def test_backbone_that_breaks_the_contract():
    wrong = Setup(READS_ALL, "r18", ("backbone.weights=random", "backbone.modules.2=layer1"))
    with pytest.raises(AssertionError, match=r"level 2 of .* has 56 x 56 .* expected 28 x 28: level n has stride"):
        check_strides(wrong)
    learning = Setup(READS_ALL, "r18", ("backbone.weights=random",))
    learning.network.network.layer2.register_module("noise", torch.nn.Dropout())
    learning.network.network.layer2.train()
    with pytest.raises(AssertionError, match="features of the same images differ: is the network in evaluation mode"):
        check_each_image_by_itself(learning)


def test_dataset_that_fulfils_the_contract(tree):
    for check in DATASET_CHECKS:
        check(folder(None, None, tree))


def test_datasets_that_break_the_contract(tree):
    made = folder(None, None, tree)
    with pytest.raises(AssertionError, match="categories Cog, cog differ only in case"):
        check_names(replace(made, categories={"Cog": None, "cog": None, "mat": None}))
    with pytest.raises(AssertionError, match=r"no category has a folder in .*: check data_root"):
        check_names(replace(made, categories={"screw": None}))
    shutil.copy(tree / "cog" / "train" / "good" / "002.png", tree / "cog" / "test" / "good" / "009.png")
    with pytest.raises(AssertionError, match=r"cog: test/good/009.png are in both training and test set"):
        check_no_image_is_fitted_and_tested(made)

    class Mixed(type(made)):
        def task(self, category):
            task = super().task(category)
            return replace(task, fit=(*task.fit, replace(task.tests["test"][-1], id="spot.png")))

    with pytest.raises(AssertionError, match=r"spot\.png in `fit` have a defect: fit on normal images only"):
        check_tasks(Mixed(made.name, made.title, made.root, made.categories))


def run_pytest(*words):
    return pytest.main(["-p", "anomaly_bench.testing.pytest_plugin", "-p", "no:cacheprovider", "-q", *words])


CONTRACT = ("--pyargs", "anomaly_bench.testing.contract")


def test_the_contract_as_a_command(tree, capsys):
    assert run_pytest(*CONTRACT, "--dataset", "folder", "--data-root", str(tree)) == pytest.ExitCode.OK
    assert "3 passed" in capsys.readouterr().out
    (tree / "cog" / "train" / "good" / "000.png").write_bytes((tree / "cog" / "test" / "good" / "000.png").read_bytes())
    assert run_pytest(*CONTRACT, "--dataset", "folder", "--data-root", str(tree)) == pytest.ExitCode.TESTS_FAILED
    out = capsys.readouterr().out
    assert "test_contract[folder-no_image_is_fitted_and_tested]" in out
    assert "test/good/000.png are in both training and test set" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to check: give --method, --backbone, --dataset or --metric and a NAME"),
        (["--method", "padimm"], "method=padimm: no such method; did you mean padim"),
        (["--method", "padim", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--method", "padim", "--device", "cuda:9"], "device=cuda:9: this machine has cpu"),
        (["--method", "padim", "--override", "method.dimension=3"], "did you mean method.dimensions"),
        (["--backbone", "r18", "--override", "backbone.weights=none.pth"], "no such file; expected pretrained, random"),
    ],
)
def test_uncheckable_arguments_give_one_line(words, message, capsys):
    assert run_pytest(*CONTRACT, *words) == pytest.ExitCode.USAGE_ERROR
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_other_pytest_runs_do_not_get_the_options(tmp_path, capsys):
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--method')")
    (tmp_path / "test_theirs.py").write_text("def test(pytestconfig): assert pytestconfig.getoption('method') == 'own'")
    assert run_pytest(str(tmp_path), "--method", "own") == pytest.ExitCode.OK, capsys.readouterr()
