"""Records: written completely or not at all, read completely or reported as damaged."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace

import pytest

from anomaly_bench import documents, files, records
from anomaly_bench.files import safe_filename
from anomaly_bench.records import results_csv
from anomaly_bench.records.record import DamagedRecord, Record
from anomaly_bench.records.results_csv import CSV_COLUMNS


@pytest.fixture
def record():
    return Record(
        fingerprint="ab" * 32, dataset="mvtec", task="bottle", test="test", group="objects",
        categories=[{"name": "bottle", "group": "objects"}], method="padim", backbone="lite0",
        titles={"dataset": "MVTec AD", "method": "PaDiM", "backbone": "Lite0"}, seed=3, protocol="unified",
        oracle=False, precision="fp32", input={"resize": [256, 256], "crop": None},
        counts={"fit": 2, "test": 1, "defects": 1, "maps": 1},
        metrics={"image_auroc": {"value": 0.5, "revision": 1}, "pro": {"value": None, "revision": 1}},
        curves={}, images=[], speed=[{"fps": 10.0, "latency_ms": 7.0, "device": "chip", "threads": 2, "batch_size": 8}],
        size={"extra_params": 0, "extra_mb": 0.0, "stored_mb": 1.5},
        cost={"fit_s": 1.0, "score_s": 1.0, "peak_ram_mb": None, "peak_gpu_mb": None, "device": "chip", "threads": 2},
        config={"method": {"name": "mine"}}, provenance={}, regime={"name": "one_class"},
    )  # fmt: skip


def test_record_round_trip(record, tmp_path):
    path = records.save(record, tmp_path)
    assert path.relative_to(tmp_path).as_posix() == "records/mvtec/padim-lite0/bottle-s3-abababab.json"
    assert records.load(path) == record
    assert records.load_all(tmp_path) == ([record], [])
    assert [each.name for each in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_a_record_from_before_input_filter_is_bilinear(record, tmp_path):
    """Its checksum holds, and it is the same record as one that says so."""
    path = records.save(record, tmp_path)
    content = json.loads(path.read_text())
    del content["input"]["filter"], content["checksum"]
    path.write_text(json.dumps({**content, "checksum": files.digest(content)}))
    assert records.load(path) == record
    assert record.input["filter"] == "bilinear"


@pytest.mark.parametrize("damage", ["truncate", "digit", "field", "empty", "list", "binary"])
def test_damage_is_detected(record, tmp_path, damage):
    path = records.save(record, tmp_path)
    text = path.read_text()
    if damage == "field":
        content = json.loads(text)
        del content["seed"]
        text = json.dumps(content)
    changes = {"truncate": text[: len(text) // 2], "digit": text.replace("0.5", "0.9"), "empty": "", "list": "[]"}
    path.write_bytes(b"\xff\x00" if damage == "binary" else changes.get(damage, text).encode())
    with pytest.raises(DamagedRecord, match=r"bottle-s3-abababab\.json"):
        records.load(path)
    found, messages = records.load_all(tmp_path)
    assert (found, len(messages)) == ([], 1)


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_has_no_word_for_are_refused(record, tmp_path, word):
    record.metrics["pro"] = {"value": None, "revision": 1}  # its digest is that of null
    path = records.save(record, tmp_path)
    path.write_text(path.read_text().replace("null", word))
    with pytest.raises(DamagedRecord, match=f"{word}, expected a finite number"):
        records.load(path)


NUMBERS = [0.1, 1e-4, 1e-5, -4.5e-05, 1.5e-7, 3e-300, 5e-324, 10.00001, 1e15, 1e16, 2.5e20, -0.0, 1, 2**70, 1.0]


@pytest.mark.parametrize(
    "value", [*NUMBERS, "é", "a\udc80", "0.00001", "e-5]", "\x7f\n/", None, True, {"b": 1, "a": []}]
)
def test_quick_digests_are_those_of_json(value):
    assert documents.has_digest({"of": [value]}, files.digest({"of": [value]}))
    assert not documents.has_digest({"of": [value]}, files.digest({"of": [value, 0]}))


def test_usual_numbers_need_no_second_digest(monkeypatch):
    usual = [0.1, 1e-4, 1e-5, -4.5e-05, 1.5e-7, 1.25e-10, 1.0, 123456]
    expected = files.digest(usual)
    monkeypatch.setattr(documents, "digest", None)
    assert documents.has_digest(usual, expected)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_results_csv(record, tmp_path):
    path = results_csv.write_csv([record, replace(record, seed=4, speed=[])], tmp_path)
    with path.open() as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == CSV_COLUMNS
    assert (first["category"], first["image_auroc"], first["pro"], first["fps"]) == ("bottle", "0.5", "", "10.0")
    assert (second["seed"], second["fps"], second["device"], second["resize"]) == ("4", "", "chip", "256x256")


@pytest.mark.parametrize("name", ["bottle", "metal_nut", "Gehäuse", "a b", "../up", "con", "NUL.txt", "x:y", "", "."])
def test_file_names_are_legal_on_windows_and_distinct(name):
    found = safe_filename(name)
    assert found.strip(". ")
    assert not set(found) & set('<>:"/\\|?* ')
    assert found.upper().split(".")[0] not in ("CON", "NUL")
    assert (found == name) == (name in ("bottle", "metal_nut"))
    assert safe_filename("a b") != safe_filename("a_b") != safe_filename("a?b")
