"""Thresholds from held-out normal images: their rank, what they keep, and that no test label changes them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, save
from scipy.stats import betabinom

from anomaly_bench import records
from anomaly_bench.config.compose import compose
from anomaly_bench.config.settings import MAX_FALSE_ALARMS
from anomaly_bench.console import Reporter
from anomaly_bench.metrics.registry import metric_set, stored_metrics
from anomaly_bench.metrics.thresholds import rank_of, shortage, threshold_of, thresholds_of
from anomaly_bench.records.setups import describe, setup_name, setups
from anomaly_bench.runs.runner import Runner

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_false_alarms.py"
SMALL = ("input.resize=32", "method.levels=[1,2]", "method.dimensions=5", "speed=false", "threads=1", "gallery=0")
HALF = ("holdout=0.5", "max_false_alarms=0.3")  # 3 of 6 images: the third smallest of 3


@pytest.fixture
def small(tree, tmp_path):
    return [*SMALL, "dataset=folder", f"data_root={tree}", f"results={tmp_path / 'r'}", "category=cog"], tmp_path / "r"


def job(*words):
    return Runner(compose("config", words), Reporter()).job("cog")


def only(results):
    (record,) = records.load_all(results)[0]
    return record


@pytest.mark.parametrize(
    ("count", "rate", "rank"),
    [(19, 0.05, 19), (20, 0.05, 20), (39, 0.05, 38), (60, 0.05, 58), (9, 0.1, 9), (29, 0.1, 27), (99, 0.01, 99)],
)
def test_the_rank_by_hand(count, rate, rank):
    assert rank_of(count, rate) == rank
    values = np.random.default_rng(0).permutation(count) + 1.0
    assert threshold_of(values.tolist(), rate) == rank


def test_too_few_images_make_no_threshold():
    assert threshold_of([1.0] * 18, 0.05) is None, "18 / 19 < 0.95: even the largest does not keep the rate"
    assert shortage(18, 0.05) == "18 held-out images; max_false_alarms=0.05 needs 20: no threshold keeps this rate"
    assert shortage(19, 0.05) == "19 held-out images; max_false_alarms=0.05 needs 20: the threshold is their maximum"
    assert shortage(20, 0.05) == ""
    found = thresholds_of([{"score": 1.0, "peak": None}], 0.5)
    assert found == {"image": 1.0, "pixel": None, "max_false_alarms": 0.5, "images": 1}
    with pytest.raises(ValueError, match="NaN or infinite"):
        threshold_of([1.0, float("nan")], 0.5)


@pytest.mark.parametrize(("count", "rate"), [(39, 0.05), (60, 0.05), (25, 0.1)])
def test_the_false_alarm_rate_is_beta_binomial(count, rate):
    """Of 300 new images each time; a rank too high or low, or >= for >, falls outside where there are ties."""
    random, rank = np.random.default_rng(0), rank_of(count, rate)
    alarms = []
    for _ in range(2000):
        values = random.normal(size=count + 300)
        alarms.append(int((values[count:] > threshold_of(values[:count].tolist(), rate)).sum()))
    expected = betabinom(300, count + 1 - rank, rank)
    assert np.mean(alarms) == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(2000))
    assert expected.mean() <= 300 * rate
    inside = np.mean((expected.ppf(0.025) <= alarms) & (alarms <= expected.ppf(0.975)))
    assert 0.93 <= inside <= 0.98


@pytest.mark.slow
def test_runs_keep_the_false_alarm_rate_on_unseen_images(tmp_path, monkeypatch):
    """A small part of benchmarks/bench_false_alarms.py: the sum is within 99.9 % of its distribution."""
    spec = importlib.util.spec_from_file_location("bench_false_alarms", BENCHMARK)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path))  # the benchmark sets it for each run
    for number in range(200):
        save(picture(number, 32), tmp_path / "images" / "cog" / f"{number:03}.png")
    runs = [bench.false_alarms(tmp_path / "images", seed, *SMALL)["cog"] for seed in range(6)]
    assert all(run[1:] == (100, 20) for run in runs)
    low, high = bench.interval(runs, 0.999)
    assert low <= sum(run[0] for run in runs) <= high


def test_the_split_is_the_same_for_all_methods_and_off_by_default(small):
    words = small[0]
    plain, split = job(*words), job(*words, "holdout=0.34")
    assert (len(plain.task.fit), plain.task.validation, plain.held_out("test")) == (6, (), ())
    assert (len(split.task.fit), len(split.task.validation)) == (4, 2)
    assert {*split.task.fit, *split.task.validation} == {*plain.task.fit}
    assert split.task.tests == plain.task.tests
    other = job(*(word for word in words if "dimensions" not in word), "holdout=0.34", "method=patchcore")
    assert other.task == split.task
    seeds = {job(*words, "holdout=0.34", f"seed={seed}").task.validation for seed in range(4)}
    assert len(seeds) > 1
    assert split.first.fingerprint != plain.first.fingerprint
    assert job(*words, "holdout=0.34", "max_false_alarms=0.2").first.fingerprint == split.first.fingerprint
    few = job(*words, "holdout=0.34", "task=few_shot", "task.shots=3")
    assert (len(few.task.fit), len(few.task.validation)) == (2, 1), "of the shots"


def test_a_run_with_held_out_images(small, command, tree):
    words, results = small
    status, _, err = command(*words, *HALF, "save_model=true")
    assert status == 0, err
    assert "cog: 3 held-out images; max_false_alarms=0.3 needs 4: the threshold is their maximum" in err
    record = only(results)
    assert (record.holdout, record.counts["fit"], record.thresholds["images"]) == (0.5, 3, 3)
    assert [each["file"] for each in record.held_out] == [each.id for each in job(*words, *HALF).held_out("test")]
    for level, key in (("image", "score"), ("pixel", "peak")):
        assert record.thresholds[level] == max(each[key] for each in record.held_out)
    assert record.metrics.keys() == stored_metrics(True).keys()
    above = [each["score"] > record.thresholds["image"] for each in record.images]
    normal = [alarm for alarm, each in zip(above, record.images, strict=True) if each["defect"] is None]
    assert record.value("image_false_alarms") == sum(normal) / 3
    assert record.value("image_recall") == (sum(above) - sum(normal)) / 3
    assert record.value("image_f1_floor") == pytest.approx(6 / 9)
    assert setup_name(record) == "data-unified-32x32-holdout0.5-alarms0.3"
    assert "holdout 0.5 (thresholds at 30% false alarms)" in describe(record)
    assert "already done" in command(*words, *HALF, "save_model=true")[2]
    assert command("verify", f"record={results / record.path}", f"data_root={tree}")[0] == 0
    assert command(*words)[0] == 0
    assert len(setups(records.load_all(results)[0])) == 2, "never in one table"


def test_changing_test_labels_changes_no_threshold(small, command, tree):
    words, results = small
    assert command(*words, *HALF)[0] == 0
    before = only(results)
    shutil.rmtree(results)
    test = tree / "cog" / "test"
    (test / "spot").rename(test / "other")
    (test / "good").rename(test / "spot")
    (test / "other").rename(test / "good")
    shutil.rmtree(tree / "cog" / "ground_truth")
    assert command(*words, *HALF)[0] == 0
    after = only(results)
    assert after.value("image_auroc") == 1 - before.value("image_auroc"), "every label is another"
    assert (after.thresholds, after.held_out) == (before.thresholds, before.held_out)
    assert after.value("image_false_alarms") == before.value("image_recall")


def test_another_rate_needs_no_other_fit(small, command):
    words, results = small
    assert command(*words, *HALF, "save_maps=true")[0] == 0
    first = only(results)
    status, _, err = command(*words, "holdout=0.5", "max_false_alarms=0.6")
    assert (status, "already done" in err) == (0, True)
    second = only(results)
    assert second.images == first.images
    assert second.thresholds["image"] == sorted(each["score"] for each in first.held_out)[1]
    assert second.value("image_auroc") == first.value("image_auroc")
    shutil.rmtree(results)
    assert command(*words, "holdout=0.5", "max_false_alarms=0.6")[0] == 0
    fresh = only(results)
    assert (fresh.metrics, fresh.thresholds) == (second.metrics, second.thresholds)
    status, _, err = command(*words, *HALF)
    assert "no stored maps to compute pixel_f1 from" in err
    assert "pixel_f1" not in only(results).metrics


def test_too_few_held_out_images_are_said_and_leave_the_metrics_undefined(small, command):
    words, results = small
    status, _, err = command(*words, "holdout=0.2")
    assert status == 0, err
    assert "cog: 1 held-out image; max_false_alarms=0.05 needs 20: no threshold keeps this rate" in err
    record = only(results)
    assert record.thresholds == {"image": None, "pixel": None, "max_false_alarms": MAX_FALSE_ALARMS, "images": 1}
    undefined = {name for name, entry in record.metrics.items() if entry["value"] is None}
    assert undefined == metric_set("operating").keys() - {"image_f1_floor"}


def test_one_model_for_several_categories_has_thresholds_of_each(small, command):
    words, results = small
    assert command(*words[:-1], *HALF, "task=multi_class")[0] == 0
    found = {record.test: record for record in records.load_all(results)[0]}
    for name, record in found.items():
        assert len(record.held_out) == 3
        assert all(each["file"].startswith(f"{name}/") for each in record.held_out)
    alone = job(*words, *HALF)
    assert [each["file"] for each in found["cog"].held_out] == [f"cog/{each.id}" for each in alone.task.validation]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("holdout=1",), "holdout=1: expected a share of 0, or between 0 and 1, as 0.2"),
        (("holdout=0.2", "max_false_alarms=0"), "max_false_alarms=0: expected a share between 0 and 1, as 0.2"),
        (("max_false_alarms=0.1",), "max_false_alarms=0.1 has no effect with holdout=0; give holdout=0.2"),
        (("metric=image_f1",), "metric=image_f1 needs a threshold, and holdout=0 makes none; give holdout=0.2"),
        (("metric=operating",), "metric=image_f1 needs a threshold"),
    ],
)
def test_wrong_usage(small, command, words, message):
    status, _, err = command(*small[0], *words)
    assert (status, message in err) == (2, True), err


def test_all_metrics_without_held_out_images_are_those_without_thresholds(small, command):
    words, results = small
    assert command(*words, "metric=all")[0] == 0
    assert only(results).metrics.keys() == stored_metrics(False).keys() | {"image_f1_floor", "pro_3d"}


def test_the_default_rate_is_that_of_the_yaml():
    assert compose("config", [])["max_false_alarms"] == MAX_FALSE_ALARMS
