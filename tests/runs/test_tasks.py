"""The choices in conf/task, end to end: training images, test sets, and separate tables."""

from __future__ import annotations

import shutil

import pytest

from anomaly_bench import records
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.records.setups import describe, setup_name, setups
from anomaly_bench.runs.runner import Runner

SMALL = ("input.resize=32", "method.levels=[1,2]", "method.dimensions=5", "speed=false", "threads=1")


@pytest.fixture
def small(tree, tmp_path):
    return [*SMALL, "gallery=1", "dataset=folder", f"data_root={tree}", f"results={tmp_path / 'r'}"], tmp_path / "r"


def job(words, name):
    return Runner(compose("config", words), Reporter()).job(name)


def test_multi_class_is_one_model_scored_on_each_category(small, command, tree):
    words, results = small
    assert command(*words)[0] == 0
    status, out, err = command(*words, "task=multi_class")
    assert status == 0, err
    assert err.startswith("[1/1] all: cog: image AUROC")
    assert "; mat: image AUROC" in err
    assert "task multi_class" in out
    found = {(each.regime["name"], each.category): each for each in records.load_all(results)[0]}
    assert found.keys() == {(name, category) for name in ("one_class", "multi_class") for category in ("cog", "mat")}
    cog, mat, alone = found["multi_class", "cog"], found["multi_class", "mat"], found["one_class", "cog"]
    assert (cog.task, cog.test, cog.counts["fit"], cog.counts["test"]) == ("all", "cog", 12, 6)
    assert cog.regime == {"name": "multi_class", "categories": ["cog", "mat"]}
    assert cog.images[0]["file"] == "cog/test/good/000.png"
    assert [each["score"] for each in cog.images] != [each["score"] for each in alone.images]
    assert cog.cost["fit_s"] == mat.cost["fit_s"], "one fit"
    assert len(list((results / cog.path.with_suffix("")).glob("alarm-*.png"))) == 1
    assert command(*words, "task=multi_class")[2].count("already done") == 1
    assert command("verify", f"record={results / cog.path}", f"data_root={tree}")[0] == 0


def test_metrics_of_multi_class_from_kept_maps(small, command, tree):
    words, results = small
    assert command(*words, "task=multi_class", "save_maps=true")[0] == 0
    where = [f"maps={results}", "dataset=folder", f"data_root={tree}"]
    status, out, err = command("score", *where)
    assert status == 0, err
    assert "warning" not in err, "the values are those in the records"
    assert out.index("cog") < out.index("mat")
    assert "mat" not in command("score", *where, "category=cog")[1]


def test_multi_class_of_some_categories_is_another_task(small, command, tree):
    words, results = small
    shutil.copytree(tree / "cog", tree / "nut")
    assert command(*words, "task=multi_class", "category=[cog,mat]")[0] == 0
    assert command(*words, "task=multi_class", "category=[cog,nut]")[0] == 0
    assert command(*words, "task=multi_class")[0] == 0
    found = records.load_all(results)[0]
    assert len(found) == 7
    assert sorted(len(part) for part in setups(found)) == [2, 2, 3], "no table mixes models fitted on different images"
    assert len({setup_name(each) for each in found}) == 3
    (whole,) = {setup_name(each) for each in found if each.task == "all"}
    assert whole == "data-multi_class-unified-32x32"


def test_multi_class_needs_all_its_categories(small, command, tree, monkeypatch):
    words, results = small
    shutil.rmtree(tree / "mat" / "train")
    status, _, err = command(*words, "task=multi_class")
    assert status == 1
    assert "all: mat: " in err
    assert not records.load_all(results)[0]


def test_few_shot_fits_on_a_few_images_drawn_by_the_seed(small, command, tree):
    words, results = small
    status, out, err = command(*words, "task=few_shot", "task.shots=2", "category=cog")
    assert status == 0, err
    assert "task few_shot 2" in out
    (record,) = records.load_all(results)[0]
    assert (record.task, record.counts["fit"], record.counts["test"]) == ("cog", 2, 6)
    assert record.regime == {"name": "few_shot", "shots": 2}
    assert setup_name(record) == "data-few_shot-2-unified-32x32"
    assert command("verify", f"record={results / record.path}", f"data_root={tree}")[0] == 0
    drawn = {
        (seed, shots): [each.id for each in job([*words, "task=few_shot", f"task.shots={shots}", seed], "cog").task.fit]
        for seed in ("seed=0", "seed=1", "seed=2")
        for shots in (2, 4)
    }
    assert drawn["seed=0", 2] == sorted(drawn["seed=0", 2])
    assert len({tuple(files) for (_, shots), files in drawn.items() if shots == 2}) > 1
    assert all(set(drawn[seed, 2]) < set(drawn[seed, 4]) for seed in ("seed=0", "seed=1", "seed=2"))


def test_each_task_has_its_fingerprint_and_the_default_is_left_out(small):
    words, _ = small
    ways = [[], ["task=few_shot", "task.shots=2"], ["task=few_shot", "task.shots=6"], ["task=few_shot", "task.shots=5"]]
    found = [job([*words, *way], "cog").first.fingerprint for way in ways]
    assert len(set(found)) == 4, "even if all images are drawn"
    assert job([*words, "task=one_class"], "cog").first.fingerprint == found[0]


def test_records_without_a_task_are_unknown_and_separate(small, command):
    words, results = small
    assert command(*words, "category=cog")[0] == 0
    (record,) = records.load_all(results)[0]
    assert record.regime == {"name": "one_class"}
    older = records.load(records.save(record, results))
    older.regime = None
    assert len(setups([record, older])) == 2
    assert "unknown_task" in setup_name(older)
    assert "unknown_task" in describe(older)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=few_shots"], "task=few_shots: no such task; did you mean few_shot"),
        (["task=few_shot", "task.shots=0"], "task.shots=0: expected a whole number of at least 1"),
        (["+task.shots=3"], "task.shots=3 has no effect with task=one_class"),
        (["task.name=mine"], "task=mine: expected one of one_class, multi_class, few_shot"),
    ],
)
def test_wrong_usage(small, command, words, message):
    status, _, err = command(*small[0], *words)
    assert (status, message in err) == (2, True), err


def test_more_shots_than_images(small, command):
    status, _, err = command(*small[0], "task=few_shot")
    assert status == 1
    assert "cog: task.shots=10, found 6 training images; expected at most that many" in err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("task=multi_class",), ("task=few_shot",)], ids=["multi_class", "few_shot"])
def test_tasks_on_the_generated_images(words, command, tmp_path):
    status, out, err = command(*SMALL, *words, "gallery=0", f"results={tmp_path / 'r'}")
    assert status == 0, err
    assert "mean of all" in out
    found = records.load_all(tmp_path / "r")[0]
    assert {each.category for each in found} == {"weave", "granite", "gear", "biscuit"}
    assert {each.group for each in found} == {"textures", "objects"}
    status, out, _ = command("status", *SMALL, *words, "gallery=0", f"results={tmp_path / 'r'}")
    assert status == 0, out
    assert " 0 failed, 0 missing" in out
