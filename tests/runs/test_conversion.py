"""Records and saved models of schema 1: migrated with their numbers, verified against the files or marked."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import picture, save

from anomaly_bench import records
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.runs import saved_model

HERE = Path(__file__).parent
SMALL = ("dataset=folder", "method=padim", "method.dimensions=20", "input.resize=64", "speed=false", "threads=1")


def digest(value):
    """As schema 1 hashed."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_as_schema_1(path, tree):
    """Rewrite the record `path`, its folder and its model as version 0.1.0 wrote them."""
    content = json.loads(path.read_bytes())
    for name in ("checksum", "converted"):
        del content[name]
    method, backbone = content["config"]["method"], content["config"]["backbone"]
    method["_target_"] = packaged_node("method", "padim")["_target_"]
    backbone["_target_"] = packaged_node("backbone", "lite0")["_target_"]
    read = {level: module for level, module in backbone["modules"].items() if level in ("1", "2", "3")}

    def facts(file):
        return [(tree / file).stat().st_size, hashlib.sha256((tree / file).read_bytes()).hexdigest()]

    def image(file):
        _, kind, name = file.split("/")
        defect = None if kind == "good" else kind
        mask = facts(f"ground_truth/{kind}/{name.replace('.png', '_mask.png')}") if defect else None
        return [file, defect, *facts(file), mask]

    files = {part: sorted(each.relative_to(tree).as_posix() for each in (tree / part).rglob("*.png")) for part in KINDS}
    same = ("dataset", "task", "input", "protocol", "oracle", "precision", "seed")
    fingerprint = digest(
        {
            **{name: content[name] for name in same},
            "fit": [image(file) for file in files["train"]],
            "test": [image(file) for file in files["test"]],
            "method": {**method, "about": {"revision": 1}},
            "backbone": {**backbone, "modules": read},
        }
    )
    content |= {"schema": 1, "fingerprint": fingerprint}
    old = path.with_name(f"{content['task']}-s0-{fingerprint[:8]}.json")
    old.write_text(json.dumps({**content, "checksum": digest(content)}))
    path.unlink()
    path.with_suffix("").rename(old.with_suffix(""))
    about = old.with_suffix("") / "model.yaml"
    text = about.read_text().replace("schema: 2\n", "")
    text = text.replace("method:\n", f"method:\n  _target_: {method['_target_']}\n")
    about.write_text(text.replace("backbone:\n", f"backbone:\n  _target_: {backbone['_target_']}\n"))
    return old


KINDS = ("train", "test")


@pytest.fixture
def old(tree, tmp_path, command):
    """A results folder as left by version 0.1.0: (overrides of the run, the old file, its path in this version)."""
    words = [*SMALL, f"data_root={tree}", f"results={tmp_path / 'r'}", "save_model=true", "gallery=2", "category=cog"]
    assert command(*words)[0] == 0
    (path,) = (tmp_path / "r" / "records").rglob("*.json")
    return words, write_as_schema_1(path, tree / "cog"), path


def convert(command, old, *words):
    results = old[1].parents[3]
    return command("records", "convert", f"results={results}", *words)


def test_converted_records_are_done(old, command, tree):
    words, before, after = old
    content = json.loads(before.read_bytes())
    pictures = sorted(each.name for each in before.with_suffix("").iterdir())
    assert "schema 1, expected 2; run anomaly-bench records convert" in command("verify", f"record={before}")[2]
    status, out, err = convert(command, old, f"data_root={tree}")
    assert status == 0, err
    assert out.startswith(
        "1 records migrated, each verified to belong to the files at hand: records/data/padim-lite0/cog"
    )
    assert not before.exists()
    assert not before.with_suffix("").exists()
    assert sorted(each.name for each in after.with_suffix("").iterdir()) == pictures
    record = records.load(after)
    assert record.converted == {"schema": 1, "fingerprint": content["fingerprint"], "proven": True}
    for name in ("images", "metrics", "curves", "speed", "size", "cost", "counts", "provenance", "titles"):
        assert getattr(record, name) == content[name]
    assert "already done" in command(*words)[2]
    assert command("verify", f"record={after}", f"data_root={tree}")[0] == 0
    score = saved_model.load_model(after.with_suffix("")).score(torch.rand(1, 3, 64, 64))
    assert torch.isfinite(score.image).all()
    assert "nothing to convert" in convert(command, old)[1]
    assert record.fingerprint in (after.parents[3] / "results.csv").read_text()


@pytest.mark.parametrize("fault", ["no data_root", "other files", "no category"])
def test_record_without_its_files_is_shown_but_not_reused(old, command, tree, fault):
    words, before, after = old
    results, fingerprint = before.parents[3], json.loads(before.read_bytes())["fingerprint"]
    if fault == "other files":
        save(picture(77), tree / "cog" / "test" / "good" / "000.png")
    if fault == "no category":
        shutil.move(tree / "cog", tree / "gear")
    status, out, err = convert(command, old, *(() if fault == "no data_root" else (f"data_root={tree}",)))
    assert status == 0, err
    assert out.startswith("1 records migrated with their old fingerprint, as their files are not at hand")
    (record,) = records.load_all(results)[0]
    assert record.fingerprint == fingerprint
    assert record.converted == {"schema": 1, "fingerprint": fingerprint, "proven": False}
    assert before.with_suffix("").is_dir()
    assert not after.exists()
    assert "cog" in command("tables", f"results={results}")[1]
    if fault == "no data_root":
        assert "0 done, 0 failed, 1 missing" in command("status", *words)[1]


def test_unconvertible_records_are_left_unchanged(old, command, tree):
    words, before, after = old
    text = before.read_text()
    before.write_text(text.replace('"seed": 0', '"seed": 1', 1))
    status, out, _ = convert(command, old, f"data_root={tree}")
    assert (status, out.count("modified or truncated since it was written; left as it is")) == (1, 1)
    before.write_text(text)
    folder = before.with_suffix("").rename(before.with_suffix(".aside"))
    assert command(*words)[0] == 0, "computed again before the conversion"
    folder.rename(before.with_suffix(""))
    newer = after.read_bytes()
    status, out, _ = convert(command, old, f"data_root={tree}")
    assert (status, "already exists, from a later run; delete one of the two" in out) == (1, True)
    assert (after.read_bytes(), before.read_text()) == (newer, text)


@pytest.mark.real
@pytest.mark.parametrize("name", ["padim", "pefm", "ae_l2"])
def test_records_that_version_0_1_0_wrote(name, real, command, tmp_path):
    """Formerly committed records, without curves and most images, become those committed since, or kept in schema_2."""
    text = (HERE / "schema_1" / f"{name}.json").read_text()
    content = json.loads(text)
    path = tmp_path / "records" / "mvtec" / name / f"x-{content['fingerprint'][:8]}.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    status, out, err = command("records", "convert", f"results={tmp_path}", f"data_root={real}")
    assert status == 0, err
    assert "1 records migrated, each verified" in out
    (record,) = records.load_all(tmp_path)[0]
    kept = HERE / "schema_2" / f"{name}.json"
    committed = records.load(kept if kept.is_file() else HERE.parents[1] / "results" / record.path)
    assert (committed.fingerprint, committed.converted) == (record.fingerprint, record.converted)
    assert (committed.metrics, committed.config) == (record.metrics, record.config)
