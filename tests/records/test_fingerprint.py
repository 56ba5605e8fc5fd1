"""Fingerprints: what changes them, what does not; neither new keys nor moved classes orphan a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly_bench.config import parts
from anomaly_bench.config.compose import compose
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.console import Reporter
from anomaly_bench.records import fingerprint
from anomaly_bench.runs.runner import Runner

MINE = """\
name: {name}
about: {{title: Mine, revision: 1}}
_target_: {target}
dimensions: 100
seed: ${{seed}}
eps: 0.01
sigma: {sigma}
batch: 32
levels: [1, 2, 3]
"""


@pytest.fixture
def print_of(tree):
    """The fingerprint of category cog for a command line."""

    def call(*words, folders=()):
        config = compose("config", ["dataset=folder", f"data_root={tree}", *words], folders)
        return Runner(config, Reporter()).job("cog").first.fingerprint

    return call


@pytest.mark.parametrize(
    "words",
    [
        ("seed=1",),
        ("protocol=paper",),
        ("input.resize=64",),
        ("input.crop=224",),
        ("input.filter=area",),
        ("precision=bf16",),
        ("method.sigma=2.0",),
        ("method.levels=[2]",),
        ("method.seed=3",),
        ("method.about.revision=2",),
        ("backbone=lite1",),
        ("backbone.about.revision=2",),
        ("backbone.weights=random",),
        ("backbone.mean=[0,0,0]",),
        ('backbone.modules.1="blocks.0"',),
        ("dataset.name=other",),
        ("dataset.textures=[cog]",),
        ("dataset.about.revision=3", "dataset.name=data"),
        ("method._target_=anomaly_bench.methods.stfpm.STFPM",),
        ("method=cflow_ad",),
        ("method=cflow_ad", "oracle=true"),
    ],
)
def test_settings_that_change_scores_change_the_fingerprint(print_of, words):
    assert print_of(*words) != print_of(*(["method=cflow_ad"] if len(words) > 1 and "method=cflow_ad" in words else []))


@pytest.mark.parametrize(
    "words",
    [
        ("method.sigma=4.0", "method.eps=0.01", "backbone.weights=pretrained", "precision=fp32"),
        ("input.resize=[256,256]",),
        ("input.filter=bilinear",),
        ("batch_size=1", "threads=1", "speed=false", "gallery=0", "device=cpu", "cache=off"),
        ("method.about.title=Renamed", "dataset.title=Renamed"),
        ("backbone.modules.stem=blocks.0",),
    ],
)
def test_defaults_and_neutral_settings_keep_the_fingerprint(print_of, words):
    assert print_of(*words) == print_of()


def test_levels_of_a_trained_copy_count_as_read(print_of):
    before = print_of("method=panda")
    assert print_of("method=panda", 'backbone.modules.4="blocks.5"') != before
    assert print_of("method=panda", 'backbone.modules.1="blocks.0"') == before


def test_moving_a_class_keeps_the_fingerprint(print_of, monkeypatch):
    """As if all our classes were in other modules: YAML and class move together."""
    before = print_of(), print_of("method=pefm", "backbone=lite0_lite1")
    packaged = parts.packaged_node

    def moved(group, name):
        node = dict(packaged(group, name))
        return {**node, "_target_": node["_target_"].replace("anomaly_bench.", "anomaly_bench.moved.")} if node else {}

    monkeypatch.setattr(parts, "packaged_node", moved)
    new = ["method._target_=anomaly_bench.moved.methods.padim.PaDiM"]
    new += ["backbone._target_=anomaly_bench.moved.backbones.Backbone"]
    assert print_of(*new) == before[0]
    new = ["method._target_=anomaly_bench.moved.methods.pefm.PEFM", "method=pefm", "backbone=lite0_lite1"]
    new += ["backbone._target_=anomaly_bench.moved.backbones.Networks"]
    new += [f"backbone.networks.{name}._target_=anomaly_bench.moved.backbones.Backbone" for name in ("lite0", "lite1")]
    assert print_of(*new) == before[1]


def test_user_parts_are_hashed_by_target_and_all_keys(print_of, tmp_path):
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)

    def mine(name, target, sigma=4.0):
        (folder / "mine.yaml").write_text(MINE.format(name=name, target=target, sigma=sigma))
        return print_of("method=mine", folders=[tmp_path / "conf"])

    ours = mine("mine", "anomaly_bench.methods.padim.PaDiM")
    assert ours == mine("mine", "anomaly_bench.elsewhere.PaDiM"), "our classes may move"
    found = {ours, print_of(), mine("mine", "other.PaDiM"), mine("mine", "mypackage.PaDiM")}
    found |= {mine("mine", "mypackage.PaDiM", sigma=2.0), mine("padim", "mypackage.PaDiM")}
    assert len(found) == 6


def test_new_keys_keep_old_fingerprints(print_of, monkeypatch):
    """A later version's new key of a run, input or method: neutral at its default, else it changes the fingerprint."""
    before = print_of()
    run = {"seed": 0, "input": {"resize": [256, 256], "crop": None}, "protocol": "unified", "oracle": False}
    settings = {"run": run, "dataset": {"name": "d", "_target_": "anomaly_bench.d"}, "files": {}, "backbone": None}
    method = {**parts.packaged_node("method", "padim"), "seed": 0}
    del method["_target_"]
    old = fingerprint.fingerprint(**settings, method=method)
    defaults = {**fingerprint.DEFAULTS, "holdout": 0.0}
    defaults["input"] = {**defaults["input"], "filter": "bilinear"}
    packaged = {**parts.packaged_node("method", "padim"), "whitening": False}
    monkeypatch.setattr(fingerprint, "DEFAULTS", defaults)
    monkeypatch.setattr(fingerprint, "packaged_node", lambda group, name: packaged)

    def later(holdout=0.0, filter="bilinear", whitening=False):
        new = {**run, "holdout": holdout, "input": {**run["input"], "filter": filter}}
        return fingerprint.fingerprint(**{**settings, "run": new}, method={**method, "whitening": whitening})

    assert later() == old
    assert len({old, later(holdout=0.1), later(filter="box"), later(whitening=True)}) == 4
    monkeypatch.undo()
    assert print_of("+method.whitening=true") != before


@pytest.mark.parametrize("group", ["method", "backbone"])
def test_changed_default_needs_a_new_revision(group):
    """Keys at their default are left out of fingerprints, so a default must not change within a revision.

    A new key's default must give the behaviour without the key. `tests/records/defaults.json` holds the defaults of
    each revision; add a new part, key or revision with: python tests/records/test_fingerprint.py
    """
    known = json.loads(DEFAULTS_FILE.read_text())[group]
    for name, (revision, keys) in defaults(group).items():
        assert name in known, f"{name} is new: run python tests/records/test_fingerprint.py"
        assert revision >= known[name][0], name
        if revision == known[name][0]:
            then = known[name][1]
            assert {key: keys.get(key) for key in then} == then, f"{name}: raise about.revision"


DEFAULTS_FILE = Path(__file__).with_name("defaults.json")


def defaults(group):
    made = {}
    for name in choices(group, [conf_folder()]):
        node = parts.packaged_node(group, name)
        apart = fingerprint.APART[group]
        made[name] = [node["about"]["revision"], {key: value for key, value in node.items() if key not in apart}]
    return made


if __name__ == "__main__":
    listed = {group: defaults(group) for group in ("method", "backbone")}
    rows = [
        f' "{group}": {{\n' + ",\n".join(f'  "{name}": {json.dumps(part)}' for name, part in found.items()) + "\n }"
        for group, found in listed.items()
    ]
    DEFAULTS_FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
