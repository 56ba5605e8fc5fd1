"""The JSON schema of records agrees with what `load` accepts, refuses and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly_bench import load_results, records
from anomaly_bench.files import digest
from anomaly_bench.records import consistency, schema
from anomaly_bench.records.record import DamagedRecord, OlderRecord

RESULTS = Path(__file__).parents[2] / "results"
FILES = sorted((RESULTS / "records").rglob("*.json"))


@pytest.fixture(scope="module")
def validator():
    library = pytest.importorskip("jsonschema", reason="needs jsonschema")
    found = json.loads(schema.FILE.read_text(encoding="utf-8"))
    library.Draft202012Validator.check_schema(found)
    return library.Draft202012Validator(found)


@pytest.fixture
def content():
    return json.loads(FILES[0].read_bytes())


def test_the_file_is_the_types(command):
    status, out, _ = command("records", "schema")
    assert status == 0
    assert json.loads(schema.FILE.read_text(encoding="utf-8")) == json.loads(out), "write it again: records schema"
    assert command("records", "schema", "x")[0] == 2


def test_committed_records_are_valid(validator):
    for path in FILES[::6]:
        validator.validate(json.loads(path.read_bytes()))


CHANGES = {
    "a missing key": lambda content: content.pop("seed"),
    "an unknown key": lambda content: content.update(colour="red"),
    "another schema": lambda content: content.update(schema=3),
    "a negative seed": lambda content: content.update(seed=-1),
    "a text for a number": lambda content: content["metrics"]["pro"].update(value="0.9"),
    "a short fingerprint": lambda content: content.update(fingerprint="ab"),
    "no sizes": lambda content: content["input"].update(resize=[]),
    "half a training": lambda content: content.update(training={"epochs": 3}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_both_refuse(kind, validator, content, tmp_path):
    CHANGES[kind](content)
    del content["checksum"]
    content["checksum"] = digest(content)  # as anybody can compute it
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    assert not validator.is_valid(content)
    with pytest.raises(DamagedRecord):
        records.load(path)


def test_records_of_another_schema_are_refused_in_words(content, tmp_path):
    path = tmp_path / "records" / "record.json"
    path.parent.mkdir()
    for number, todo in (
        (3, "made by a newer version of anomaly-bench: update it"),
        (1, "records convert results=DIR"),
    ):
        path.write_text(json.dumps(content | {"schema": number}))
        with pytest.raises(OlderRecord, match=f"schema {number}, expected 2; .*{todo}"):
            records.load(path)
        assert f"schema {number}, expected 2" in consistency.check_records(tmp_path)[1][0]
        with pytest.warns(UserWarning, match=todo):
            assert len(load_results(tmp_path)) == 0


def test_keys_are_named(content, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**content, "colour": "red"}))
    with pytest.raises(DamagedRecord, match="unknown colour"):
        records.load(path)
    del content["seed"], content["task"]
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedRecord, match="without seed, task"):
        records.load(path)
