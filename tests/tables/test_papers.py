"""The papers' tables: as printed, as measured, and side by side; every format of every layout."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_build import (
    FOLDER,
    FOUR,
    MVTEC,
    SPEED,
    columns,
    marked,
    pdf,
    record,
    render_tables,
    shown,
    texts,
    timed,
    trained,
)

from anomaly_bench.config.compose import compose
from anomaly_bench.errors import UsageError
from anomaly_bench.published import TABLES, load_references
from anomaly_bench.records import load_all, save
from anomaly_bench.records import outlines as outlines_module
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.draw import FORMATS, draw
from anomaly_bench.tables.layout import load_layout, make_layout
from anomaly_bench.tables.papers import number_of, table_sides

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.layout import Layout
    from anomaly_bench.tables.table import Cell, Table

LAYOUTS = {name: load_layout(name, [FOLDER]) for name in TABLES}
PADIM = LAYOUTS["padim2020_III"]
CROPPED = {"resize": [256, 256], "crop": [224, 224]}
ABOUT = {"about": {"title": "PaDiM", "revision": 1, "input": {"resize": 256, "crop": 224}}}


def ours(points: tuple[float | None, ...] = (90, 98.0, 95.0), task: str = "bottle", **others: Any) -> Record:
    """A record as made by `test_build.record`, at PaDiM's published input."""
    return record(points, task, **{"settings": ABOUT, "input": CROPPED, **others})


def table(records: list[Record], layout: Layout = PADIM, source: str = "gaps", **others: Any) -> Table:
    (grid,) = build_tables(records, layout, source=source, **others)
    return grid


def cell_at(grid: Table, row: str, column: str) -> Cell:
    """The cell at a row label and a column whose last labels match."""
    (found,) = [
        cells[at]
        for head, cells in zip(grid.rows, grid.cells, strict=True)
        for at, each in enumerate(columns(grid))
        if head.labels[0] == row and each.endswith(column)
    ]
    return found


def notes_at(grid: Table, row: str, column: str) -> list[str]:
    (head,) = [head for head, name in zip(grid.columns, columns(grid), strict=True) if name.endswith(column)]
    return [marked(grid)[mark] for mark in (*head.notes, *cell_at(grid, row, column).notes)]


def notes_text(grid: Table) -> str:
    """The table's notes without a letter."""
    return " ".join(text for mark, text in grid.notes if not mark)


@pytest.mark.parametrize("name", TABLES)
def test_reported_table_matches_the_paper(name: str) -> None:
    """tests/published has the scanned papers' lines, without bold, headers and reference marks."""
    lines = (Path(__file__).parent / "published" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    printed = [[cell.strip("()").replace("/", ",") for cell in line.split("\t")[1:]] for line in lines]
    grid = table([], LAYOUTS[name], "reported")
    made = [[",".join(value.text.replace("–", "-") for value in cell.values) for cell in row] for row in grid.cells]
    assert made == printed
    if LAYOUTS[name].rows == "methods":
        names = [line.partition("\t")[0].removesuffix("(ours)") for line in lines]
        assert [head.labels[0] for head in grid.rows] == names


def test_headers_of_the_papers_tables() -> None:
    names = columns(table([], PADIM, "reported"))
    assert names[:2] == ["Reconstruction-based methods / AE simm", "Reconstruction-based methods / AE L2"]
    assert names[-1] == "Our methods / PaDiM-WR50-Rd550"
    voxels = columns(table([], LAYOUTS["zheng2022_6"], "reported"))
    assert voxels[0] == "3d only / voxel / GAN"
    assert voxels[-4:] == [f"RGB only / {name}" for name in ("PaDiM", "PatchCore", "FastFlow", "CFlow")]
    assert columns(table([], LAYOUTS["adtr2022_1"], "reported"))[4:7] == [
        *("Texture / Wood", "Object / Bott.", "Object / Cable"),
    ]
    lines = render_tables([], LAYOUTS["adtr2022_1"], format="latex", source="reported").splitlines()
    assert r"& \multicolumn{5}{c}{Texture} & \multicolumn{10}{c}{Object} &  \\" in map(str.strip, lines)


def test_repaired_cells_have_a_footnote_with_the_value() -> None:
    grid = table([], PADIM, "reported")
    assert shown(cell_at(grid, "All classes", "SPADE")) == "96.5 91.7"
    (note,) = notes_at(grid, "All classes", "SPADE")
    assert note.startswith("pixel AUROC: printed 96.5")
    flow = table([], LAYOUTS["zheng2022_1"], "reported")
    (note,) = notes_at(flow, "screw", "CFlow")
    assert "alphabetical" in note
    assert "screw 91.9" in note
    assert cell_at(flow, "screw", "CFlow").values[0].text == "99.7"
    assert notes_at(flow, "screw", "FastFlow") == []


def test_repaired_values_are_shown_on_request() -> None:
    flow = table([], LAYOUTS["zheng2022_1"], "reported", repaired=True)
    assert cell_at(flow, "screw", "CFlow").values[0].text == "91.9"
    (note,) = notes_at(flow, "screw", "CFlow")
    assert "printed carpet 100.0" in note
    assert notes_text(flow).startswith("With repaired values: Zheng et al. 2022, Table 1")


def test_the_source_and_whose_numbers_they_are() -> None:
    grid = table([], PADIM, "reported")
    assert "As printed: Defard et al. 2020, Table III" in notes_text(grid)
    assert "arXiv 2011.08785" in notes_text(grid)
    assert "quoted by the paper unless marked" in notes_text(grid)
    assert notes_at(grid, "Carpet", "WR50-Rd550") == ["the paper's own result"]
    assert notes_at(grid, "Carpet", "VAE") == ["re-run by the paper's authors"]


def test_best_and_second_are_computed() -> None:
    """The scan prints SPADE's PRO of transistor in bold beside 87.4; and PaDiM's AUROC is numerically the best."""
    grid = table([], PADIM, "reported")
    names = ("SPADE", "R18-Rd100", "WR50-Rd550")
    ranks = {name: [value.rank for value in cell_at(grid, "Transistor", name).values] for name in names}
    assert ranks == {"SPADE": [0, 1], "R18-Rd100": [0, 0], "WR50-Rd550": [1, 0]}
    both = table([], dataclasses.replace(PADIM, best="bold+underline"), "reported")
    ranks = {name: [value.rank for value in cell_at(both, "Transistor", name).values] for name in names}
    assert ranks == {"SPADE": [0, 1], "R18-Rd100": [2, 0], "WR50-Rd550": [1, 2]}
    times = table([], LAYOUTS["zheng2022_3"], "reported")
    assert [row[1].values[0].rank for row in times.cells] == [0, 0, 0, 0, 0, 1]  # for times, the lowest is best


def test_the_best_is_the_best_of_what_is_shown() -> None:
    shuffled = table([], LAYOUTS["zheng2022_1"], "reported")
    assert cell_at(shuffled, "carpet", "CFlow").values[0].rank == 1  # printed 100.0; it is 98.7
    repaired = table([], LAYOUTS["zheng2022_1"], "reported", repaired=True)
    assert cell_at(repaired, "carpet", "CFlow").values[0].rank == 0
    assert cell_at(repaired, "leather", "CFlow").values[0].rank == 1
    for name in ("padim2020_IV", "adtr2022_1"):  # print no bold
        assert not any(
            value.rank for row in table([], LAYOUTS[name], "reported").cells for c in row for value in c.values
        )


def test_ours_stand_beside_the_papers_columns() -> None:
    made = [ours(method=method, task=task) for method in ("padim", "zero", "other") for task in ("bottle", "cable")]
    grid = table(made, PADIM, "ours_beside")
    theirs = table([], PADIM, "reported")
    assert columns(grid) == [*columns(theirs), "Ours / other (WRN50)", "Ours / zero (WRN50)"]
    assert [head.divides for head in grid.columns] == [False] * 8 + [True, False]
    printed = [[[value.text for value in cell.values] for cell in row[:8]] for row in grid.cells]
    assert printed == [[[value.text for value in cell.values] for cell in row] for row in theirs.cells]
    assert shown(cell_at(grid, "Bottle", "zero (WRN50)")) == "98.0 95.0"
    assert columns(table(made, PADIM, "ours_beside", ours=["padim"]))[8:] == ["Ours / PaDiM (WRN50)"]
    assert columns(table(made[:2], PADIM, "ours_beside"))[8:] == ["Ours / PaDiM (WRN50)"], "there is no other"
    ordered = table(made, PADIM, "ours_beside", ours=["zero", "padim"], order=["zero", "padim"])
    assert columns(ordered)[8:] == ["Ours / zero (WRN50)", "Ours / PaDiM (WRN50)"]
    with pytest.raises(UsageError, match="ours=padin: no record of it; did you mean padim"):
        table(made, PADIM, "ours_beside", ours=["padin"])


def test_the_best_is_among_the_papers_and_ours() -> None:
    grid = table([ours((90, 99.9, 60.0), task=task, method="zero") for task in MVTEC], PADIM, "ours_beside")
    assert [value.rank for value in cell_at(grid, "All classes", "zero (WRN50)").values] == [1, 0]
    assert [value.rank for value in cell_at(grid, "All classes", "WR50-Rd550").values] == [0, 1]
    some = table([ours((90, 99.9, 60.0), method="zero")], PADIM, "ours_beside")
    assert [value.rank for value in cell_at(some, "Bottle", "zero (WRN50)").values] == [1, 0]
    mean = cell_at(some, "All classes", "zero (WRN50)")
    assert [(value.rank, value.share) for value in mean.values] == [(0, "1 of 15")] * 2
    assert "(99.9, 60.0) (1 of 15)" in draw([some], "console")
    assert "where a mean leaves some out" in some.caption


def test_our_methods_without_values_are_dropped() -> None:
    made = [ours(method="zero"), ours((90, None, None), method="image_only")]
    assert columns(table(made, PADIM, "ours_beside"))[8:] == ["Ours / zero (WRN50)"]
    kept = columns(table(made, PADIM, "ours_beside", empty=True))[8:]
    assert kept == ["Ours / image_only (WRN50)", "Ours / zero (WRN50)"]


def test_pairs_of_n_pad_are_joined_by_a_slash() -> None:
    text = render_tables([ours(method="zero")], LAYOUTS["npad2022_1"], source="ours_beside")
    assert re.search(r"^Bottle +100/98\.10 .* –/98\.4 .* 90\.00/98\.00$", text, re.MULTILINE)


def test_the_second_best_of_two_is_not_marked() -> None:
    pair = [cell for cell in load_references("zheng2022_2") if cell.method in ("draem", "dfr")]
    layout = dataclasses.replace(LAYOUTS["zheng2022_2"], best="bold+underline")
    grid = table([], layout, "reported", references=pair)
    assert {value.rank for row in grid.cells for cell in row for value in cell.values} == {0, 1}


def test_measured_published_and_gap() -> None:
    grid = table([ours(), ours((90, 99.5, 85.6), "metal_nut")])
    cell = cell_at(grid, "Bottle", "PaDiM-WR50-Rd550 / WRN50")
    assert [(each.text, each.rank, each.published, each.gap, each.grade) for each in cell.values] == [
        ("98.0", 0, "98.3", "−0.3", "worse"),
        ("95.0", 0, "94.8", "+0.2", "better"),
    ]
    assert [(value.gap, value.grade) for value in cell_at(grid, "Metal Nut", "/ WRN50").values] == [
        *(("+2.3", "better"), ("±0.0", "even")),
    ]
    lines = render_tables([ours()], PADIM, source="gaps").splitlines()
    (bottle,) = [line for line in lines if line.startswith("Bottle")]
    assert bottle.endswith("98.0 (98.3) −0.3 / 95.0 (94.8) +0.2")
    assert "– (98.1, 93.9)" in bottle
    assert "In parentheses: Defard et al. 2020, Table III" in notes_text(grid)
    assert "Input 256×256, crop 224×224." in notes_text(grid)


def test_repaired_value_is_shown_beside_the_printed_one() -> None:
    spades = [ours((90, 95, 90), task, method="spade") for task in MVTEC]
    (value, _) = cell_at(table(spades), "All classes", "SPADE / WRN50").values
    assert (value.published, value.gap) == ("96.0", "−1.0")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"backbone": "lite0"}, "backbone lite0 (published: wrn50)"),
        ({"input": {"resize": [256, 256], "crop": None}}, "input 256×256 (published: 256×256, crop 224×224)"),
        ({"settings": {}}, "input (published: not stated)"),
        ({"oracle": True}, "measured with settings chosen on the test images"),
        ({"method": "spade"}, "backbone wrn50 (published: not stated)"),
        ({"backbone": "none"}, "backbone none (published: wrn50)"),
        ({"training": trained(25)}, "trained for 25 of 200 epochs, 12.5 %"),
    ],
)
def test_incomparable_gap_is_grey_with_a_reason(changed: dict[str, Any], reason: str) -> None:
    grid = table([ours(**changed)])
    values = [value for cell in grid.cells[6] for value in cell.values if value.gap]
    assert [value.grade for value in values] == ["unlike", "unlike"]
    assert reason.lower() in notes_text(grid).lower()
    assert "\\textcolor{gray}{$-$" in render_tables([ours(**changed)], PADIM, format="latex", source="gaps")


def test_column_wide_notes_are_in_the_header() -> None:
    made = [ours(backbone="lite0", task=task) for task in ("bottle", "cable")]
    grid = table([*made, ours((90, 98, 95), method="spade"), ours((90, 98, 95), "cable", method="spade")])
    heads = {
        name: [marked(grid)[mark] for mark in head.notes]
        for name, head in zip(columns(grid), grid.columns, strict=True)
    }
    assert "backbone lite0 (published: wrn50)" in heads["Our methods / PaDiM-WR50-Rd550 / lite0"]
    assert cell_at(grid, "Bottle", "/ lite0").notes == ()
    single = table([record((90, 80, None), method="patchcore", settings=ABOUT)], LAYOUTS["npad2022_1"])
    assert notes_at(single, "Cable", "PaDiM") == ["quoted by the paper"]
    assert cell_at(single, "Cable", "PaDiM").notes == (), "of (–, 96.7) too"


def test_image_space_methods_ignore_the_backbone() -> None:
    made = ours((90, 95.0, 80), method="draem", backbone="none")
    (value,) = cell_at(table([made], LAYOUTS["zheng2022_2"]), "bottle", "DRAEM").values
    assert (value.published, value.gap, value.grade) == ("99.1", "−4.1", "worse")


def test_reruns_by_others_have_an_unknown_input() -> None:
    cell = load_references("padim2020_III")[-1]
    again = [dataclasses.replace(cell, origin="re-run", category="bottle")]
    assert table([ours()], references=again).cells[6][0].values[1].grade == "unlike"
    quoted = [dataclasses.replace(cell, origin="quoted", category="bottle")]
    assert table([ours()], references=quoted).cells[6][0].values[1].grade == "better"


def test_a_mean_is_compared_over_the_same_categories() -> None:
    some = [ours(task=task) for task in list(MVTEC)[:14]]
    grid = table(some)
    assert cell_at(grid, "All texture classes", "/ WRN50").values[0].grade == "better"
    assert cell_at(grid, "All classes", "/ WRN50").values[0].grade == "unlike"
    assert "mean of 14 of 15 categories" in " ".join(notes_at(grid, "All classes", "/ WRN50"))
    grid = table([*some, ours(task="zipper")])
    assert cell_at(grid, "All classes", "/ WRN50").values[0].grade == "better"
    assert "(14 of 15)" in render_tables(some, PADIM, source="measured")


def test_speeds_of_other_machines_are_no_comparison() -> None:
    size = {"extra_params": 172_100_000, "extra_mb": 688.4, "stored_mb": 0.0}
    fast = [timed(10, "differnet", task, size=size, settings=ABOUT, input=CROPPED) for task in MVTEC]
    rows = texts(table(fast, LAYOUTS["zheng2022_3"]))
    assert rows["DifferNet WRN50"] == ["10.00", "100", "172.1"]
    own = [dataclasses.replace(cell, origin="own", backbone="wrn50") for cell in load_references("zheng2022_3")]
    grid = table(fast, LAYOUTS["zheng2022_3"], references=own)
    (values,) = [cells for head, cells in zip(grid.rows, grid.cells, strict=True) if head.labels[0] == "DifferNet"]
    assert [(cell.values[0].gap, cell.values[0].grade) for cell in values] == [
        *(("+7.47", "unlike"), ("−295", "unlike"), ("±0.0", "even")),
    ]


def test_every_speed_setting_has_a_row_of_its_own() -> None:
    both = timed(10, "spade", settings=ABOUT, input=CROPPED)
    both.speed.append({**SPEED, "device": "H100", "threads": None, "fps": 900.0})
    grid = table([both], LAYOUTS["zheng2022_3"])
    assert [shown(cells[0]) for cells in grid.cells[:2]] == ["10.00", "900.00"]
    assert [head.labels[0] for head in grid.rows[:3]] == ["SPADE", "SPADE", "PatchCore"]


def test_text_values_are_shown_side_by_side() -> None:
    made = ours(method="padim", dataset="mvtec3d")
    (row,) = [cells for head, *cells in zip_rows(table([made], LAYOUTS["zheng2022_4"])) if head == "PaDim"]
    assert [(value.text, value.published, value.gap) for value in row] == [
        *(("WRN50", "wide_resnet50_2", ""), ("256×256, crop 224×224", "224", "")),
    ]


def zip_rows(grid: Table) -> list[list[Any]]:
    rows = zip(grid.rows, grid.cells, strict=True)
    return [[head.labels[0], *(cell.values[0] for cell in cells)] for head, cells in rows]


def test_methods_follow_the_papers_order_then_others() -> None:
    made = [ours(method=method) for method in ("zero", "padim", "spade", "patch_svdd")]
    grid = table([*made, ours(backbone="lite0"), ours((90, None, None), method="mahalanobis_ad")])
    names = [name.partition(" / ")[2] for name in columns(grid)]
    assert names == [
        *("AE simm", "AE L2", "VAE", "Student", "Patch SVDD / WRN50", "SPADE / WRN50", "PaDiM-R18-Rd100"),
        *("PaDiM-WR50-Rd550 / lite0", "PaDiM-WR50-Rd550 / WRN50", "zero / WRN50"),  # none localises nothing
    ]
    assert columns(grid)[-1] == "not in the paper / zero / WRN50"
    own = [name.rpartition(" / ")[2] for name in columns(table([ours(backbone="lite0")], source="measured"))]
    assert own[-2:] == ["PaDiM-R18-Rd100", "lite0"]
    assert "PaDiM / lite0" in columns(table([ours(backbone="lite0")], source="measured"))[-1]  # not "WR50"


def test_methods_as_rows_have_their_own_section() -> None:
    grid = table([ours(), ours(method="zero")], LAYOUTS["npad2022_2"])
    made = [" ".join(head.labels) for head in grid.rows]
    assert made[4:] == ["PaDiM WRN50", "PatchCore ", "N-pad ", "zero WRN50"]
    assert (grid.rows[-1].above, grid.rows[-1].opens) == ("not in the paper", True)


def test_paper_rows_remain_without_records() -> None:
    rows = texts(table([ours()], source="measured"))
    assert len(rows) == 18
    assert rows["Carpet"] == ["– –"] * 8
    assert rows["Bottle"][-1] == "98.0 95.0"
    assert render_tables([], PADIM, source="measured").count("–") > 100


def test_records_of_other_datasets_are_not_in_the_table() -> None:
    grid = table([ours(dataset="mine", categories=FOUR, task="weave")])
    assert all(value.text == "–" for row in grid.cells for cell in row for value in cell.values)


def test_mixed_setups_are_refused_or_marked() -> None:
    made = [ours(), ours(task="cable"), record((90, 97.0, 94.0), method="spade", settings=ABOUT)]
    said_so = r"2 setups.*allow_mixed=true.*setup=mvtec-unified-256x256-crop224x224: input 256"
    with pytest.raises(UsageError, match=said_so):
        table(made)
    grid = table(made, mixed=True)
    assert "Input 256×256, crop 224×224 unless marked." in notes_text(grid)
    assert "input 256×256" in notes_at(grid, "Bottle", "SPADE / WRN50")
    ranks = [value.rank for cell in grid.cells[6] for value in cell.values]
    assert set(ranks) == {0}, "unlike inputs are not compared"


def test_mixed_setups_of_one_method_are_columns() -> None:
    made = [ours(), record(settings=ABOUT)]
    (grid,) = build_tables(made, load_layout("per_class", [FOLDER]), mixed=True)
    assert columns(grid) == ["PaDiM (input.crop=[224, 224]) / WRN50", "PaDiM (input.crop=null) / WRN50"]
    assert grid.caption.startswith("MVTec AD, several setups:")


def test_invalid_source() -> None:
    with pytest.raises(UsageError, match="source=reported: per_class is not a paper's table; expected source=measured"):
        build_tables([record()], load_layout("per_class", [FOLDER]), source="reported")
    with pytest.raises(UsageError, match="source=gap: unknown; did you mean gaps"):
        build_tables([record()], PADIM, source="gap")
    with pytest.raises(UsageError, match="source=both: expected ours_beside"):
        build_tables([record()], PADIM, source="both")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"published": "padim2020_VI"}, "published: no table padim2020_VI; did you mean padim2020_V"),
        ({"published": "", "labels": {}}, "groups has no effect without published"),
        ({"published": "", "groups": {}}, "labels has no effect without published"),
        ({"groups": {"Ours": ["PaDiM"]}}, "groups: Ours: the paper's table has no PaDiM; did you mean PaDiM-"),
        ({"groups": {"Ours": "SPADE"}}, "groups: Ours is 'SPADE', expected a list"),
        ({"labels": {"metalnut": "Metal Nut"}}, "labels: the paper's table has no metalnut; did you mean metal_nut"),
        ({"labels": {"metal_nut": 5}}, "labels: metal_nut is 5, expected a text"),
        ({"capitals": 1}, "capitals is 1, expected a value of type bool"),
        ({"best": "bolt"}, "best is bolt; did you mean bold"),
    ],
)
def test_invalid_paper_layouts_are_rejected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_layout({**dataclasses.asdict(PADIM), **changed}, "here")


def test_numbers_use_the_tables_unit() -> None:
    (cell, *_) = load_references("zheng2022_5")
    fractions = LAYOUTS["zheng2022_5"].measure("image_auroc")
    assert (cell.printed, cell.value, number_of(cell, fractions)) == ("0.383", 38.3, pytest.approx(0.383))
    made = ours((97.55, 50, 50), "bagel", dataset="mvtec3d", categories={"bagel": ""})
    (value,) = cell_at(table([made], LAYOUTS["zheng2022_5"]), "bagel", "PaDiM / WRN50").values
    assert (value.text, value.published, value.gap) == ("0.975", "0.975", "±0.000")


def test_deviation_key_works_in_any_table(tmp_path: Path, command) -> None:
    for seed, points in enumerate((90, 91, 95)):
        for task in ("bottle", "cable"):
            save(record((points, 50, 50 + seed), task, seed=seed), tmp_path)
    words = ("tables", f"results={tmp_path}", "table=per_class", "cells=[image_auroc,pro]")
    out = command(*words, "deviation=true")[1]
    assert "bottle                      (92.0 ± 2.6, 51.0 ± 1.0)" in out
    assert "±: sample standard deviation over seeds" in out
    assert "±" not in command(*words)[1]
    summary = command("tables", f"results={tmp_path}", "table=summary")[1]
    assert summary == command("tables", f"results={tmp_path}", "table=summary", "deviation=true")[1]


def test_summary_is_mean_and_deviation_over_seeds() -> None:
    values = {("weave", 0): 90, ("weave", 1): 94, ("gear", 0): 70, ("gear", 1): 70}
    made = [record((v, v, None), task, seed=seed, categories=FOUR) for (task, seed), v in values.items()]
    (grid,) = build_tables(made, load_layout("summary", [FOLDER]))
    row = texts(grid)["PaDiM WRN50"]
    assert row[0] == "81.0 ± 1.4"  # of (80, 82), not of four values
    assert row[-1] == "–"
    made.pop()  # gear has one seed, weave two: no deviation of a mean over both
    assert texts(build_tables(made, load_layout("summary", [FOLDER]))[0])["PaDiM WRN50"][0] == "81.0"
    assert texts(build_tables(made[:1], load_layout("summary", [FOLDER]))[0])["PaDiM WRN50"][0] == "90.0"


EVERY = [
    ours((99.0, 97.5, 93.25), method=method, backbone=backbone, dataset=dataset)
    for dataset in ("mvtec", "mvtec3d", "stc")
    for method, backbone in (("padim", "wrn50"), ("padim", "lite0"), ("spade", "r18"), ("zero_%", "none"))
]


@pytest.mark.parametrize("source", ["measured", "reported", "ours_beside", "gaps"])
def test_every_layout_compiles(source: str, tmp_path: Path) -> None:
    made = [table(EVERY, layout, source) for layout in LAYOUTS.values()]
    log = pdf(draw(made, "latex", standalone=True), tmp_path)
    assert "Overfull" not in log


def test_marks_of_every_format() -> None:
    cells = [cell for cell in load_references("padim2020_III") if cell.category == "bottle"]
    found = [ours(), ours((90, 98.2, 94.9), method="spade"), ours((90, 97.0, 99.0), method="patch_svdd")]
    both = dataclasses.replace(PADIM, best="bold+underline")
    made = {name: render_tables(found, both, format=name, source="gaps", references=cells) for name in FORMATS}
    assert "<ins>98.0</ins> (98.3) −0.3 / <ins>95.0</ins> (94.8) +0.2" in made["md"].replace("*", "")
    assert "**98.2** (98.4) *−0.2*" in made["md"]
    assert r"\underline{98.0} (98.3) \textcolor{red!75!black}{$-$0.3}" in made["latex"]
    assert r"\textcolor{green!45!black}{+0.2}" in made["latex"]
    assert (
        '<span class="second">98.0</span> <span class="published">(98.3)</span> <span class="worse">−0.3</span>'
        in (made["html"])
    )
    colored = render_tables(found, both, source="gaps", references=cells, color=True)
    assert "\x1b[4m98.0\x1b[0m (98.3) \x1b[31m−0.3\x1b[0m / " in colored
    assert "\x1b[32m+0.2\x1b[0m" in colored
    assert "\x1b[90m−0.2\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == made["console"]


def test_csv_has_a_line_for_each_value() -> None:
    rows = list(csv.DictReader(io.StringIO(render_tables([ours()], PADIM, format="csv", source="gaps"))))
    assert len(rows) == 18 * 8 * 2
    (row,) = [row for row in rows if row["row"] == "Bottle" and row["metric"] == "PRO" and row["value"] != "–"]
    assert [row[name] for name in ("table", "column", "value", "published", "gap", "gap_is")] == [
        *("padim2020_III", "Our methods / PaDiM-WR50-Rd550 / WRN50", "95.0", "94.8", "+0.2", "better"),
    ]
    means = [row for row in rows if row["row"] == "All classes" and "SPADE" in row["column"]]
    assert all("printed 96.5" in row["notes"] for row in means)


class Tags(HTMLParser):
    """Fail on unbalanced tags, and count the columns of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.widths: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.widths.append(0)
        if tag in ("td", "th"):
            self.widths[-1] += int(dict(attrs).get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("name", "source"), list(product(LAYOUTS, ["measured", "reported", "ours_beside", "gaps"])))
def test_html_is_well_formed(name: str, source: str) -> None:
    tags = Tags()
    tags.feed(draw([table(EVERY, LAYOUTS[name], source)], "html", standalone=True))
    assert tags.open == []
    assert len(set(tags.widths)) == 1


def test_html_escapes() -> None:
    hostile = record(task="<b>&\"'", categories={"<b>&\"'": "<i>"}, titles={"method": "<script>", "dataset": "&"})
    text = render_tables([hostile], load_layout("per_class", [FOLDER]), format="html")
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text


def test_standalone_needs_a_format_with_documents() -> None:
    with pytest.raises(UsageError, match="standalone=true has no effect on format=md"):
        draw([], "md", standalone=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for made in (ours(), ours(task="cable"), ours((90, 97, 93), method="spade", backbone="r18")):
        save(made, tmp_path / "r")
    return tmp_path / "r"


def test_reported_needs_no_records(command: Any, tmp_path: Path) -> None:
    status, out, err = command("tables", "table=padim2020_IV", "source=reported", f"results={tmp_path}/none")
    assert (status, err) == (0, "")
    assert re.search(r"pixel AUROC +85 +89\.9 +91\.2", out)
    status, _, err = command("tables", "table=padim2020_IV", "source=reported", "setup=any")
    assert (status, "setup=any has no effect on source=reported" in err) == (2, True)


def test_paper_tables_show_ours_beside_by_default(command: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"method": ["draem", "padim", "patchcore", "spade"], "dataset": ["mvtec"]}
    monkeypatch.setattr("anomaly_bench.cli.commands.tables.choices", lambda group, folders: have[group])
    status, out, err = command("tables", "table=padim2020_III", f"results={folder}")
    assert status == 0
    assert re.search(r"Bottle .*\(98\.3, 94\.8\).*\(98\.0, 95\.0\)", out)
    assert "\x1b" not in out
    gaps = command("tables", "table=padim2020_III", f"results={folder}", "source=gaps")[1]
    assert "98.0 (98.3) −0.3 / 95.0 (94.8) +0.2" in gaps
    for word, message in (
        ("source=both", "source=both: expected ours_beside"),
        ("empty=dsh", "empty=dsh: unknown; did you mean dash"),
        ("best=bolt", "best=bolt: unknown; did you mean bold"),
    ):
        status, _, failed = command("tables", "table=padim2020_III", f"results={folder}", word)
        assert (status, message in failed) == (2, True), failed
    assert "PaDiM-R18-Rd100: no records, dashes; anomaly-bench method=padim backbone=r18 dataset=mvtec " in err
    assert "protocol=unified input.resize=256 input.crop=224 data_root=... makes them" in err
    assert "not among the methods of anomaly-bench: AE simm, AE L2, VAE, Student, Patch SVDD\n" in err
    assert "SPADE" not in err
    _, _, err = command("tables", "table=zheng2022_1", f"results={folder}")
    assert "DRAEM: no records, dashes; anomaly-bench method=draem dataset=mvtec protocol=unified" in err
    assert "anomaly-bench method=patchcore backbone=NAME dataset=mvtec" in err
    _, _, err = command("tables", "table=padim2020_IV", f"results={folder}")
    assert err == "stc: not among the datasets of anomaly-bench; only published numbers can be shown\n"


@pytest.mark.parametrize("name", [name for name, each in TABLES.items() if not each.printed])
def test_a_table_whose_values_are_not_in_our_sources_says_so(name: str) -> None:
    dataset = TABLES[name].dataset
    told = "our sources name its methods, not its values."
    assert notes_text(table([], LAYOUTS[name], "reported")).endswith(told)
    wrn50, effb5 = (ours((90, 80, 70), backbone=each, dataset=dataset) for each in ("wrn50", "effb5"))
    kde = ours((90, 80, 70), "cat", method="kde", backbone="none", dataset=dataset, categories={"cat": ""})
    for source in ("measured", "gaps", "ours_beside"):
        grid = table([kde] if dataset == "cifar10" else [wrn50, effb5], LAYOUTS[name], source)
        assert told in notes_text(grid)
        assert "90.0" in {shown(cell).rstrip("*") for row in grid.cells for cell in row}


def test_the_protocol_of_a_papers_table_has_its_inputs_and_backbones() -> None:
    """One setup although inputs differ; gaps are coloured where backbone and input are the table's."""
    sides = {"padim": ("wrn50", 224), "differnet": ("alexnet", 448)}
    made = [
        ours(method=method, backbone=backbone, task="bagel", dataset="mvtec3d", categories={"bagel": ""})
        for method, (backbone, _) in sides.items()
    ]
    for each in made:
        each.protocol, each.input = "zheng2022_4", {"resize": [sides[each.method][1]] * 2, "crop": None}
        each.input["filter"] = "bilinear"
    grid = table(made, LAYOUTS["zheng2022_5"])
    for column in ("PaDiM / WRN50", "DifferNet / alexnet"):
        (value,) = cell_at(grid, "bagel", column).values
        assert value.grade != "unlike"
    made[0].protocol = "unified"
    (value,) = cell_at(table(made[:1], LAYOUTS["zheng2022_5"]), "bagel", "PaDiM / WRN50").values
    assert value.grade != "unlike", "the input counts, not the protocol's name"
    made[0].input = CROPPED
    (value,) = cell_at(table(made[:1], LAYOUTS["zheng2022_5"]), "bagel", "PaDiM / WRN50").values
    assert value.grade == "unlike"
    for method, side in table_sides("zheng2022_4").items():
        config = compose("config", [f"method={method}", "protocol=zheng2022_4"])
        assert config["input"]["resize"] == side
    with pytest.raises(UsageError, match="kde"):
        compose("config", ["method=kde", "protocol=zheng2022_4"])


def test_formats_into_files(command: Any, folder: Path, tmp_path: Path) -> None:
    begins = {"md": "**Anomaly", "latex": "\\documentclass", "html": "<!doctype html>", "csv": "table,row,column"}
    for name, start in begins.items():
        out = tmp_path / f"new/{name}.out"
        words = [f"format={name}", f"out={out}", *(["standalone=true"] if name in ("latex", "html") else [])]
        assert command("tables", "table=adtr2022_1", f"results={folder}", *words)[0] == 0
        assert out.read_text(encoding="utf-8").startswith(start)


def test_several_tables_are_one_document(command: Any, folder: Path) -> None:
    words = ["tables", "table=[padim2020_IV,spade2020_1,per_class]", f"results={folder}"]
    for name, start in (("latex", "\\documentclass"), ("html", "<!doctype")):
        status, out, err = command(*words, f"format={name}", "standalone=true")
        tags = out.count("\\caption{") + out.count("<table")
        assert (status, out.count(start), tags) == (0, 1, 3), err
    assert command(*words, "format=csv")[1].count("table,row,") == 1


def test_method_missing_from_the_paper(command: Any, folder: Path) -> None:
    save(ours((99, None, None), method="zero"), folder)
    words = [f"results={folder}", "method=zero"]
    status, out, err = command("tables", "table=zheng2022_1", *words)
    assert (status, err) == (0, "")
    assert re.search(r"bottle +99\.0\n", out)
    assert re.search(r"carpet +–\n", out)
    status, _, err = command("tables", "table=zheng2022_2", *words)
    assert (status, "zheng2022_2: no published method and no matching record is left" in err) == (2, True)
    status, _, err = command("tables", *words, "backbone=r18")
    assert (status, "backbone=r18: no record of it; valid: wrn50" in err) == (2, True)


def test_several_results_folders(command: Any, folder: Path, tmp_path: Path) -> None:
    save(ours(task="cable"), tmp_path / "s")
    twice = ours()
    twice.speed.append({**SPEED, "device": "H100", "fps": 900.0})
    save(twice, tmp_path / "s")
    save(ours((90, 96.0, 92.0), "pill"), tmp_path / "s")
    status, out, _ = command("tables", "table=padim2020_III", f"results=[{folder},{tmp_path}/s]", "source=measured")
    assert status == 0
    assert re.search(r"Pill .*\(96\.0, 92\.0\)", out)
    assert "Mean of" not in out.replace("mean of", ""), "the same record twice is one"
    assert "(3 of 15)" in out or "3 of 15 categories" in out
    status, out, _ = command("tables", "table=complexity", f"results=[{folder},{tmp_path}/s]", "method=padim")
    assert "H100" in out


def test_records_are_selected(command: Any, folder: Path) -> None:
    save(record(settings=ABOUT), folder)
    words = ["tables", "table=padim2020_III", f"results={folder}"]
    status, _, err = command(*words)
    assert (status, "found records of 2 setups" in err) == (2, True)
    assert command(*words, "allow_mixed=true")[0] == 0
    status, out, _ = command(*words, "setup=mvtec-unified-256x256", "method=padim")
    assert status == 0
    assert "Input 256×256." in out
    assert "SPADE" not in out
    for word, message in (
        ("setup=mvtec-unified-256", "setup=mvtec-unified-256: no record of it; did you mean mvtec-unified-256x256"),
        ("method=pdim", "method=pdim: no record of it; did you mean padim"),
        ("table=padim2020_II", "table=padim2020_II: no such table; did you mean padim2020_I"),
        ("allow_mixed=2", "allow_mixed=2: expected true or false"),
    ):
        status, _, err = command(*words, word)
        assert (status, message in err) == (2, True), err


def test_tables_import_no_torch(folder: Path) -> None:
    code = f"""import sys
from anomaly_bench.cli.main import command
command(["tables", "table=padim2020_III", "results={folder.as_posix()}"])
print("torch" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("\nFalse\n")


def test_outlines_give_the_same_tables_as_records(folder: Path, empty_cache: Path) -> None:
    timed_one = timed(10, task="screw", provenance={"torch": "2"}, curves={"pro": {"x": [0.0], "y": [1.0]}})
    timed_one.speed[0]["latency_samples_ms"] = [1.0, 2.0]
    save(timed_one, folder)
    whole, _ = load_all(folder)
    for _ in range(2):  # read first, then cached
        outlines, damaged = outlines_module.outlines(folder)
        assert damaged == []
        assert [each.identity for each in outlines] == [each.identity for each in whole]
        assert all(each.curves == {} and each.images == [] for each in outlines)
        for name in ("per_class", "complexity", "summary"):
            layout = load_layout(name, [FOLDER])
            assert render_tables(outlines, layout) == render_tables(whole, layout)
    assert "samples" not in next((empty_cache / "outlines").iterdir()).read_text()


def test_outlines_follow_the_files(folder: Path, empty_cache: Path) -> None:
    assert len(outlines_module.outlines(folder)[0]) == 3
    path = folder / ours().path
    path.write_text(path.read_text()[:-9])
    (folder / ours(task="cable").path).unlink()
    left, damaged = outlines_module.outlines(folder)
    assert [each.method for each in left] == ["spade"]
    assert "changed" in damaged[0] or "not a record" in damaged[0]
    save(ours((1, 2, 3)), folder)
    assert sorted(each.value("pro") or 0 for each in outlines_module.outlines(folder)[0]) == [0.03, 0.93]


@pytest.mark.parametrize("content", ["", "[]", "5", '{"files": {}}', "{}"])
def test_damaged_index_is_rebuilt(content: str, folder: Path, empty_cache: Path) -> None:
    outlines_module.outlines(folder)
    (index,) = (empty_cache / "outlines").iterdir()
    index.write_text(content)
    assert len(outlines_module.outlines(folder)[0]) == 3
    assert json.loads(index.read_text())["shared"]


def test_references_match_the_layouts() -> None:
    everything, covered = load_references(), set()
    for name, layout in LAYOUTS.items():
        metrics = [measure.published or measure.value for measure in map(layout.measure, layout.cells)]
        covered |= {key(cell) for cell in everything if cell.table == name and cell.metric in metrics}
    assert {key(cell) for cell in everything} == covered


def key(cell: Reference) -> tuple[str, ...]:
    return cell.table, cell.printed_name, cell.variant, cell.category, cell.metric


def test_categories_are_selected_in_the_order_typed(command: Any, tmp_path: Path) -> None:
    for task in ("bottle", "carpet", "screw"):
        save(record(task=task), tmp_path)
    words = ["tables", "table=per_class", f"results={tmp_path}", "metric=pro"]
    status, out, _ = command(*words, "category=[screw,textures]")
    assert status == 0
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("screw", "carpet", "bottle", "mean"))]
    assert rows == ["screw", "carpet", "mean"]
    assert "(in %); of screw, textures only" in out
    assert command(*words, "category=scew")[2].strip().endswith("category=scew: no record of it; did you mean screw?")
    _, _, err = command("tables", "table=padim2020_III", f"results={tmp_path}", "category=screw")
    assert "category= has no effect on padim2020_III" in err
