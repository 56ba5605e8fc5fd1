"""Fingerprints: what counts, what does not, and that neither new keys nor moved classes orphan a record."""

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
    """The fingerprint of category cog under a command line."""

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
        ("dataset.about={revision: 2}", "dataset.name=data"),
        ("method._target_=anomaly_bench.methods.stfpm.STFPM",),
        ("method=cflow_ad",),
        ("method=cflow_ad", "oracle=true"),
    ],
)
def test_what_can_change_a_score_counts(print_of, words):
    words = [f"+{word}" if word.startswith("dataset.about") else word for word in words]
    assert print_of(*words) != print_of(*(["method=cflow_ad"] if len(words) > 1 and "method=cflow_ad" in words else []))


@pytest.mark.parametrize(
    "words",
    [
        ("method.sigma=4.0", "method.eps=0.01", "backbone.weights=pretrained", "precision=fp32"),
        ("input.resize=[256,256]",),
        ("batch_size=1", "threads=1", "speed=false", "gallery=0", "device=cpu", "cache=off"),
        ("method.about.title=Renamed", "dataset.title=Renamed"),
        ("backbone.modules.stem=blocks.0",),
    ],
)
def test_defaults_and_what_changes_no_score_do_not_count(print_of, words):
    assert print_of(*words) == print_of()


def test_a_moved_class_is_the_same_method(print_of, monkeypatch):
    """As if all of ours lay in other modules: YAML and class move together."""
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


def test_ones_own_part_counts_by_target_and_all_keys(print_of, tmp_path):
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)

    def mine(name, target, sigma=4.0):
        (folder / "mine.yaml").write_text(MINE.format(name=name, target=target, sigma=sigma))
        return print_of("method=mine", folders=[tmp_path / "conf"])

    ours = mine("mine", "anomaly_bench.methods.padim.PaDiM")
    assert ours == mine("mine", "anomaly_bench.elsewhere.PaDiM"), "a class of ours may move"
    found = {ours, print_of(), mine("mine", "other.PaDiM"), mine("mine", "mypackage.PaDiM")}
    found |= {mine("mine", "mypackage.PaDiM", sigma=2.0), mine("padim", "mypackage.PaDiM")}
    assert len(found) == 6


def test_a_new_key_orphans_no_record(print_of, monkeypatch):
    """A later version's key of a run, of the input, of a method: at its default all is as before, else it counts."""
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
def test_a_changed_default_raises_the_revision(group):
    """Keys at their default are left out of fingerprints, so a default may not change under the same revision.

    A new key's default must be what was done without it. `tests/records/defaults.json` holds what each revision
    said; a new part, key or revision is added there: python tests/records/test_fingerprint.py
    """
    known = json.loads(DEFAULTS_FILE.read_text())[group]
    for name, (revision, keys) in defaults(group).items():
        assert name in known, f"{name} is new: call python tests/records/test_fingerprint.py"
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
