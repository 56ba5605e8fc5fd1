"""metric=: what is computed, stored and shown; user-defined metrics, during a run, later, and in tables."""

from __future__ import annotations

import shutil

import pytest
from conftest import make_category

from anomaly_bench import records
from anomaly_bench.cli.main import command as call
from anomaly_bench.config.compose import compose
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.registry import chosen_metrics, packaged_metrics, standard_metrics
from anomaly_bench.testing.metric_checks import METRIC_CHECKS, find, outcomes, value_of

PRO_005 = """# @package metric.pro_005
name: pro_005
title: PRO up to 0.05
level: pixel
unit: "%"
digits: 2
revision: 1
needs: [maps, masks]
_target_: anomaly_bench.metrics.metrics.pro
limit: 0.05
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """A user's configuration folder with PRO up to 0.05."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "metric").mkdir()
    (folder / "metric" / "pro_005.yaml").write_text(PRO_005)
    return folder


def test_standard_metrics_and_their_order():
    assert list(standard_metrics()) == list(chosen_metrics(compose("config", [])))
    assert len(standard_metrics()) == 7
    sets = {"standard", "localisation", "operating", "all"}
    assert packaged_metrics().keys() == set(choices("metric", [conf_folder()])) - sets
    assert list(chosen_metrics(compose("config", ["metric=all"]))) == list(packaged_metrics())
    for name, metric in packaged_metrics().items():
        assert metric.name == name
        assert callable(metric.function)


def test_sets_and_lists():
    names = list(chosen_metrics(compose("config", ["metric=localisation"])))
    assert names == ["pixel_auroc", "pixel_ap", "pixel_f1_max", "pro"]
    assert list(chosen_metrics(compose("config", ["metric=[pro,pixel_ap]"]))) == ["pro", "pixel_ap"]
    with pytest.raises(UsageError, match=r"metric=prro: no such metric; did you mean pro"):
        compose("config", ["metric=prro"])


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        (PRO_005, ["metric=pro", "metric.pro.limit=0.1"], r"metric.pro.limit=0.1: found a changed definition"),
        (PRO_005.replace("# @package metric.pro_005\n", ""), ["metric=pro_005"], "start metric/NAME.yaml with"),
        (PRO_005.replace("level: pixel", "level: pixels"), ["metric=pro_005"], "level=pixels: expected image or pixel"),
        (PRO_005.replace("revision: 1\n", ""), ["metric=pro_005"], r"metric.pro_005.revision=None: expected a whole"),
        (PRO_005.replace("limit", "limits"), ["metric=pro_005"], "limits"),
        (PRO_005.replace("metrics.pro\n", "metrics.prro\n"), ["metric=pro_005"], "cannot be imported"),
    ],
)
def test_invalid_metrics(tmp_path, text, words, error):
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "pro_005.yaml").write_text(text)
    with pytest.raises(UsageError, match=error):
        [metric.function for metric in chosen_metrics(compose("config", words, [tmp_path])).values()]


@pytest.mark.parametrize("name", [*choices("metric", [conf_folder()]), "pro_005"])
def test_contract(name, conf):
    if name in packaged_metrics() or name == "pro_005":
        metric = find(name, [conf])
        for check in METRIC_CHECKS:
            check(metric)


def test_limit_changes_the_value(conf):
    for outcome in list(outcomes())[:2]:
        assert value_of(find("pro_005", [conf]), outcome) != value_of(find("pro"), outcome)


def test_user_metric_during_a_run_and_later(conf, tmp_path, monkeypatch, capsys):
    make_category(tmp_path / "data" / "cog")
    monkeypatch.chdir(tmp_path)
    words = ["dataset=folder", "data_root=data", "input.resize=64", "speed=false", "gallery=0", f"--config-dir={conf}"]
    run = [*words, "save_maps=true"]
    assert call([*run, "metric=[pro,pro_005]"]) == 0
    (with_it,), _ = records.load_all(tmp_path / "results")
    assert [*with_it.metrics] == [*standard_metrics(), "pro_005"]
    entry = with_it.metrics["pro_005"]
    assert entry | {"value": 0} == {
        **{"value": 0, "revision": 1, "title": "PRO up to 0.05", "level": "pixel", "unit": "%", "digits": 2}
    }
    shown = f"({100 * with_it.value('pro'):.1f}, {100 * entry['value']:.2f})"
    assert shown in capsys.readouterr().out
    shutil.move("results", "first")

    assert call(run) == 0
    (without,), _ = records.load_all(tmp_path / "results")
    assert [*without.metrics] == [*standard_metrics()]
    assert (without.fingerprint, without.curves) == (with_it.fingerprint, with_it.curves)
    capsys.readouterr()
    assert call([*run, "metric=pro_005"]) == 0  # from saved maps
    output = capsys.readouterr()
    assert "already done" in output.err
    assert f" {100 * entry['value']:.2f}" in output.out
    (later,), _ = records.load_all(tmp_path / "results")
    assert (later.metrics, later.curves) == (with_it.metrics, with_it.curves)

    records.write_record(without, tmp_path / "results" / without.path)
    assert call(["score", "maps=results", *words[:2], words[-1], "metric=pro_005", "update=true"]) == 0
    assert records.load(tmp_path / "results" / without.path).metrics == with_it.metrics
    capsys.readouterr()
    for command in (["tables", "table=per_class", "metric=pro_005"], ["compare", "a=first", "b=results"]):
        assert call([*command, *(["metric=pro_005"] * (command[0] == "compare"))]) == 0
        assert "PRO up to 0.05" in capsys.readouterr().out
    gate = ["compare", "a=first", "b=results", "metric=pro_005", "fail_if=pro_005 drops 0.5"]
    assert call(gate) == 0
    assert call(["report", "out=report.html"]) == 0
    assert "PRO up to 0.05" in (tmp_path / "report.html").read_text()
    assert "pro_005" in (tmp_path / "results" / "results.csv").read_text().splitlines()[0]

    shutil.rmtree(tmp_path / "results" / without.path.with_suffix(""))
    records.write_record(without, tmp_path / "results" / without.path)
    capsys.readouterr()
    assert call([*words, "metric=pro_005"]) == 0
    assert (
        "no stored maps to compute pro_005 from; save_maps=true overwrite=true stores them" in capsys.readouterr().err
    )
