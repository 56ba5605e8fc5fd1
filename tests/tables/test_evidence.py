"""The status of every method must be supported by existing tests, comparisons and pages."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from anomaly_bench.config.parts import packaged_node, without_target
from anomaly_bench.config.settings import STATUSES, choices, conf_folder
from anomaly_bench.errors import DataError
from anomaly_bench.published import publications
from anomaly_bench.tables.aggregate import RECONSTRUCTION
from anomaly_bench.tables.evidence import SHARED_PARTS, read_parity

ROOT = Path(__file__).parents[2]
METHODS = choices("method", [conf_folder()])
COMPARISONS = json.loads((ROOT / "results" / "parity.json").read_text(encoding="utf-8"))["comparisons"]


def evidence(name):
    return packaged_node("method", name)["about"]["evidence"]


def missing(names, root=ROOT):
    """Those of the names 'tests/test_x.py::test_y' that no file contains."""
    gone = []
    for name in names:
        file, _, function = name.partition("::")
        path = root / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        if function not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]:
            gone.append(name)
    return gone


@pytest.mark.parametrize("name", METHODS)
def test_status_is_supported_by_the_evidence(name):
    listed = evidence(name)
    assert listed.keys() <= {"status", "choices", "out_of_reach", "tests"}
    assert listed["status"] in STATUSES
    peers = [row["peer"] for row in COMPARISONS if row["method"] == name]
    assert listed["tests"]
    assert missing(listed["tests"]) == [], f"conf/method/{name}.yaml names tests that are gone"
    if listed["status"] == "parity":
        assert any(peer.startswith("authors") for peer in peers)
    if listed["status"] == "parity_third_party":
        assert any(not peer.startswith(("torch", "an independent")) for peer in peers)
    if listed["status"] == "reconstruction":
        assert listed["choices"]


def test_what_is_out_of_reach_is_on_the_page(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = command("references", "evidence", "format=md")[1]
    said = {name: evidence(name)["out_of_reach"] for name in METHODS if "out_of_reach" in evidence(name)}
    assert {"kde", "dsvdd", "fcdd", "geom", "gradcon", "lsa", "n_pad", "ocgan", "panda"} <= said.keys()
    for name, text in said.items():
        part = page.partition(f"\n### {packaged_node('method', name)['about']['title']}\n")[2].partition("\n### ")[0]
        assert f"\nOut of reach here: {text}.\n" in part
        assert not text.endswith(".")


def test_every_paper_has_a_date():
    for name, known in publications().items():
        assert known.paper, name
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", known.date), name
        assert not known.arxiv or known.date == f"20{known.arxiv[:2]}-{known.arxiv[2:4]}", name


@pytest.mark.parametrize("name", METHODS)
def test_footnotes_are_about_settings_of_the_method(name):
    node = packaged_node("method", name)
    for footnote in node["about"].get("footnotes", []):
        assert footnote.keys() == {"setting", "value", "note"}
        assert footnote["setting"] in node


def test_removed_test_is_detected(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_here(): ...\n")
    names = ["tests/test_x.py::test_here", "tests/test_x.py::test_gone", "tests/test_y.py::test_here"]
    assert missing(names, tmp_path) == names[1:]


def test_every_comparison_is_within_bounds_and_of_an_existing_method():
    assert {row["method"] for row in COMPARISONS} <= {*METHODS, *SHARED_PARTS}
    for row in COMPARISONS:
        assert row["difference"] <= row["bound"] <= 1e-3, row
        assert row["bound"] <= 1e-5 or row["remark"], row


def test_committed_page_is_up_to_date(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = command("references", "evidence", "format=md")
    assert status == 0
    assert out == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), (
        "anomaly-bench references evidence format=md out=docs/evidence.md regenerates it"
    )
    titles = [packaged_node("method", name)["about"]["title"] for name in METHODS]
    rows = out.partition("## In detail")[0]
    assert all(f"| [{title}](#" in rows and f"\n### {title}\n" in out for title in titles)


def test_method_missing_from_the_list_of_papers(command, monkeypatch):
    monkeypatch.setattr("anomaly_bench.tables.evidence.publications", dict)
    status, _, err = command("references", "evidence", "format=md")
    assert status == 2
    assert "published/methods.csv has no line for adtr: add its name, title, arXiv number, paper and date" in err


def test_records_exclude_the_evidence():
    kept = without_target("method", packaged_node("method", "padim"))
    assert kept["about"].keys() == evidence_free("padim")
    assert "evidence" in packaged_node("method", "padim")["about"]


def evidence_free(name):
    return packaged_node("method", name)["about"].keys() - {"evidence"}


def test_missing_table_is_reported(tmp_path, command):
    with pytest.raises(DataError, match="make parity"):
        read_parity(tmp_path / "parity.json")
    status, _, err = command("references", "evidence", f"results={tmp_path}")
    assert status == 2
    assert "make parity" in err


def test_tables_mark_reconstructions_and_nothing_else(command):
    status, out, _ = command("tables", f"results={ROOT / 'results'}", "table=summary", "allow_mixed=true", "format=md")
    assert status == 0
    titles = {packaged_node("method", name)["about"]["title"]: name for name in METHODS}
    shown, marked = set(), set()
    for table in out.split("\n**"):
        mark = re.search(rf"<sup>(\w+)</sup> {re.escape(RECONSTRUCTION)}", table)
        of_all = f"A{RECONSTRUCTION[1:]}" in table  # a note of the whole table
        for method, *stub in re.findall(r"^\| ([^|]+?) +\| ([^|]*?) *\| ([^|]*?) *\|", table, re.MULTILINE):
            name = titles.get(re.split(r"<sup>| \(", method)[0])
            letters = re.findall(r"<sup>([a-z,]+)</sup>", method + "".join(stub))  # after the last of a row's names
            shown |= {name} - {None}
            marked |= {name} - {None} if of_all or (mark and mark[1] in ",".join(letters).split(",")) else set()
    assert {"padim", "ae_l2"} <= shown
    assert marked == {name for name in shown if evidence(name)["status"] == "reconstruction"}
