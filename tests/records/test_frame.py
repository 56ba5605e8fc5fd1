"""`anomaly_bench.load_results`: one row per record, or one per record and metric."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import make_category

import anomaly_bench
from anomaly_bench import records
from anomaly_bench.cli.main import command as call
from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.registry import standard_metrics
from anomaly_bench.records.frame import FACTS
from anomaly_bench.records.results_csv import CSV_COLUMNS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two records, the second without masks and with a user-defined metric."""
    folder = tmp_path_factory.mktemp("frame")
    make_category(folder / "data" / "cog")
    words = ["dataset=folder", f"data_root={folder / 'data'}", f"results={folder / 'results'}", "input.resize=64"]
    assert call([*words, "speed=false", "gallery=0"]) == 0
    (record,), _ = records.load_all(folder / "results")
    own = {"value": 0.25, "revision": 3, "title": "Mine", "level": "image", "unit": "%", "digits": 1}
    metrics = {**record.metrics, "pro": {"value": None, "revision": 1}, "mine": own}
    records.save(replace(record, seed=1, fingerprint="0" * 64, metrics=metrics), folder / "results")
    return folder / "results"


def test_one_row_per_record(results):
    frame = anomaly_bench.load_results(results)
    assert list(frame.columns) == [*CSV_COLUMNS, "mine", *FACTS]
    assert list(frame["seed"]) == [0, 1]
    assert set(frame["setup"]) == {"data-unified-64x64"}
    assert set(frame["task_kind"]) == {"one_class"}
    assert list(frame["mine"].isna()) == [True, False]
    assert frame["pro"].dtype == float
    assert math.isnan(frame["pro"][1])
    (first, _), _ = records.load_all(results)
    assert frame["image_auroc"][0] == first.value("image_auroc")


def test_the_same_as_results_csv(results):
    with (results / "results.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    frame = anomaly_bench.load_results(results).iloc[0]
    csv_row = {name: value for name, value in row.items() if value}
    numbers = {name for name in csv_row if isinstance(frame[name], (int, float)) and not isinstance(frame[name], bool)}
    assert {name: float(csv_row[name]) for name in numbers} == {name: float(frame[name]) for name in numbers}
    assert {name: csv_row[name] for name in csv_row.keys() - numbers} == {
        name: str(frame[name]) for name in csv_row.keys() - numbers
    }


def test_one_row_per_metric(results):
    frame = anomaly_bench.load_results(str(results), long=True)
    assert len(frame) == 2 * len(standard_metrics()) + 1
    assert not {*standard_metrics(), "mine"} & set(frame.columns)
    mine = frame[frame["metric"] == "mine"].iloc[0]
    assert (mine["value"], mine["revision"], mine["seed"]) == (0.25, 3, 1)
    assert frame.groupby("metric")["value"].count()["pro"] == 1


def test_empty_and_damaged_results(tmp_path):
    with pytest.raises(UsageError, match=r"none: no such folder; expected one written by anomaly-bench"):
        anomaly_bench.load_results(tmp_path / "none")
    assert list(anomaly_bench.load_results(tmp_path).columns) == [*CSV_COLUMNS, *FACTS]
    assert anomaly_bench.load_results(tmp_path, long=True).empty
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "bad.json").write_text("{")
    with pytest.warns(UserWarning, match=r"bad.json: not a record"):
        assert anomaly_bench.load_results(tmp_path).empty


def test_pandas_is_imported_lazily():
    code = "import anomaly_bench, sys; import anomaly_bench.cli.main; print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
