"""`score maps= labels=`: the same scores and maps under corrected labels, without a model."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_category
from PIL import Image

from anomaly_bench import records
from anomaly_bench.cli.main import command as call
from anomaly_bench.data.dataset import Sample, Source
from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.protocol import Outcome
from anomaly_bench.runs.corrected_labels import Correction, read_labels

SETTINGS = ("dataset=folder", "input.resize=64", "speed=false", "gallery=0", "save_maps=true", "threads=1")
NEW = "cog/test/good/000.png"  # becomes defective


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two categories, with the records and maps of two methods without a backbone."""
    root = tmp_path_factory.mktemp("made")
    for name in ("cog", "mat"):
        make_category(root / "data" / name)
    where = [f"data_root={root / 'data'}", f"results={root / 'results'}"]
    assert call([*SETTINGS, *where, "method=variation_model"]) == 0
    assert call([*SETTINGS, *where, "method=ae_l2", "budget=2", "method.samples=8"]) == 0
    return root / "data", root / "results"


@pytest.fixture
def run(made, command, tmp_path):
    """Writes labels.csv with these rows, and computes metrics under them."""

    def write(rows, *words):
        with (tmp_path / "labels.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [("file", "label", "mask", "reason", "old_label"), *([*row, ""][:5] for row in rows)]
            )
        where = (f"maps={made[1]}", f"data_root={made[0]}", f"labels={tmp_path / 'labels.csv'}")
        return command("score", *where, "dataset=folder", "threads=1", *words)

    return write


def defect(made):
    """The first defective image of cog."""
    record = next(each for each in records.load_all(made[1])[0] if each.task == "cog")
    return next(f"cog/{image['file']}" for image in record.images if image["defect"])


def mask(folder, side):
    values = np.zeros((side, side), np.uint8)
    values[3:9, 5:20] = 255
    Image.fromarray(values).save(folder / "new.png")


def test_metrics_under_corrected_labels(made, run, tmp_path):
    old = defect(made)
    mask(tmp_path, Image.open(made[0] / NEW).width)
    rows = [(NEW, "scratch", "new.png", "seen at the edge"), (old, "good", "", "dust", "scratch")]
    status, out, _ = run(rows, "update=true", f"out={tmp_path / 'out'}")
    assert status == 0
    assert "images changed" in " ".join(out.split())
    for record in (each for each in records.load_all(made[1])[0]):
        changed = {image["file"]: image["label"] for image in record.corrected["images"]}
        if record.task == "mat":
            assert (changed, record.corrected["metrics"]) == ({}, record.metrics)
            continue
        names = [f"cog/{image['file']}" for image in record.images]
        assert changed == {NEW.removeprefix("cog/"): "scratch", old.removeprefix("cog/"): None}
        labels = np.array([image["defect"] is not None for image in record.images])
        maps = np.load(made[1] / record.path.with_suffix("") / "maps.npy")
        masks = np.stack([resized(made[0], image) for image in record.images])
        labels[names.index(NEW)], labels[names.index(old)] = True, False
        masks[names.index(NEW)], masks[names.index(old)] = resized_file(tmp_path / "new.png"), False
        scores = np.array([image["score"] for image in record.images], np.float32)
        expected = evaluate(Outcome(labels, scores, maps, masks)).values
        found = {name: entry["value"] for name, entry in record.corrected["metrics"].items()}
        assert found == pytest.approx(expected)
        assert any(found[name] != record.value(name) for name in found)
    with (tmp_path / "out" / "metrics.csv").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert [row["changed"] for row in listed if row["category"] == "cog"] == ["2", "2"]
    assert all(row["corrected_pro"] and row["pro"] for row in listed)


def resized(root, image):
    if image["defect"] is None:
        return np.zeros((64, 64), bool)
    stem = image["file"].split("/")[-1].removesuffix(".png")
    return resized_file(root / "cog" / "ground_truth" / image["defect"] / f"{stem}_mask.png")


def resized_file(path):
    return np.asarray(Image.open(path).convert("L").resize((64, 64), Image.Resampling.NEAREST)) > 0


def test_the_table_has_both_values_and_places(made, run, command):
    run([(defect(made), "good", "", "dust")], "update=true")
    status, out, _ = command("tables", f"results={made[1]}", "table=corrected", "format=md")
    assert status == 0
    assert "labels corrected by the file" in out.lower()
    assert "(1" in out, "places among the two methods"
    assert command("tables", f"results={made[1]}", "table=corrected", "format=latex")[0] == 0


def test_without_maps_image_metrics_are_computed(made, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made[1] / "records", copy / "records", ignore=shutil.ignore_patterns("maps.npy"))
    status, out, _ = run([(NEW, "scratch", "", "seen at the edge")], f"maps={copy}")
    assert status == 0
    assert "image AUROC" in out or "Image AUROC" in out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("cog/test/good/0000.png", "scratch", "", "why"), "cog/test/good/0000.png is in no record"),
        ((NEW, "", "", "why"), "has no new label and no new mask"),
        ((NEW, "scratch", "", ""), "without a reason"),
        ((NEW, "scratch", "none.png", "why"), "expected a mask, relative to the CSV"),
        ((NEW, "scratch"), "line 2 has 3 cells, the first has 5"),
        ((NEW, "scratch", "", "why"), "now labelled scratch, without a mask"),
        ((NEW, "", "new.png", "why"), "for a good image"),
    ],
)
def test_bad_rows_are_refused(run, tmp_path, row, message):
    mask(tmp_path, 48)
    status, _, err = run([row])
    assert status != 0
    assert message in err


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-16")]
)
def test_dialects(separator, encoding, tmp_path):
    mask(tmp_path, 48)
    rows = [
        ("FILE", "Reason ", "label", "mask"),
        (NEW, "seen, at the edge", "scratch", "new.png"),
        ("a/b.png", "dust", "good", ""),
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    (tmp_path / "labels.csv").write_bytes(text.getvalue().encode(encoding))
    found = read_labels(tmp_path / "labels.csv")
    expected = Correction(NEW, "scratch", tmp_path / "new.png", "seen, at the edge")
    assert found.rows == {NEW: expected, "a/b.png": Correction("a/b.png", "good", None, "dust")}


@pytest.mark.parametrize("label", ["good", "Good", "OK", "normal"])
def test_good_in_any_case_is_no_defect(label):
    image = Sample("a.png", "spot", (), (Source(Path("mask.png")),))
    assert Correction("a.png", label, None, "dust").applied(image, masked=True) == Sample("a.png", None, ())


def test_no_table_without_corrected_labels(made, command, tmp_path):
    shutil.copytree(made[1], tmp_path / "copy", ignore=shutil.ignore_patterns("maps.npy"))
    for path in (tmp_path / "copy" / "records").rglob("*.json"):
        record = records.load(path)
        record.corrected = None
        records.record.write_record(record, path)
    status, _, err = command("tables", f"results={tmp_path / 'copy'}", "table=corrected")
    assert status == 2
    assert "no record has values under corrected labels; score maps=DIR labels=FILE update=true" in err
