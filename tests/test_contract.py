"""Every method in conf/method passes the contract on every kind of backbone that runs without a network."""

from __future__ import annotations

import functools

import pytest

from anomaly_bench.config import choices, conf_folder
from anomaly_bench.contract import CHECKS, Setup

METHODS = choices("method", [conf_folder()])
BACKBONES = ("lite0", "r18")
EPOCHS = 4  # of a method that trains: the fewest with which a planted defect stands out


PAIRS = {"lite0": "lite0_lite1", "r18": "r34_r50"}  # for a method that compares two networks
SMALLER = {
    "cs_flow": ("method.levels=[2]", "method.hidden=16"),  # at 64 pixels, level 4a has no grid that can be halved twice
    "differnet": ("method.hidden=16", "method.views=4", "method.train_views=2"),
    "pefm": ("method.latents=[8,8,8]",),
}


@functools.cache
def setup(method: str, backbone: str) -> Setup:
    words = () if backbone == "lite0" else ("backbone.weights=random",)
    words += SMALLER.get(method, ())
    backbone = PAIRS[backbone] if method == "pefm" else backbone
    trains = "epochs" in Setup(method, backbone, words).config["method"]
    return Setup(method, backbone, (*words, *((f"method.epochs={EPOCHS}",) if trains else ())))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_contract(method, backbone, check):
    check(setup(method, backbone))


@pytest.mark.parametrize("method", METHODS)
def test_one_name_everywhere(method):
    """method=padim is conf/method/padim.yaml is anomaly_bench/methods/padim.py is the name in the record."""
    config = setup(method, "lite0").config["method"]
    assert config["name"] == method
    assert config["_target_"].startswith(f"anomaly_bench.methods.{method}.")
    assert {"title", "revision", "input"} <= config["about"].keys()


@pytest.mark.parametrize("group", ["dataset", "backbone", "table"])
def test_files_carry_their_names(group):
    from omegaconf import OmegaConf

    for name in choices(group, [conf_folder()]):
        if name != "folder":  # its name is that of the user's folder
            assert OmegaConf.load(conf_folder() / group / f"{name}.yaml").name == name


def test_every_module_of_a_method_has_a_configuration():
    from pathlib import Path

    import anomaly_bench.methods as package

    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {"__init__"}
    assert modules == set(METHODS)
