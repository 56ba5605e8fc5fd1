"""`records check` and `records merge`: what cannot be true is named; nothing is overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly_bench import records
from anomaly_bench.records import consistency

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def honest():
    """A committed record of a real run, with maps."""
    return records.load(sorted((RESULTS / "records" / "mvtec").rglob("*.json"))[0])


def with_values(record, **values):
    return replace(record, metrics=record.metrics | {k: {**record.metrics[k], "value": v} for k, v in values.items()})


def test_committed_records_are_sound():
    count, found = consistency.check_records(RESULTS)
    assert (count > 10, found) == (True, [])


def test_impossible_values_are_named(honest):
    assert list(consistency.faults(honest)) == []
    assert len(honest.curves["pro"]["x"]) > 100
    constant = [{**image, "score": 1.0} for image in honest.images]
    pixel = honest.value("pixel_auroc")
    for changed, fault in (
        (with_values(honest, pro=1.2), "PRO is 1.2; expected 0 to 1"),
        (with_values(honest, pro=pixel), f"PRO and pixel AUROC are both {pixel:g}"),
        (with_values(honest, pro=0.9, pixel_auroc=0.91), "PRO is 0.9; the area under its curve is 0."),
        (with_values(honest, pixel_auroc=0.5), "pixel AUROC is 0.5 exactly: of constant maps"),
        (replace(honest, images=constant), f"all {len(constant)} image scores are 1: the method told no image"),
        (replace(honest, counts=honest.counts | {"defects": 0}), "counts.defects is 0; the list of images has"),
        (with_values(honest, image_auroc=0.123), "image AUROC is 0.123; the image scores give"),
    ):
        assert [each for each in consistency.faults(changed) if each.startswith(fault)], fault


def test_a_folder_is_checked(honest, command, tmp_path):
    path = records.save(honest, tmp_path)
    assert command("records", "check", str(tmp_path)) == (0, f"{tmp_path}: 1 records, 0 faults\n", "")
    path.rename(path.with_name("moved.json"))
    path.with_name("cut.json").write_text(path.with_name("moved.json").read_text()[:-9])
    status, out, _ = command("records", "check", str(tmp_path))
    assert status == 1
    assert f"moved.json: expected at {path}, by its content" in out
    assert "cut.json: not a record" in out
    assert command("records", "check", str(tmp_path / "nothing"))[0] == 2
    assert command("records", "check")[0] == 2


def test_results_folders_are_merged(honest, command, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    path = records.save(honest, a)
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "maps.npy").write_bytes(b"maps")
    records.save(honest, b)
    other = records.save(replace(honest, seed=7), b)
    assert command("records", "merge", str(a), str(b), f"into={c}") == (0, f"{c}: 2 records added\n", "")
    assert (c / honest.path.with_suffix("") / "maps.npy").read_bytes() == b"maps"
    assert (c / other.relative_to(b)).read_bytes() == other.read_bytes()
    assert len((c / "results.csv").read_text().splitlines()) == 3
    assert command("records", "merge", str(a), str(b), f"into={c}")[1] == f"{c}: 0 records added\n"
    records.save(with_values(honest, pro=0.25), b)
    status, out, _ = command("records", "merge", str(a), str(b), f"into={tmp_path / 'd'}")
    assert status == 1
    assert f"{path} and {b / honest.path}: the same run with different content" in out
    assert not list((tmp_path / "d").rglob("*.json"))
    assert command("records", "merge", str(a), f"into={c}")[0] == 2
