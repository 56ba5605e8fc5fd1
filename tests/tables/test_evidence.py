"""The status of every method, held to the tests, comparisons and pages that exist."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from anomaly_bench.config.parts import packaged_node, without_target
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import DataError
from anomaly_bench.tables.aggregate import RECONSTRUCTION
from anomaly_bench.tables.evidence import SHARED_PARTS, STATUSES, read_parity

ROOT = Path(__file__).parents[2]
METHODS = choices("method", [conf_folder()])
COMPARISONS = json.loads((ROOT / "results" / "parity.json").read_text(encoding="utf-8"))["comparisons"]


def evidence(name):
    return packaged_node("method", name)["about"]["evidence"]


def missing(names, root=ROOT):
    """Of 'tests/test_x.py::test_y', those that no file has."""
    gone = []
    for name in names:
        file, _, function = name.partition("::")
        path = root / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        if function not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]:
            gone.append(name)
    return gone


@pytest.mark.parametrize("name", METHODS)
def test_a_status_is_one_that_the_evidence_bears_out(name):
    told = evidence(name)
    assert told.keys() <= {"status", "choices", "tests"}
    assert told["status"] in STATUSES
    peers = [row["peer"] for row in COMPARISONS if row["method"] == name]
    assert told["tests"]
    assert missing(told["tests"]) == [], f"conf/method/{name}.yaml names tests that are gone"
    if told["status"] == "parity":
        assert any(peer.startswith("authors") for peer in peers)
    if told["status"] == "parity_third_party":
        assert any(not peer.startswith(("torch", "an independent")) for peer in peers)
    if told["status"] == "reconstruction":
        assert told["choices"]


def test_a_test_that_is_gone_is_missed(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_here(): ...\n")
    names = ["tests/test_x.py::test_here", "tests/test_x.py::test_gone", "tests/test_y.py::test_here"]
    assert missing(names, tmp_path) == names[1:]


def test_every_comparison_is_within_its_bound_and_of_a_method_that_exists():
    assert {row["method"] for row in COMPARISONS} <= {*METHODS, *SHARED_PARTS}
    for row in COMPARISONS:
        assert row["difference"] <= row["bound"] <= 1e-3, row
        assert row["bound"] <= 1e-5 or row["remark"], row


def test_the_committed_page_is_what_the_command_makes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = command("references", "evidence", "format=md")
    assert status == 0
    assert out == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), (
        "anomaly-bench references evidence format=md out=docs/evidence.md makes it anew"
    )
    titles = [packaged_node("method", name)["about"]["title"] for name in METHODS]
    rows = out.partition("## In detail")[0]
    assert all(f"| [{title}](#" in rows and f"\n### {title}\n" in out for title in titles)


def test_a_method_without_a_line_of_its_paper_is_named(command, monkeypatch):
    monkeypatch.setattr("anomaly_bench.tables.evidence.publications", dict)
    status, _, err = command("references", "evidence", "format=md")
    assert status == 2
    assert "published/methods.csv has no line for ae_l2: add its name, title and arXiv number" in err


def test_records_do_not_keep_the_evidence():
    kept = without_target("method", packaged_node("method", "padim"))
    assert kept["about"].keys() == evidence_free("padim")
    assert "evidence" in packaged_node("method", "padim")["about"]


def evidence_free(name):
    return packaged_node("method", name)["about"].keys() - {"evidence"}


def test_a_missing_table_is_said(tmp_path, command):
    with pytest.raises(DataError, match="make parity"):
        read_parity(tmp_path / "parity.json")
    status, _, err = command("references", "evidence", f"results={tmp_path}")
    assert status == 2
    assert "make parity" in err


def test_tables_mark_reconstructions_and_nothing_else(command):
    status, out, _ = command("tables", f"results={ROOT / 'results'}", "table=summary", "allow_mixed=true", "format=md")
    assert status == 0
    note = next(line for line in out.splitlines() if RECONSTRUCTION in line)
    mark = note.partition("<sup>")[2].partition("</sup>")[0]
    marked = {
        name for name in METHODS if f"| {packaged_node('method', name)['about']['title']}<sup>{mark}</sup> " in out
    }
    assert marked == {name for name in METHODS if evidence(name)["status"] == "reconstruction"}
