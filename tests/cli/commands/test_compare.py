"""Paired comparisons: hand-made records, p-values of scipy and by enumeration, the gate and the figure."""

from __future__ import annotations

import csv
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import friedmanchisquare, rankdata, wilcoxon
from test_build import MVTEC, record, trained

from anomaly_bench import records
from anomaly_bench.comparison.gate import read_conditions
from anomaly_bench.comparison.significance import holm, p_value
from anomaly_bench.errors import UsageError

CATEGORIES = list(MVTEC)[:7]
A = [90.0, 91.5, 80.25, 99.0, 70.0, 85.0, 95.0]
B = [91.0, 93.5, 83.25, 99.0, 66.0, 90.0, 101.0 - 0.5]
STEPS = [1.0, 2.0, 3.0, 0.0, -4.0, 5.0, 5.5]  # B - A


def fill(folder, points, method="padim", seeds=(0,), categories=CATEGORIES, **more):
    """Records of one method whose mean over seeds is `points`."""
    middle = (len(seeds) - 1) / 2
    for name, value in zip(categories, points, strict=True):
        for place, seed in enumerate(seeds):
            own = None if value is None else value + (place - middle) * 0.5
            records.save(record((own, own, None), name, method, seed=seed, **more), folder)
    return folder


@pytest.fixture
def two(tmp_path):
    return fill(tmp_path / "a", A, seeds=(0, 1, 2)), fill(tmp_path / "b", B, seeds=(0, 1))


def values(text, table="compare-pairs"):
    """(row, column) -> value of `format=csv`."""
    rows = csv.DictReader(io.StringIO(text))
    return {(row["row"], row["column"]): row["value"] for row in rows if row["table"] == table}


def enumerated(differences):
    """The two-sided p-value of the signed-rank test by enumerating signs; zeros dropped, ties share their rank."""
    kept = [value for value in differences if value]
    ranks = rankdata(np.abs(kept))
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in all_signs(len(kept))]
    found = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    tail = min(np.mean([each <= found + 1e-9 for each in sums]), np.mean([each >= found - 1e-9 for each in sums]))
    return min(1.0, 2 * tail)


def all_signs(count):
    return itertools.product((False, True), repeat=count)


def test_p_value_by_hand_by_scipy_and_by_enumeration():
    all_up = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert p_value(all_up) == pytest.approx(2 / 2**6)
    assert p_value(STEPS) == pytest.approx(float(wilcoxon(STEPS).pvalue)) == pytest.approx(enumerated(STEPS))
    assert p_value([0.0] * 8) == 1.0
    assert p_value(all_up[:5]) is None


@pytest.mark.parametrize("zeros", [0, 1])
def test_p_value_of_scipy_for_every_number_of_categories(zeros):
    random = np.random.default_rng(0)
    for count in (6, 8, 14, 20, 60):
        values = [*random.normal(0.5, 1, count - zeros).tolist(), *[0.0] * zeros]
        assert p_value(values) == pytest.approx(float(wilcoxon(values).pvalue))


@given(st.lists(st.integers(-4, 4).map(float), min_size=6, max_size=9).filter(any))
def test_ties_and_zeros_are_exact_in_small_samples(differences):
    assert p_value(differences) == pytest.approx(enumerated(differences))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_lowers(p):
    adjusted = holm(p)
    assert all(one <= two <= 1 for one, two in zip(p, adjusted, strict=True))
    assert sorted(adjusted) == [adjusted[place] for place in np.argsort(p, kind="stable")]
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))


def test_two_folders(two, command):
    words = ("compare", f"a={two[0]}", f"b={two[1]}", "metric=image_auroc")
    status, out, err = command(*words, "format=csv")
    assert (status, err) == (0, "")
    found = values(out)
    row = "image AUROC / PaDiM on WRN50: b − a"
    assert found[row, "Mean"] == f"+{np.mean(STEPS):.2f}"
    assert [found[row, f"Categories / {name}"] for name in ("all", "higher", "equal", "lower")] == ["7", "5", "1", "1"]
    assert found[row, "Seeds"] == "3, 2"
    assert float(found[row, "Wilcoxon / p"]) == pytest.approx(float(wilcoxon(STEPS).pvalue), rel=5e-3)
    assert not any("Holm" in column for _, column in found), "one pair needs no correction"
    side = values(out, "compare-image_auroc")
    shown = [side["carpet", f"PaDiM on WRN50 / {name}"] for name in ("a", "b", "b − a")]
    assert shown == ["90.00", "91.00", "+1.00"], "seeds are averaged first"
    assert side["wood", "PaDiM on WRN50 / b − a"] == "−4.00"
    for text in ("Wilcoxon's signed-rank test", "Mean  all", "in a: mean of 3 seeds (0, 1, 2)", "b: mean of 2 seeds"):
        assert " ".join(text.split()) in " ".join(command(*words)[1].split())


@pytest.mark.parametrize("format", ["console", "md", "latex"])
def test_formats_and_a_file(two, command, tmp_path, format):
    words = ("compare", f"a={two[0]}", f"b={two[1]}", f"format={format}")
    printed = command(*words)[1]
    assert command(*words, f"out={tmp_path / 'x'}")[:2] == (0, "")
    assert (tmp_path / "x").read_text(encoding="utf-8") == printed
    assert "no pair shares a category with values" in " ".join(printed.split()), "PRO has no values"


def test_no_p_value_under_six_categories(tmp_path, command):
    a, b = (fill(tmp_path / key, points[:5], categories=CATEGORIES[:5]) for key, points in (("a", A), ("b", B)))
    status, out, _ = command("compare", f"a={a}", f"b={b}", "metric=image_auroc")
    assert status == 0
    assert "No p-value below 6 categories: with 5 the smallest the test can give is 0.0625" in out
    assert out.splitlines()[-3].split()[-1] != "p"
    assert (
        values(command("compare", f"a={a}", f"b={b}", "format=csv")[1])[
            "image AUROC / PaDiM on WRN50: b − a", "Wilcoxon / p"
        ]
        == "–"
    )


def test_changed_settings_are_paired_and_named(tmp_path, command):
    a = fill(tmp_path / "a", A, settings={"dims": 100})
    b = fill(tmp_path / "b", B, settings={"dims": 50})
    out = command("compare", f"a={a}", f"b={b}")[1]
    assert "PaDiM on WRN50: dims 100 in a, 50 in b." in out
    fill(a, A, "patchcore")
    fill(b, B, "spade")
    out = command("compare", f"a={a}", f"b={b}")[1]
    assert "PatchCore on WRN50: no record in b." in out
    assert "spade on WRN50: in b only." in out


def test_several_settings_of_a_method_are_paired_by_their_values(tmp_path, command):
    for dims, shift in ((50, 1.0), (100, 2.0)):
        fill(tmp_path / "a", A, settings={"dims": dims})
        fill(tmp_path / "b", [value - shift for value in A], settings={"dims": dims})
    found = values(command("compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "format=csv")[1])
    assert found["image AUROC / PaDiM (dims=50) on WRN50: b − a", "Mean"] == "−1.00"
    assert found["image AUROC / PaDiM (dims=100) on WRN50: b − a", "Mean"] == "−2.00"


def test_two_methods_alone_in_their_folders(tmp_path, command):
    a, b = fill(tmp_path / "a", A), fill(tmp_path / "b", B, "patchcore")
    found = values(command("compare", f"a={a}", f"b={b}", "format=csv")[1])
    assert found["image AUROC / PatchCore on WRN50 in b − PaDiM on WRN50 in a", "Seeds"] == "1"


def test_incompatible_records(tmp_path, command):
    a = fill(tmp_path / "a", A)
    b = fill(tmp_path / "b", B, input={"resize": [128, 128], "crop": None})
    status, out, err = command("compare", f"a={a}", f"b={b}")
    assert (status, out) == (2, "")
    assert "no setup in both: a has mvtec-unified-256x256; b has mvtec-unified-128x128; allow_mixed=true" in err
    status, out, _ = command("compare", f"a={a}", f"b={b}", "allow_mixed=true")
    assert status == 0
    assert "several setups" in out
    assert "input.resize [256, 256] in a, [128, 128] in b" in " ".join(out.split())
    fewer = fill(tmp_path / "c", B, counts={"fit": 10, "test": 9, "defects": 5})
    status, _, err = command("compare", f"a={a}", f"b={fewer}")
    assert status == 2
    assert "bottle: test images 10 of PaDiM on WRN50 in a, 9 of PaDiM on WRN50 in b (and 6 more" in err


def test_records_of_other_images(tmp_path, command):
    def of(fit, test):
        return {"fit": fit * 64, "test": test * 64}

    a, old = fill(tmp_path / "a", A, hashes=of("1", "2")), fill(tmp_path / "old", A)
    status, _, err = command("compare", f"a={a}", f"b={fill(tmp_path / 'b', B, hashes=of('1', '3'))}")
    assert status == 2
    assert "bottle: content of the test images 22222222 of PaDiM on WRN50 in a, 33333333 of" in err
    status, out, _ = command("compare", f"a={a}", f"b={tmp_path / 'b'}", "allow_mixed=true")
    assert status == 0
    assert "content of the test images" in " ".join(out.split())
    status, out, _ = command("compare", f"a={a}", f"b={fill(tmp_path / 'c', B, hashes=of('4', '2'))}")
    assert status == 0
    trained = "Other training images in PaDiM on WRN50 in b than in PaDiM on WRN50 in a: bottle"
    assert trained.casefold() in " ".join(out.split()).casefold()
    status, out, _ = command("compare", f"a={a}", f"b={old}")
    assert status == 0, "an older record is of unknown images"
    assert "images in" not in out
    both = fill(tmp_path / "both", A, hashes=of("1", "2"))
    fill(both, B, seeds=(1,), hashes=of("1", "3"))
    status, out, _ = command("compare", f"a={a}", f"b={both}", "format=csv")
    assert status == 0, "those of the same images are compared"
    assert set(values(out).values()) & {"+0.00", "0.00"}


def test_metrics_of_another_revision(tmp_path, command):
    old = {"image_auroc": {"value": 0.9, "revision": 0}}
    a, b = fill(tmp_path / "a", A), fill(tmp_path / "b", B, metrics=old)
    status, _, err = command("compare", f"a={a}", f"b={b}")
    assert status == 2
    assert "revision of image_auroc 1 of PaDiM on WRN50 in a, 0 of" in err
    assert command("compare", f"a={a}", f"b={a}", "metric=pixel_auroc", "fail_if=image_auroc drops 1")[0] == 0
    status, _, err = command("compare", f"a={a}", f"b={b}", "fail_if=pixel_auroc drops 1", "allow_mixed=true")
    assert status == 2
    assert "no record in b has a value of pixel_auroc" in err


@pytest.fixture
def many(tmp_path):
    random = np.random.default_rng(0)
    for place, method in enumerate(("padim", "patchcore", "spade", "stfpm")):
        points = [float(value) for value in (80 + 3 * place + random.normal(0, 1, len(CATEGORIES))).round(2)]
        fill(tmp_path / "many", points, method, seeds=(0, 1))
    return tmp_path / "many"


def test_methods_of_one_folder(many, command):
    words = ("compare", f"results={many}", "metric=image_auroc", "format=csv")
    status, out, _ = command(*words)
    assert status == 0
    found = values(out)
    p = {row: float(value) for (row, column), value in found.items() if column == "Wilcoxon / p"}
    corrected = {row: float(value) for (row, column), value in found.items() if column == "Wilcoxon / p (Holm)"}
    assert len(p) == 6
    assert list(corrected.values()) == pytest.approx(holm(list(p.values())), rel=1e-2)
    assert "corrected for the 6 pairs" in command(*words[:-1])[1]
    chosen = command(*words, "methods=[padim,spade]")[1]
    assert chosen == command(*words, "method=[padim,spade]")[1]
    assert {row for row, _ in values(chosen)} == {"image AUROC / spade on WRN50 − PaDiM on WRN50"}


def test_less_training_is_not_tested_against_full_training(many, command):
    fill(many, A, "fastflow", training=trained(25), seeds=(0, 1))
    status, out, _ = command("compare", f"results={many}", "metric=image_auroc", "format=csv")
    assert status == 0
    p = {row: value for (row, column), value in values(out).items() if column == "Wilcoxon / p"}
    assert {row for row, value in p.items() if value != "–"} == {row for row in p if "fastflow" not in row}
    assert len(p) == 10
    text = command("compare", f"results={many}", "metric=image_auroc")[1]
    text = " ".join(text.split())
    assert "fastflow on WRN50: trained for 25 of 200 epochs, 12.5 %." in text
    assert "No p-value where only one of two methods was trained as published." in text
    assert "No p-value below" not in text
    assert "corrected for the 6 pairs" in text


def test_less_training_has_no_mean_rank_among_full_training(many):
    from anomaly_bench.comparison.significance import Side, mean_ranks
    from anomaly_bench.tables.entries import group_records

    fill(many, A, "fastflow", training=trained(25), seeds=(0, 1))
    sides = [Side(entry.name, entry) for entry in group_records(records.load_all(many)[0], with_speed=False)]
    found = mean_ranks(sides, "image_auroc")
    assert len(found.ranks) == 4
    assert found.left_out == ("fastflow on WRN50",)


def test_setups_of_one_folder_are_not_mixed(many, command):
    fill(many, A, "cflow", input={"resize": [128, 128], "crop": None})
    assert "128" not in command("compare", f"results={many}")[1], "a single method is compared with nothing"
    status, _, err = command("compare", f"results={many}", "method=[cflow,padim]")
    assert status == 2
    assert "nothing to compare; expected two methods" in err
    assert command("compare", f"results={many}", "method=[cflow,padim]", "allow_mixed=true")[0] == 0


def test_figure(many, command, tmp_path):
    pytest.importorskip("scikit_posthocs")
    words = ("compare", f"results={many}", "metric=[image_auroc,pixel_auroc]")
    for suffix in ("svg", "pdf", "png"):
        assert command(*words, f"figure={tmp_path / 'cd'}.{suffix}")[0] == 0
    drawn = (tmp_path / "cd.svg").read_text(encoding="utf-8")
    for text in ("PaDiM on WRN50", "1.00", "image AUROC, 7 categories, Friedman p = ", "Wilcoxon", "Holm"):
        assert text in drawn
    assert (tmp_path / "cd.pdf").read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(tmp_path / "cd.png").convert("RGB"))
    assert (pixels.std(axis=(0, 1)) > 10).all()
    before = (tmp_path / "cd.svg").read_bytes()
    command(*words, f"figure={tmp_path / 'cd.svg'}")
    assert before == (tmp_path / "cd.svg").read_bytes()


def test_ranking_uses_categories_common_to_all_methods(many):
    from anomaly_bench.comparison.significance import Side, mean_ranks
    from anomaly_bench.tables.entries import group_records

    sides = [Side(entry.name, entry) for entry in group_records(records.load_all(many)[0], with_speed=False)]
    found = mean_ranks(sides, "image_auroc")
    points = np.array([list(side.points("image_auroc").values()) for side in sides])
    assert list(found.ranks.values()) == pytest.approx(rankdata(-points, axis=0).mean(axis=1))
    assert found.friedman == pytest.approx(friedmanchisquare(*points).pvalue)
    assert (found.p == found.p.T).all()
    with pytest.raises(UsageError, match="pro of 0 methods on 0 shared categories; expected at least 3 methods and 6"):
        mean_ranks(sides, "pro")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure=x.svg", "method=[padim,spade]"], "2 methods on 7 shared categories; expected at least 3 methods"),
        (["figure=x.jpg"], "figure=x.jpg: expected a name that ends in .svg, .pdf, .png"),
        (["metric=image_aurok"], "metric=image_aurok: no such metric; did you mean image_auroc"),
        (["metric=pro"], "no record has a value of it; recorded: image_auroc, pixel_auroc"),
        (["metric=[]"], "metric=[]: expected at least one"),
        (["method=padin"], "method=padin: no record of it; did you mean padim or spade?"),
        (["fail_if='image_auroc drops 1'"], "needs a=DIR b=DIR"),
        (["mtric=pro"], "mtric: no such key; did you mean metric"),
    ],
)
def test_invalid_arguments(many, command, words, message):
    status, out, err = command("compare", f"results={many}", "metric=image_auroc", *words)
    assert (status, out) == (2, "")
    assert message in err


def test_gates_and_rankings_need_a_metric_whose_highest_is_best(tmp_path, command):
    metrics = {"image_false_alarms": {"value": 0.05, "revision": 1}}
    for method in ("padim", "patchcore", "spade"):
        fill(tmp_path, A, method, metrics=metrics)
    gate = "fail_if=image_false_alarms drops 1"
    for words in ([f"results={tmp_path}", "figure=x.svg"], [f"a={tmp_path}", f"b={tmp_path}", gate]):
        status, _, err = command("compare", "metric=image_false_alarms", *words)
        assert status == 2
        assert "a higher image_false_alarms is not a better one; choose a metric whose highest is best" in err


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("image_auroc drops 0.5", True),
        ("image_auroc drops 0.51", False),
        ("pixel_auroc drops 0.1;image_auroc drops 0.4", True),
        ("['image_auroc drops 9','any image_auroc drops 3.5']", True),
        ("any image_auroc drops 3.6", False),
    ],
)
def test_gate(tmp_path, command, condition, holds):
    a = fill(tmp_path / "a", A)
    b = fill(tmp_path / "b", [A[0] - 3.5, *A[1:]])
    status, _, err = command("compare", f"a={a}", f"b={b}", f"fail_if={condition}")
    assert status == (1 if holds else 0)
    assert err.count("failed:") == (2 if "pixel" in condition else holds)
    if condition == "image_auroc drops 0.5":
        assert "image_auroc drops 0.5: by 0.50, from 87.25 to 86.75 (PaDiM on WRN50" in err
    if "any" in condition and holds:
        assert "any image_auroc drops 3.5: carpet by 3.50, from 90.00 to 86.50" in err


def test_gate_reports_what_is_missing_in_b(tmp_path, command):
    a = fill(fill(tmp_path / "a", A), A, "patchcore")
    b = fill(tmp_path / "b", A[:5], categories=CATEGORIES[:5])
    status, _, err = command("compare", f"a={a}", f"b={b}", "fail_if=image_auroc drops 90")
    assert status == 1
    assert err.splitlines() == [
        "failed: PatchCore on WRN50: no record in b",
        "failed: image_auroc: no value in b of bottle, cable (PaDiM on WRN50, mvtec-unified-256x256)",
    ]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("image_auroc falls 1", "cannot be read; expected METRIC drops POINTS"),
        ("image_auroc drops 0", "found 0, expected points above 0"),
        ("image_auroc drops 1%", "cannot be read"),
        ("image_aurok drops 1", "fail_if=image_aurok: no such metric; did you mean image_auroc"),
        ("pro drops 1", "no record in a has a value of pro"),
        (";", "no condition"),
    ],
)
def test_gate_that_cannot_be_evaluated(two, command, condition, message):
    status, _, err = command("compare", f"a={two[0]}", f"b={two[1]}", f"fail_if={condition}")
    assert status == 2
    assert message in err


def test_results_with_two_folders_is_rejected(two, command):
    assert "a=DIR is missing: expected two results folders" in command("compare", f"b={two[1]}")[2]
    status, _, err = command("compare", f"a={two[0]}", f"b={two[1]}", "results=elsewhere")
    assert status == 2
    assert "results=elsewhere has no effect with a=DIR b=DIR" in err


def test_conditions_round_trip_through_str():
    for text in ("image_auroc drops 0.5", "any pro drops 2"):
        assert str(*read_conditions(text)) == text
    assert read_conditions(None) == []


def test_compare_does_not_import_torch(two):
    code = (
        "import sys; from anomaly_bench.cli.main import command; status = command(sys.argv[1:]);"
        "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules), 'a slow import'; sys.exit(status)"
    )
    words = ["compare", f"a={two[0]}", f"b={two[1]}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
