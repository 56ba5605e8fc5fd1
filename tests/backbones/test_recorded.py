"""Recorded backbones: what runs a program, what creates the network, and no import of timm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_category

from anomaly_bench import records
from anomaly_bench.backbones import program
from anomaly_bench.backbones.backbone import Backbone
from anomaly_bench.backbones.build import find_weights, make_backbone
from anomaly_bench.backbones.recorded import RecordedBackbone
from anomaly_bench.cache import PROGRAMS, cache_root
from anomaly_bench.cli.main import command
from anomaly_bench.config.compose import compose
from anomaly_bench.errors import UsageError


def lite0(*words: str) -> Any:
    config = compose("config", ["backbone=lite0", *words])
    return make_backbone(config, find_weights(config), recorded=True)


def images(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def test_the_backbone_is_created_only_for_what_no_program_does(empty_cache, monkeypatch):
    first = lite0()
    shapes = first.infer_shapes((64, 64))
    assert shapes == first.created.infer_shapes((64, 64))
    later = lite0()
    monkeypatch.setattr(Backbone, "__init__", lambda *_, **__: pytest.fail("the backbone was created"))
    assert later.infer_shapes((64, 64)) == shapes
    assert later.tiles((64, 64)) == first.created.tiles((64, 64))
    assert later.paths == first.created.paths
    for own, theirs in zip(later(images(2)), first.created(images(2)), strict=True):
        assert torch.equal(own, theirs)
    monkeypatch.undo()
    assert later(images(1, 96))[0].shape[-1] == 24, "of another size, by the network"
    assert later.trainable_copy()(images(1))
    assert later.mean.tolist() == first.created.mean.tolist()


def test_other_levels_sizes_and_weights_have_other_programs(empty_cache, tmp_path):
    lite0().shapes((64, 64))
    lite0().shapes((64, 32))
    lite0("method.levels=[1,2]").shapes((64, 64))
    assert len(list((cache_root() / PROGRAMS).iterdir())) == 3
    assert isinstance(lite0("backbone.weights=random"), Backbone), "a name for random weights is none for their values"


def test_what_cannot_be_recorded_is_tried_once(empty_cache, monkeypatch):
    tried = []
    monkeypatch.setattr(program, "record", lambda *arguments: tried.append(arguments))
    made = lite0()
    assert made.shapes((64, 64)) == made.created.shapes((64, 64))
    assert made.tiles((64, 64)) == made.created.tiles((64, 64))
    assert made.paths == made.created.paths
    assert made(images(1))[0].shape[0] == 1
    assert len(tried) == 1


def test_a_level_that_the_network_lacks_is_an_error(empty_cache):
    with pytest.raises(UsageError, match="no level 9"):
        lite0("method.levels=[9]").shapes((64, 64))


def test_while_tensors_have_no_values_the_backbone_has_its_weights(empty_cache):
    made = lite0()
    with torch.device("meta"):
        made.shapes((64, 64))
        assert made.mean.device.type == "cpu"
    assert made(images(1))[0].isfinite().all()
    assert isinstance(made, RecordedBackbone)


def test_a_later_process_gives_the_same_scores_and_imports_no_timm(empty_cache, tmp_path):
    make_category(tmp_path / "mvtec" / "bottle")
    words = ["dataset=mvtec", f"data_root={tmp_path / 'mvtec'}", "category=bottle", "input.resize=64", "speed=false"]
    words += ["gallery=0", "method.dimensions=5", "threads=1"]
    assert command([*words, f"results={tmp_path / 'first'}"]) == 0
    code = "import sys; from anomaly_bench.cli.main import command; status = command(sys.argv[1:]); "
    code += "print('timm' in sys.modules); sys.exit(status)"
    later = [sys.executable, "-c", code, *words, f"results={tmp_path / 'later'}"]
    done = subprocess.run(later, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert scores(tmp_path / "first") == scores(tmp_path / "later")


def scores(results: Path) -> list[float]:
    (record,), _ = records.load_all(results)
    return [image["score"] for image in record.images]
