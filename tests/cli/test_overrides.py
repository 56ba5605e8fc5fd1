"""Command-line values that Hydra would change or reject: names stay what was typed."""

from __future__ import annotations

import unicodedata

import pytest
from conftest import make_category

from anomaly_bench.cli.overrides import arrange, parse, readable
from anomaly_bench.config.settings import GROUPS
from anomaly_bench.records import load_all

SMALL = ("dataset=folder", "method.dimensions=10", "speed=false", "gallery=0", "threads=1", "input.resize=64")


def value(word, sweep=False):
    """What Hydra makes of a word once it is arranged."""
    found = parse(readable(word, GROUPS, sweep))
    if not found.is_sweep_override():
        return found.value()
    return [getattr(each, "text", each) for each in found.sweep_iterator()]


@pytest.mark.parametrize("text", ["1_1", "2026_11_28", "1.10", "1e3", "0x10", "007", "true", "Off", "inf", "-1_0"])
@pytest.mark.parametrize("key", ["category", "results", "data_root", "dataset.name", "out", "a", "only.dataset"])
def test_names_stay_as_typed(key, text):
    assert str(value(f"{key}={text}")) == text
    assert str(value(f"+{key}={text}")) == text


def test_names_in_lists_and_sweeps_stay_as_typed():
    assert value("category=[1_1, true,plain,'2_2',null]") == ["1_1", "true", "plain", "2_2", "null"]
    assert value("category=1_1,1e3,choice", sweep=True) == ["1_1", "1e3", "choice"]
    assert value("category=choice(1_1,01)", sweep=True) == ["1_1", "01"]
    assert value("a=[1_1,x]") == ["1_1", "x"]


def test_a_key_of_a_swept_group_is_set_after_the_choice():
    words = [
        "-m",
        "method=panda,fyd",
        "method.epochs=0",
        "method.levels=[1,2]",
        "seed=1",
        "dataset=folder",
        "dataset.name=a",
    ]
    kept = ["seed=1", "dataset=folder", "dataset.name=a", "-m"]
    expected = ["method=panda,fyd", "method.epochs=choice(0)", "method.levels=choice([1,2])", *kept]
    assert arrange(words, GROUPS) == expected
    assert arrange(["method=panda", "method.epochs=0"], GROUPS) == ["method=panda", "method.epochs=0"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=1_000", 1000),
        ("method.sigma=1e3", 1000.0),
        ("speed=true", True),
        ("data_root=null", None),
        ("category=null", "null"),
        ("input.resize=[64,96]", [64, 96]),
        ("category=range(1,3)", [1, 2]),
        ("data_root=[red]", "[red]"),
        ("results=it's", "it's"),
    ],
)
def test_other_values_are_hydras(word, expected):
    assert value(word, sweep="range" in word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("category=[plain,Größe]", ["plain", "Größe"]),
        ('category=[plain,"a,b",Größe (2),it\'s]', ["plain", "a,b", "Größe (2)", "it's"]),
        ("category=Größe", "Größe"),
    ],
)
def test_lists_may_have_any_characters(word, expected):
    assert value(word) == expected


def test_sweeps_may_have_any_characters():
    assert value("category=plain,Größe", sweep=True) == ["plain", "Größe"]


def test_names_that_look_like_numbers_in_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1_1", "11", "Größe"):
        make_category(tmp_path / "2024_11" / name)
    words = (*SMALL, "data_root=2024_11", "dataset.name=1.10")
    assert command(*words, "results=2026_11_28", "category=[1_1,Größe]")[0] == 0
    found = load_all(tmp_path / "2026_11_28")[0]
    assert {(record.dataset, record.task) for record in found} == {("1.10", "1_1"), ("1.10", "Größe")}
    assert command("-m", *words, "results=1.10", "category=1_1,11", "hydra.job.chdir=true")[0] == 0
    assert {record.task for record in load_all(tmp_path / "1.10")[0]} == {"1_1", "11"}
    assert not (tmp_path / "20261128").exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_both_unicode_forms_are_one_name(form, command, tmp_path):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    disk, typed = unicodedata.normalize(form, "Größe"), unicodedata.normalize(other, "Größe")
    folder = make_category(tmp_path / "data" / disk)
    spot, truth = folder / "test" / "spot", folder / "ground_truth" / "spot"
    for number, path in enumerate(sorted(spot.iterdir())):
        path.rename(spot / f"{disk}{number}.png")
        (truth / f"{number:03}_mask.png").rename(truth / f"{typed}{number}_mask.png")
    spot.rename(folder / "test" / disk)
    truth.rename(folder / "ground_truth" / typed)
    results = tmp_path / "results"
    assert command(*SMALL, f"data_root={tmp_path / 'data'}", f"results={results}", f"category={typed}")[0] == 0
    (record,) = load_all(results)[0]
    assert record.task == "Größe"
    files = [image["file"] for image in record.images if image["defect"] == "Größe"]
    assert files == [f"test/Größe/Größe{number}.png" for number in range(3)]
    assert record.value("pro") is not None, "the masks are found"


def test_two_folders_of_one_name_are_refused(command, tmp_path):
    for form in ("NFC", "NFD"):
        make_category(tmp_path / "data" / unicodedata.normalize(form, "Größe"), 2, 1, 1)
    if len(list((tmp_path / "data").iterdir())) == 1:
        pytest.skip("this file system takes both forms for one name")
    status, _, err = command(*SMALL, f"data_root={tmp_path / 'data'}", f"results={tmp_path / 'r'}")
    assert status == 2
    assert "two Unicode forms" in err


def test_help_separates_keys_from_their_explanation(command):
    lines = command("--help")[1].splitlines()
    assert "  max_false_alarms=0.05 share of normal images" in "\n".join(lines)
    assert "  max_false_alarms=null share of normal images above" in "\n".join(lines)
