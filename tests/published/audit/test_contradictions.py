"""Published numbers: the CSVs against the scanned papers, the loader's errors, and the check for contradictions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from anomaly_bench.config.compose import compose
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.published import CSV_FOLDER, TABLES, Reference, aliases, load_references
from anomaly_bench.published.audit.columns import OBJECTS, TEXTURES, PrintedColumn, printed_columns
from anomaly_bench.published.audit.contradictions import find_contradictions, remainder, tolerance
from anomaly_bench.published.audit.orders import ORDERS, chance_fits, fit, orders_of, ranks
from anomaly_bench.published.audit.page import contradictions_page

ROOT = Path(__file__).parents[3]
SEEDS = ROOT.parent / "shared" / "seeds"
CELLS = {
    "padim2020_III": 18 * 8 * 2,
    "padim2020_IV": 3,
    "padim2020_V": 3,
    "padim2020_VC": 3,
    "zheng2022_1": 18 * 13,
    "zheng2022_2": 18 * 14,
    "zheng2022_3": 6 * 3,
    "zheng2022_4": 6 * 2,
    "zheng2022_5": 11 * 18,
    "zheng2022_6": 11 * 16,
    "npad2022_1": 16 * 7 * 2,
    "npad2022_2": 16 * 7,
    "adtr2022_1": 16 * 14,
    "adtr2022_2": 16 * 9,
    "adtr2022_3": 11 * 13,
    "spade2020_1": 5,
    "spade2020_2": 16 * 8,
}
# table -> scan, start of its first line, number of earlier lines that start so, number of lines
LINES = {
    "padim2020_III": ("000", "Carpet", 0, 18),
    "padim2020_IV": ("000", "AUROC score%", 0, 1),
    "zheng2022_1": ("001", "carpet", 0, 18),
    "zheng2022_2": ("001", "carpet", 1, 18),
    "zheng2022_3": ("001", "SPADE", 0, 6),
    "zheng2022_4": ("001", "DifferNet", 1, 6),
    "zheng2022_5": ("001", "bagel", 0, 11),
    "zheng2022_6": ("001", "bagel", 1, 11),
    "npad2022_1": ("002", "Bottle", 0, 16),
    "npad2022_2": ("002", "FastFlow", 0, 7),
    "adtr2022_1": ("003", "AnoGAN", 0, 14),
    "spade2020_1": ("004", "Average", 0, 1),
    "spade2020_2": ("004", "Carpet", 0, 16),
}
ALL = load_references()


def one(table, name, category, metric=None, variant=""):
    found = [
        cell
        for cell in ALL
        if (cell.table, cell.printed_name, cell.category, cell.variant) == (table, name, category, variant)
        and metric in (None, cell.metric)
    ]
    assert len(found) == 1
    return found[0]


def printed(table, **wanted):
    cells = load_references(table)
    return [cell.printed for cell in cells if all(getattr(cell, key) == text for key, text in wanted.items())]


def test_every_cell_of_every_table_is_present():
    assert {table: len(load_references(table)) for table in TABLES} == CELLS
    assert len(ALL) == sum(CELLS.values()) == 2167


@pytest.mark.parametrize("table", LINES)
def test_csv_text_matches_the_scanned_table(table):
    """Parsed independently of how the CSVs were made."""
    number, first, before, count = LINES[table]
    found = list(SEEDS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("needs the scanned papers in ../shared/seeds")
    lines = found[0].read_text(encoding="utf-8").splitlines()
    starts = [index for index, line in enumerate(lines) if re.match(rf"{first}( \[\d+\])?\t", line)]
    rows = [re.sub(r"</?b>", "", line).split("\t", 1)[1] for line in lines[starts[before] :][:count]]
    if table == "zheng2022_4":
        tokens = [text for row in rows for text in row.split("\t")]
    else:
        split = [re.findall(r"-|\d+(?:\.\d+)?", row) for row in rows]
        if table == "spade2020_2":  # one column more than in the header: CNN and Dict are one
            assert {row.pop(6) for row in split} == {"-"}
        tokens = [token for row in split for token in row]
    assert printed(table) == tokens


GOLDEN = {
    ("padim2020_III", "category", "carpet", "pro"): "64.7 45.6 61.9 69.5 - 94.7 96.0 96.2",
    ("padim2020_III", "category", "toothbrush", "pixel_auroc"): "92 93 91.9 - 98.1 97.9 98.7 98.8",
    ("padim2020_III", "category", "mean:textures", "pixel_auroc"): "78 70 61.2 - 93.7 92.9 95.6 96.9",
    ("padim2020_III", "category", "mean:objects", "pro"): "75.8 83.8 71.4 88.9 - 93.4 89.4 91.6",
    ("padim2020_III", "printed_name", "PaDiM-WR50-Rd550", "pixel_auroc"): (
        "99.1 97.3 99.2 94.1 94.9 96.9 98.3 96.7 98.5 98.2 97.2 95.7 98.5 98.8 97.5 98.5 97.8 97.5"
    ),
    ("padim2020_IV", "category", "", "pixel_auroc"): "85 89.9 91.2",
    ("zheng2022_1", "category", "carpet", "image_auroc"): (
        "97.0 98.9 - 92.9 98.8 - 93.9 95.6 84.0 100.0 100.0 100.0 100.0"
    ),
    ("zheng2022_1", "printed_name", "CSFlow", "image_auroc"): (
        "100.0 99.0 100.0 100.0 100.0 99.8 99.8 99.1 97.1 99.6 99.1 98.6 97.6 91.9 99.3 99.7 98.2 98.7"
    ),
    ("zheng2022_1", "printed_name", "PaDim", "image_auroc"): "- - - - - 98.8 - - - - - - - - - - 93.6 95.3",
    ("zheng2022_2", "printed_name", "DFR", "pixel_auroc"): (
        "97.0 98.0 98.0 87.0 93.0 0.0 97.0 92.0 99.0 99.0 93.0 97.0 99.0 99.0 80.0 96.0 0.0 95.0"
    ),
    ("zheng2022_2", "category", "mean:all", "pixel_auroc"): (
        "90.7 97.4 95.0 97.8 97.5 95.7 98.2 96.0 96.2 96.0 96.3 98.6 98.5 98.1"
    ),
    ("zheng2022_3", "printed_name", "DifferNet", None): "2.53 395 172.1",
    ("zheng2022_4", "printed_name", "CSFlow", None): "EfficientNetB5 [768, 384, 192]",
    ("zheng2022_5", "category", "cable_gland", "image_auroc"): (
        "0.623 0.425 0.747 0.376 0.731 0.542 0.324 0.54 0.772 0.372 0.502 0.551 0.775 0.902 0.620 0.858 0.670 0.917"
    ),
    ("zheng2022_6", "printed_name", "CFlow", "pro"): (
        "0.855 0.919 0.958 0.867 0.969 0.500 0.889 0.935 0.904 0.919 0.871"
    ),
    ("npad2022_1", "category", "carpet", "image_auroc"): "99.15 100 99.04 - - 98.7 99.27",
    ("npad2022_1", "category", "carpet", "pixel_auroc"): "98.95 99.00 98.99 97.5 99.1 99.1 99.03",
    ("npad2022_2", "printed_name", "SPADE", "pro"): (
        "95.5 90.9 93.7 94.7 86.7 95.4 97.2 94.4 94.6 96.0 75.6 93.5 87.4 87.4 92.6 91.7"
    ),
    ("adtr2022_1", "printed_name", "ADTR+", "pixel_auroc"): (
        "98.8 94.2 98.6 95.9 93.0 98.0 97.0 99.1 98.8 96.8 98.7 99.3 99.2 97.8 97.6 97.5"
    ),
    ("spade2020_1", "category", "mean:all", "image_auroc"): "67.2 76.2 75.4 83.9 85.5",
    ("spade2020_2", "category", "bottle", "pixel_auroc"): "93 86 86 78 - 82 - 98.4",
    ("spade2020_2", "category", "mean:all", "pixel_auroc"): "87 82 74 78 75 77 89 96.0",
}


@pytest.mark.parametrize(("place", "row"), GOLDEN.items())
def test_rows_typed_by_hand(place, row):
    table, key, text, metric = place
    wanted = {key: text} | ({"metric": metric} if metric else {})
    assert " ".join(printed(table, **wanted)) == row


def test_every_table_of_mvtec_has_its_fifteen_categories():
    config = compose("config", ["dataset=mvtec"])["dataset"]["categories"]
    assert (tuple(config["textures"]), tuple(config["objects"])) == (TEXTURES, OBJECTS)
    for table in (
        "padim2020_III",
        "zheng2022_1",
        "zheng2022_2",
        "npad2022_1",
        "npad2022_2",
        "adtr2022_1",
    ):
        assert {cell.category for cell in load_references(table) if not cell.is_mean} == set(TEXTURES + OBJECTS)
    for table in ("zheng2022_5", "zheng2022_6"):
        assert len({cell.category for cell in load_references(table) if not cell.is_mean}) == 10


def test_one_method_has_one_id_in_all_papers():
    further = set(aliases()) - {cell.printed_name for cell in ALL}
    assert set(aliases()) >= {cell.printed_name for cell in ALL}
    assert {aliases()[name] for name in further} <= {*choices("method", [conf_folder()])}, "of methods that are built"
    assert aliases()["GEOM"] == aliases()["Geom"] == aliases()["GT"] == "geom"
    for names in (
        ("CFlow", "CFlowAD", "CFLOW-AD", "CFLOW"),
        ("PaDim", "PaDiM", "PaDiM-R18-Rd100", "PaDiM-WR50-Rd550"),
        ("Patch SVDD", "P-SVDD", "PSVDD"),
        ("AE simm", "SSIM-AE", "AE SSIM"),
        ("Glance", "Loc-Glo"),
    ):
        assert len({aliases()[name] for name in names}) == 1
    assert aliases()["ADTR"] != aliases()["ADTR+"]


@pytest.mark.parametrize("name", ["method", "backbone"])
def test_published_names_match_the_package(name):
    """A method or backbone with a YAML must have its published numbers under the same name."""
    near = {getattr(cell, name).replace("_", "") for cell in ALL if getattr(cell, name)}
    exact = {getattr(cell, name) for cell in ALL}
    ours = {path.stem for path in (ROOT / "conf" / name).glob("*.yaml")}
    assert not {each for each in ours if each.replace("_", "") in near and each not in exact}


def test_values_are_in_percent_and_repairs_keep_the_printed_text():
    assert one("zheng2022_5", "AE", "cable_gland", variant="3d + RGB/voxel").value == 54.0
    assert one("npad2022_1", "FastFlow", "bottle", "pixel_auroc").value == 98.1
    assert one("padim2020_III", "Student", "carpet", "pixel_auroc").value is None
    repaired = {
        ("padim2020_III", "SPADE", "mean:all", "pixel_auroc"): ("96.5", 96.0),
        ("zheng2022_2", "DFR", "mean:textures", None): ("0.0", 94.6),
        ("zheng2022_2", "DFR", "mean:objects", None): ("0.0", 95.1),
        ("zheng2022_2", "CutPaste", "leather", None): ("95.5", 99.5),
        ("zheng2022_2", "CutPaste", "wood", None): ("95.0", 95.5),
        ("npad2022_1", "PaDiM", "transistor", "pixel_auroc"): ("98.5", 97.5),
        ("adtr2022_1", "SSIM-AE", "mean:all", None): ("86", 87.0),
    }
    for place, (text, value) in repaired.items():
        assert (one(*place).printed, one(*place).value) == (text, value)
    changed = [cell for cell in ALL if cell.number is not None and float(cell.number) != cell.value]
    others = [cell for cell in changed if cell.printed_name != "CFlow"]
    assert len(others) == len(repaired)
    assert all(cell.comment for cell in changed)


def test_cflow_is_reordered_alphabetically_and_differnet_is_unchanged():
    rows = [cell for cell in load_references("zheng2022_1") if not cell.is_mean]
    cflow = [cell for cell in rows if cell.printed_name == "CFlow"]
    assert [cell.value for cell in sorted(cflow, key=lambda cell: cell.category)] == [
        float(cell.printed) for cell in cflow
    ]
    assert one("zheng2022_1", "CFlow", "screw").value == 91.9
    assert one("zheng2022_1", "CFlow", "screw").printed == "99.7"
    differnet = [cell for cell in rows if cell.printed_name == "DifferNet"]
    assert all(cell.value == float(cell.printed) and "probably" in cell.comment for cell in differnet)


def test_loading_a_paper_or_a_table():
    assert {cell.table for cell in load_references("spade2020")} == {"spade2020_1", "spade2020_2"}
    assert {cell.dataset for cell in load_references("zheng2022_5")} == {"mvtec3d"}
    with pytest.raises(UsageError, match="zheng2022_7: no such paper or table; did you mean zheng2022"):
        load_references("zheng2022_7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "spade2020_3,geom,Geom,,mean:all,,image_auroc,1,1,points,,quoted",
            "table spade2020_3; did you mean spade",
        ),
        ("spade2020_1,geom,Geon,,mean:all,,image_auroc,1,1,points,,quoted", "printed_name Geon; did you mean Geom"),
        ("spade2020_1,spade,Geom,,mean:all,,image_auroc,1,1,points,,quoted", "method spade; valid: geom"),
        ("spade2020_1,geom,Geom,,mean:al,,image_auroc,1,1,points,,quoted", "category mean:al; did you mean mean:all"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auc,1,1,points,,quoted", "metric image_auc; did you mean image_auroc"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,1,1,%,,quoted", "unit %; valid: points"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,1,1,points,,copied", "origin copied"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,,1,points,,own", "printed is empty"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,1,one,points,,own", "value one: expected a number"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,nan,,points,x,own", "printed nan: expected a number"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,1,2,points,,own", "value 2 of a printed 1 without a comment"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,-,2,points,,own", "value 2 of a printed - without a comment"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,1,,points,,own", "value None of a printed 1 without a comment"),
        ("spade2020_1,geom,Geom,,mean:all,,image_auroc,67.2,67.2,points,,own", "repeats line 2"),
        ("spade2020_1,geom,Geom", "3 fields; expected 12"),
        ('spade2020_1,"geom', "not a UTF-8 CSV"),
    ],
)
def test_invalid_line_is_named(tmp_path, line, message):
    folder = shutil.copytree(CSV_FOLDER, tmp_path / "references")
    path = folder / "spade2020.csv"
    count = len(path.read_text(encoding="utf-8").splitlines())
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as caught:
        load_references("spade2020", folder)
    assert str(caught.value).startswith(f"spade2020.csv:{count + 1}: ")
    assert message in str(caught.value)


def test_invalid_file_is_named(tmp_path):
    folder = shutil.copytree(CSV_FOLDER, tmp_path / "references")
    (folder / "npad2022.csv").unlink()
    with pytest.raises(DataError, match=r"npad2022\.csv: .*part of the package"):
        load_references(folder=folder)
    (folder / "adtr2022.csv").write_text("table,method\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"adtr2022\.csv:1: columns table,method; expected table,method,printed_name,"):
        load_references(folder=folder)
    with (folder / "aliases.csv").open("a", encoding="utf-8") as file:
        file.write("SPADE,padim\n")
    with pytest.raises(DataError, match=r"aliases\.csv:\d+: SPADE is listed twice"):
        load_references(folder=folder)


def test_numbers_load_without_torch():
    code = "from anomaly_bench.published.audit import page; page.load_references()"
    code += "; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def findings():
    return find_contradictions(ALL)


ERRATA = [
    ("shuffled", "CFlow in Zheng et al. 2022, Table 1: its image AUROC stands in alphabetical order"),
    (
        "shuffled",
        "DifferNet in Zheng et al. 2022, Table 1: its image AUROC probably stands in the order of Diff",
    ),
    ("papers", "SPADE, pixel AUROC of mean of all: 96.5 or 96.0"),
    ("papers", "PaDiM, pixel AUROC of transistor: 98.5 or 97.5"),
    ("papers", "SPADE, PRO of tile: 75.9 or 75.6"),
    ("papers", "SSIM-AE, pixel AUROC of mean of all: 86 or 87"),
    ("means", "mean of textures printed 0.0, rows give 94.6; mean of objects printed 0.0, rows give 95.1"),
    ("means", "CutPaste in Zheng et al. 2022, Table 2: pixel AUROC, mean of textures printed 96.3, rows give 95.36"),
    ("means", "DifferNet in Zheng et al. 2022, Table 1: image AUROC, mean of all printed 94.9, rows give 95.22"),
    ("means", "PatchCore in Zheng et al. 2022, Table 1: image AUROC, mean of all printed 99.1, rows give 99.19"),
    (
        "units",
        "Table 3: Time (ms) is 11 ms less than 1000/FPS for PatchCore, CFlow, FastFlow, and just 1000/FPS",
    ),
    ("units", "Table 3: Extra parameters (MB) are millions of parameters"),
    ("text", "Table IV: the text has PaDiM-R18-Rd100 lead by 2.1 points, the table by 1.3"),
    ("text", "Table III: the text has PaDiM-R18-Rd100 lead by 0.2 points, the table by 0.7"),
    ("text", "Jang et al. 2022, Table 2: the text has N-pad beaten in carpet, grid, screw, zipper only"),
]


@pytest.mark.parametrize(("group", "title"), ERRATA)
def test_known_errata_are_found(findings, group, title):
    assert [finding.group for finding in findings if title in finding.title] == [group]


LAST_DIGIT = [
    "AE simm in Defard et al. 2020, Table III, PRO: mean of all printed 69.4, rows give 69.46",
    "PaDiM-R18-Rd100 in Defard et al. 2020, Table III, pixel AUROC: mean of textures printed 95.6, rows give 95.54",
    "CutPaste in Zheng et al. 2022, Table 1, image AUROC: mean of all printed 96.1, rows give 96.16",
    "GAN (3d only/depth) in Zheng et al. 2022, Table 6, PRO: mean of all printed 14.3, rows give 14.23",
]


def test_last_digit_deviations_of_means_are_separate(findings):
    (rounded,) = [finding for finding in findings if "off in the last digit" in finding.title]
    assert set(LAST_DIGIT) < set(rounded.evidence)


def test_the_evidence_of_a_shuffled_column(findings):
    cflow, differnet = findings[:2]
    assert cflow.sure
    assert not differnet.sure
    assert "−0.06 as printed, 0.77 in alphabetical order" in cflow.evidence[0]
    assert ("screw", "99.7", "91.9", "83.95") in cflow.table
    assert "weak evidence" in differnet.evidence[1]
    assert ("grid", "97.1", "84.0") in differnet.table


def test_no_other_column_is_reported_as_shuffled(findings):
    assert sum(finding.group == "shuffled" for finding in findings) == 2


def test_separate_runs_are_not_contradictions(findings):
    npad = load_references("npad2022")
    again = [cell for cell in npad if cell.printed_name in ("FastFlow", "CFLOW-AD") and not cell.is_mean]
    assert again
    assert not set(again) & {cell for finding in findings for cell in finding.cells}


def test_committed_page_is_up_to_date(command, tmp_path):
    status, out, _ = command("references", "check", "format=md")
    assert status == 0
    assert out == (ROOT / "docs" / "contradictions.md").read_text(encoding="utf-8"), (
        "anomaly-bench references check format=md out=docs/contradictions.md regenerates it"
    )
    assert command("references", "check", "format=md", f"out={tmp_path / 'page.md'}")[:2] == (0, "")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == out


def test_page_on_the_console_and_as_markdown(command, tmp_path):
    status, out, _ = command("references", "check")
    assert status == 0
    words = " ".join(out.split())
    assert words.index("In short") < words.index("CFlow in Zheng") < words.index("How the tables are checked")
    assert "**" not in out
    assert max(map(len, out.splitlines())) <= 120
    command("references", "check", f"out={tmp_path / 'page.txt'}")
    assert (tmp_path / "page.txt").read_text(encoding="utf-8").split() == out.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["references"], "references: expected one of check, evidence after it"),
        (["references", "chek"], "did you mean check?"),
        (["references", "check", "format=html"], "format=html: unknown; valid: console, md"),
        (["references", "check", "fromat=md"], "fromat: no such key; did you mean format"),
    ],
)
def test_invalid_arguments(command, words, message):
    status, _, err = command(*words)
    assert status == 2
    assert message in err


def cells(table, name, numbers, order, metric="pixel_auroc", digits=1):
    """A column with a mean, as a paper would print it; `name` is also the method."""
    rounded = {row: f"{numbers[row]:.{digits}f}" for row in order}
    mean = sum(map(Decimal, rounded.values())) / len(rounded)
    return [
        Reference(table, name, name, "", row, "", metric, text, float(text), "points", "", "quoted")
        for row, text in [*rounded.items(), ("mean:all", f"{mean:.{digits}f}")]
    ]


def papers(seed):
    """Two tables of four methods that find the same categories hard; the second paper copies the first."""
    random = np.random.default_rng(seed)
    hard = random.uniform(70, 95, 15)
    made = []
    for name in "abcd":
        numbers = dict(zip(TEXTURES + OBJECTS, hard + random.normal(0, 2, 15), strict=True))
        made += cells("adtr2022_1", name, numbers, ORDERS["the order with textures first"])
        made += cells("npad2022_1", name, numbers, ORDERS["alphabetical order"])
    return made


def change(made, table, name, category, text):
    """Change the printed text of one cell."""
    return [
        replace(cell, printed=text, value=float(text))
        if (cell.table, cell.method, cell.category) == (table, name, category)
        else cell
        for cell in made
    ]


@pytest.mark.parametrize("seed", range(5))
def test_clean_tables_have_no_findings(seed):
    assert find_contradictions(papers(seed)) == []


def test_a_clean_page_says_so():
    text = contradictions_page(papers(0))
    assert text.count("None.") == 6
    assert "###" not in text


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["alphabetical order", "the order of DRAEM's tables"])
def test_planted_shuffle_is_found_in_its_column(seed, order):
    made = papers(seed)
    column = [cell for cell in made if (cell.table, cell.method) == ("adtr2022_1", "b") and not cell.is_mean]
    values = {cell.category: cell.printed for cell in column}
    for row, shuffled in zip([cell.category for cell in column], ORDERS[order], strict=True):
        made = change(made, "adtr2022_1", "b", row, values[shuffled])
    (finding,) = find_contradictions(made)
    assert finding.group == "shuffled"
    assert finding.title == (f"b in You et al. 2022, Table 1: its pixel AUROC stands in {order}, the rows do not")
    assert {(cell.table, cell.method) for cell in finding.cells} == {("adtr2022_1", "b")}


def test_unknown_order_is_not_named():
    made = papers(0)
    column = [cell for cell in made if (cell.table, cell.method) == ("adtr2022_1", "b") and not cell.is_mean]
    values = [cell.printed for cell in column]
    for cell, text in zip(column, [*values[7:], *values[:7]], strict=True):
        made = change(made, "adtr2022_1", "b", cell.category, text)
    assert find_contradictions(made) == []


def test_a_planted_contradiction_is_found():
    made = papers(1)
    old = next(cell for cell in made if (cell.table, cell.method, cell.category) == ("npad2022_1", "c", "pill"))
    new = str(Decimal(old.printed) + Decimal("0.3"))
    (finding,) = find_contradictions(change(made, "npad2022_1", "c", "pill", new))
    assert finding.group == "papers"
    assert finding.title.startswith("c, pixel AUROC of pill: ")
    assert {old.printed, new} <= set(re.findall(r"\d+\.\d", finding.title))
    assert finding.weight == pytest.approx(0.3)


def test_rounding_is_not_a_contradiction():
    numbers = dict(zip(TEXTURES + OBJECTS, np.random.default_rng(3).uniform(70, 95, 15).round(1), strict=True))
    fine = cells("adtr2022_1", "a", numbers, TEXTURES + OBJECTS)
    coarse = cells("npad2022_1", "a", numbers, TEXTURES + OBJECTS, digits=0)
    assert find_contradictions([*fine, *coarse]) == []


def test_a_planted_mean_is_found():
    made = cells("adtr2022_1", "a", dict.fromkeys(TEXTURES + OBJECTS, 90.0), TEXTURES + OBJECTS)
    made = change(made, "adtr2022_1", "a", "pill", "90.1")
    assert find_contradictions(made) == []
    (finding,) = find_contradictions(change(made, "adtr2022_1", "a", "mean:all", "90.3"))
    assert finding.group == "means"
    assert "mean of all printed 90.3, rows give 90.01" in finding.title


def complexity(fps, times, sizes):
    made = []
    for name, *numbers in zip(("fastflow", "differnet", "spade"), fps, times, sizes, strict=True):
        for metric, unit, text in zip(
            ("fps", "time_ms", "extra_params"), ("images/s", "ms", "million"), numbers, strict=True
        ):
            made.append(Reference("zheng2022_3", name, name, "", "", "", metric, text, float(text), unit, "", "re-run"))
    return made


def test_units():
    sound = complexity(("20.0", "10.0", "5.00"), ("50", "100", "200"), ("165", "688", "0"))
    assert find_contradictions(sound) == []
    (finding,) = find_contradictions(complexity(("20.0", "10.0", "5.00"), ("38", "100", "200"), ("165", "688", "0")))
    assert "12 ms less than 1000/FPS for fastflow, and just 1000/FPS for differnet, spade" in finding.title
    (finding,) = find_contradictions(complexity(("20.0", "10.0", "5.00"), ("50", "100", "200"), ("41.3", "172.1", "0")))
    assert "Extra parameters (MB) are millions" in finding.title


def test_times_within_rounding():
    least, middle, most = remainder(one_of("fps", "0.67"), one_of("time_ms", "1481"))
    assert (least, middle, most) == pytest.approx((1000 / 0.675 - 1481.5, 1000 / 0.67 - 1481, 1000 / 0.665 - 1480.5))


def one_of(metric, text):
    return Reference("zheng2022_3", "spade", "SPADE", "", "", "", metric, text, float(text), "", "", "re-run")


def test_the_tolerance_of_a_mean():
    made = cells("adtr2022_1", "a", dict.fromkeys(TEXTURES, 90.0) | {"tile": 90.1}, TEXTURES)
    (column,) = printed_columns(made)
    assert column.step("tile") == Decimal("0.1")
    assert tolerance(column, "mean:all") == pytest.approx(0.05 + 3 * 0.1 / np.sqrt(12 * 5))


def test_common_trailing_zeros_are_not_digits():
    (dfr,) = [column for column in printed_columns(ALL) if column.head.printed_name == "DFR"]
    assert (dfr.step("tile"), dfr.step("mean:all")) == (1, 1)
    glance = next(column for column in printed_columns(ALL) if column.head.printed_name == "Glance")
    assert (glance.step("tile"), glance.step("mean:all")) == (1, Decimal("0.1"))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_and_correlation_match_scipy(seed):
    random = np.random.default_rng(seed)
    left, right = random.integers(0, 9, (2, 15))
    named = [ranks({str(name): float(value) for name, value in enumerate(values)}) for values in (left, right)]
    assert list(named[0].values()) == list(stats.rankdata(left))
    assert fit(*named) == pytest.approx(stats.spearmanr(left, right)[0])


def test_random_order_probability_by_counting():
    column = {name: float(rank) for rank, name in enumerate(TEXTURES[:3] + OBJECTS[:2])}
    assert chance_fits(column, column, 1.0, groups=False) == pytest.approx(10_000 / 120, rel=0.3)  # 5! orders
    assert chance_fits(column, column, 1.0, groups=True) == pytest.approx(10_000 / 12, rel=0.1)  # 3! 2!
    assert chance_fits(column, column, -1.0, groups=False) == 10_000


def test_orders_are_permutations_of_the_fifteen_categories():
    assert {tuple(sorted(order)) for order in ORDERS.values()} == {tuple(sorted(TEXTURES + OBJECTS))}
    assert len(set(ORDERS.values())) == len(ORDERS)
    assert orders_of(PrintedColumn({cell.category: cell for cell in load_references("spade2020_1")})) == {}
