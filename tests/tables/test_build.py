from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import choices, conf_folder, supervision
from anomaly_bench.errors import UsageError
from anomaly_bench.metrics.registry import packaged_metrics
from anomaly_bench.records.record import Record
from anomaly_bench.records.results_csv import csv_row
from anomaly_bench.records.setups import setup_name, setups
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.draw import draw
from anomaly_bench.tables.layout import load_layout

if TYPE_CHECKING:
    from anomaly_bench.tables.layout import Layout
    from anomaly_bench.tables.table import Table

FOLDER = Path(__file__).parents[2] / "conf" / "table"
PER_CLASS = load_layout("per_class", [FOLDER])
COMPLEXITY = load_layout("complexity", [FOLDER])
SUMMARY = load_layout("summary", [FOLDER])
MVTEC = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), "textures"),
    **dict.fromkeys(("bottle", "cable", "capsule", "hazelnut", "metal_nut"), "objects"),
    **dict.fromkeys(("pill", "screw", "toothbrush", "transistor", "zipper"), "objects"),
}
FOUR = {"weave": "textures", "granite": "textures", "gear": "objects", "biscuit": "objects"}
TITLES = {"padim": "PaDiM", "patchcore": "PatchCore", "wrn50": "WRN50", "r18": "R18", "mvtec": "MVTec AD"}
SPEED = {"device": "EPYC", "threads": 2, "batch_size": 32, "precision": "fp32"}
HOSTILE = "a_b & 50% #1 \\x {y} ~ ^ <b>|pipe|\n[z] --- `c` $m$ 漢é"


def record(
    points: tuple[float | None, ...] = (90, 80, 70),
    task: str = "bottle",
    method: str = "padim",
    backbone: str = "wrn50",
    seed: int = 0,
    categories: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    **others: Any,
) -> Record:
    """A record with (image AUROC, pixel AUROC, PRO) in %; `others` replace fields directly."""
    names = MVTEC if categories is None else categories
    config = {"method": {"name": method, "seed": seed, **(settings or {})}, "backbone": {"network": backbone}}
    content: dict[str, Any] = {
        "dataset": "mvtec",
        "task": task,
        "test": "test",
        "group": names.get(task),
        "categories": [{"name": name, "group": group} for name, group in names.items()],
        "method": method,
        "backbone": backbone,
        "titles": {"dataset": "MVTec AD", "method": TITLES.get(method), "backbone": TITLES.get(backbone)},
        "seed": seed,
        "protocol": "unified",
        "oracle": False,
        "precision": "fp32",
        "regime": {"name": "one_class"},
        "input": {"resize": [256, 256], "crop": None},
        "counts": {"fit": 10, "test": 10, "defects": 5},
        "metrics": {
            name: {"value": None if value is None else value / 100, "revision": packaged_metrics()[name].revision}
            for name, value in zip(("image_auroc", "pixel_auroc", "pro"), points, strict=True)
        },
        "curves": {},
        "images": [],
        "speed": [],
        "size": {"extra_params": 0, "extra_mb": 0.0, "stored_mb": 0.0},
        "cost": {"fit_s": 1.0, "score_s": 1.0, "peak_ram_mb": 1.0, "peak_gpu_mb": None, "device": "EPYC", "threads": 2},
        "config": config,
        "provenance": {},
        "training": {},
        **others,
    }
    known = repr((sorted(content.items(), key=lambda item: item[0]), seed))
    return Record(**{"fingerprint": hashlib.sha256(known.encode()).hexdigest(), **content})


def trained(epochs: float, published: int = 200) -> dict[str, Any]:
    """`Record.training` of so many epochs of 70 steps."""
    curve = {"steps": [70, 140], "loss": [2.0, 1.0]}
    told = {"epochs": epochs, "steps": round(70 * epochs), "samples": round(1000 * epochs), "curve": curve}
    return {**told, "last_tenth": None, "published": {"epochs": published}, "share": epochs / published}


def render_tables(
    records: list[Record], layout: Layout, cells: list[str] | None = None, format: str = "console", **others: Any
) -> str:
    """The tables of all setups as text."""
    drawn = {key: others.pop(key) for key in ("color", "standalone") if key in others}
    return draw(build_tables(records, layout, cells, **others), format, **drawn)


def only(records: list[Record], layout: Layout = PER_CLASS, cells: list[str] | None = None) -> Table:
    (grid,) = build_tables(records, layout, cells)
    return grid


def texts(grid: Table) -> dict[str, list[str]]:
    """Row label -> its cells as printed to the console, without note letters."""
    rows = zip(grid.rows, grid.cells, strict=True)
    return {" ".join(head.labels).strip(): [shown(cell) for cell in cells] for head, cells in rows}


def shown(cell: Any) -> str:
    return " ".join(f"{value.text}{'*' if value.rank == 1 else ''}" for value in cell.values)


def columns(grid: Table) -> list[str]:
    return [" / ".join(filter(None, head.labels)) for head in grid.columns]


def marked(grid: Table) -> dict[str, str]:
    return dict(grid.notes)


SMALL = [
    record((100, 97.5, 90.1), "weave", categories=FOUR),
    record((99, 96.5, 80), "granite", categories=FOUR),
    record((90, 91, 92), "gear", categories=FOUR),
    record((99.96, 95.5, None), "weave", "other", "none", categories=FOUR),
    record((98, 97.5, None), "granite", "other", "none", categories=FOUR),
    record((95, 85, None), "gear", "other", "none", categories=FOUR),
    record((80, 97.46, 91.1), "weave", "padim", "r18", categories=FOUR),
    record((81, 81, 81), "granite", "padim", "r18", categories=FOUR),
    record((82, 82, 82), "gear", "padim", "r18", categories=FOUR),
]
CONSOLE = """\
MVTec AD, input 256×256: image AUROC, pixel AUROC, PRO (in %)

                                other                          PaDiM
                                              ────────────────────────────────────────
Category                                             R18                  WRN50
──────────────────────────────────────────────────────────────────────────────────────
weave                      (100.0, 95.5, –)   (80.0, 97.5, 91.1)   (100.0, 97.5, 90.1)
granite                     (98.0, 97.5, –)   (81.0, 81.0, 81.0)    (99.0, 96.5, 80.0)
mean of textures            (99.0, 96.5, –)   (80.5, 89.2, 86.1)    (99.5, 97.0, 85.0)
──────────────────────────────────────────────────────────────────────────────────────
gear                        (95.0, 85.0, –)   (82.0, 82.0, 82.0)    (90.0, 91.0, 92.0)
mean of objects (1 of 2)    (95.0, 85.0, –)   (82.0, 82.0, 82.0)    (90.0, 91.0, 92.0)
──────────────────────────────────────────────────────────────────────────────────────
mean of all (3 of 4)        (97.7, 92.7, –)   (81.0, 86.8, 84.7)    (96.3, 95.0, 87.4)

Seed 0.
"""
MARKDOWN = """\
**MVTec AD, input 256×256: pixel AUROC (in %)**

| Category                   |    other | PaDiM<br>R18 | PaDiM<br>WRN50 |
|:---------------------------|---------:|-------------:|---------------:|
| weave                      |     95.5 |     **97.5** |       **97.5** |
| granite                    | **97.5** |         81.0 |           96.5 |
| *mean of textures*         |     96.5 |         89.2 |       **97.0** |
| gear                       |     85.0 |         82.0 |       **91.0** |
| *mean of objects (1 of 2)* |     85.0 |         82.0 |       **91.0** |
| *mean of all (3 of 4)*     |     92.7 |         86.8 |       **95.0** |

- Seed 0.
"""
LATEX = r"""% \usepackage{adjustbox,booktabs,threeparttable}
\begin{table*}[t]
  \centering
  \caption{MVTec AD, input 256$\times$256: pixel AUROC, PRO (in \%)}
  \label{tab:per_class}
  \par\smallskip
  \begin{adjustbox}{max width=\linewidth}
  \begin{threeparttable}
    \begin{tabular}{@{}lccc@{}}
      \toprule
       & other & \multicolumn{2}{c}{PaDiM} \\
      \cmidrule(lr){3-4}
      Category &  & R18 & WRN50 \\
      \midrule
      weave & (95.5, --) & (\textbf{97.5}, \textbf{91.1}) & (\textbf{97.5}, 90.1) \\
      granite & (\textbf{97.5}, --) & (81.0, \textbf{81.0}) & (96.5, 80.0) \\
      \emph{mean of textures} & (96.5, --) & (89.2, \textbf{86.1}) & (\textbf{97.0}, 85.0) \\
      \midrule
      gear & (85.0, --) & (82.0, 82.0) & (\textbf{91.0}, \textbf{92.0}) \\
      \emph{mean of objects (1 of 2)} & (85.0, --) & (82.0, 82.0) & (\textbf{91.0}, \textbf{92.0}) \\
      \midrule
      \emph{mean of all (3 of 4)} & (92.7, --) & (86.8, 84.7) & (\textbf{95.0}, \textbf{87.4}) \\
      \bottomrule
    \end{tabular}
    \begin{tablenotes}[flushleft]
      \footnotesize
      \item[] Seed 0.
    \end{tablenotes}
  \end{threeparttable}
  \end{adjustbox}
\end{table*}
"""


def test_console() -> None:
    assert render_tables(SMALL, PER_CLASS) == CONSOLE


def test_markdown() -> None:
    assert render_tables(SMALL, PER_CLASS, ["pixel_auroc"], "md") == MARKDOWN


def test_latex() -> None:
    assert render_tables(SMALL, PER_CLASS, ["pixel_auroc", "pro"], "latex") == LATEX


def test_color_only_adds_escape_codes() -> None:
    colored = render_tables(SMALL, PER_CLASS, color=True)
    assert "(\x1b[1m100.0\x1b[0m, 95.5, –)" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == CONSOLE


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match="format=latx: no such format; did you mean latex"):
        render_tables(SMALL, PER_CLASS, format="latx")


def test_no_records() -> None:
    assert [render_tables([], PER_CLASS, format=each) for each in ("console", "md", "latex")] == [""] * 3


def test_order_of_records_does_not_matter() -> None:
    records = [*SMALL, record(input={"resize": [320, 320], "crop": None}), record(settings={"dims": 50})]
    shuffled = random.Random(0).sample(records, len(records))
    assert render_tables(shuffled, PER_CLASS) == render_tables(records, PER_CLASS)


def test_the_same_record_twice_counts_once() -> None:
    assert render_tables([*SMALL, *SMALL], PER_CLASS) == CONSOLE


def test_only_settings_with_a_footnote_are_marked() -> None:
    """`about.footnotes` of the method's own YAML, or of the record's where the package has no such method."""
    note = "without the authors' pooling to 1024 values"
    as_authors, mean = (
        record(method="patchcore", settings={"pooling": pooling}, task=task, categories=FOUR)
        for pooling, task in (("authors", "weave"), ("mean", "gear"))
    )
    assert note not in render_tables([as_authors], PER_CLASS)
    assert "Without the authors' pooling to 1024 values." in render_tables([mean], PER_CLASS)
    table = build_tables([as_authors, mean], PER_CLASS)[0]
    found = {" ".join(head.labels): [marked(table)[letter] for letter in head.notes] for head in table.columns}
    assert {name: note in notes for name, notes in found.items()} == {
        "PatchCore (pooling=authors) WRN50": False,
        "PatchCore (pooling=mean) WRN50": True,
    }
    about = {"footnotes": [{"setting": "wet", "value": None, "note": "of rain"}]}
    own = record(method="own", settings={"wet": None, "about": about}, task="weave", categories=FOUR)
    assert "Of rain." in render_tables([own], PER_CLASS)


def test_records_of_an_older_revision_of_a_method_are_marked() -> None:
    now = packaged_node("method", "patchcore")["about"]["revision"]
    note = f"Revision 1 of the method; now {now}, with other scores: run it again."
    mine = {"_target_": "mine.PatchCore"}
    for revision, target, marked_as_old in ((1, {}, True), (now, {}, False), (1, mine, False)):
        node = {"about": {"revision": revision}, **target}
        found = render_tables([record(method="patchcore", settings=node, categories=FOUR)], PER_CLASS)
        assert (note in " ".join(found.split())) == marked_as_old


def test_rows_follow_the_datasets_order() -> None:
    grid = only([record(task=name) for name in reversed(MVTEC)])
    means = ["mean of textures", "mean of objects", "mean of all"]
    names = list(MVTEC)
    assert list(texts(grid)) == [*names[:5], means[0], *names[5:], means[1], means[2]]
    assert [head.labels[0] for head in grid.rows if head.opens] == ["bottle", "mean of all"]
    assert [head.labels[0] for head in grid.rows if head.mean] == means


def test_mean_of_all_is_over_categories_not_groups() -> None:
    values = {"weave": 90, "granite": 92, "gear": 50}
    records = [record((v, v, v), task, categories=FOUR) for task, v in values.items()]
    rows = texts(only(records, cells=["pro"]))
    assert (rows["mean of textures"], rows["mean of all (3 of 4)"]) == (["91.0"], ["77.3"])


def test_category_without_records_has_no_row_but_is_counted() -> None:
    rows = texts(only([record((90, 80, 70), "carpet"), record((92, 81, 71), "grid")]))
    assert rows == {
        "carpet": ["90.0 80.0 70.0"],
        "grid": ["92.0 81.0 71.0"],
        "mean of textures (2 of 5)": ["91.0 80.5 70.5"],
        "mean of all (2 of 15)": ["91.0 80.5 70.5"],
    }


def test_undefined_values_are_dashes_and_excluded_from_the_mean() -> None:
    records = [record((90, None, 60), "weave", categories=FOUR), record((80, 70, None), "gear", categories=FOUR)]
    grid = only(records)
    assert texts(grid)["weave"] == ["90.0 – 60.0"]
    assert texts(grid)["mean of all"] == ["85.0 70.0 60.0"]
    (notes,) = [
        cells[0].notes for head, cells in zip(grid.rows, grid.cells, strict=True) if head.labels[0] == "mean of all"
    ]
    assert [marked(grid)[letter] for letter in notes] == [
        "image AUROC: mean of 2 of 4 categories",
        "pixel AUROC, PRO: 1 of 4 categories",
    ]


def test_a_cell_without_any_value_is_one_dash() -> None:
    records = [record(task="weave", categories=FOUR), record((1, 1, 1), "gear", "patchcore", categories=FOUR)]
    lines = render_tables(records, PER_CLASS).splitlines()
    (weave,) = [line for line in lines if line.startswith("weave")]
    assert weave.split("   ")[-1].strip() == "–"
    assert weave.count("–") == 1


def test_a_metric_that_was_not_computed_is_a_dash() -> None:
    assert texts(only([record()], cells=["image_ap"]))["bottle"] == ["–"]


def test_columns_that_cover_different_categories_say_how_many() -> None:
    both = [record((v, v, v), task, categories=FOUR) for task, v in (("weave", 60), ("granite", 70))]
    one = [record((99, 99, 99), "weave", "patchcore", categories=FOUR)]
    grid = only([*both, *one], cells=["pro"])
    assert texts(grid)["mean of textures"] == ["65.0", "99.0"]  # not compared: different categories
    shares = [[cell.values[0].share for cell in cells] for cells in grid.cells]
    assert shares[2:] == [["", "1 of 2"], ["2 of 4", "1 of 4"]]
    assert grid.notes == [("", "Seed 0.")]
    assert re.search(r"^mean of textures +65\.0 +99\.0 \(1 of 2\)$", draw([grid], "console"), re.MULTILINE)
    assert grid.caption.endswith("; in parentheses: of how many categories, where a mean leaves some out")


def test_a_method_says_once_how_many_categories_its_numbers_cover() -> None:
    both = [record((v, v, v), task, categories=FOUR) for task, v in (("weave", 60), ("granite", 70))]
    one = [record((99, 99, None), "weave", "patchcore", categories=FOUR)]
    grid = only([*both, *one], SUMMARY)
    assert grid.corner == ("Method", "Backbone", "Categories")
    assert [head.labels[2] for head in grid.rows] == ["2 of 4", "1 of 4"]
    assert {value.share for row in grid.cells for cell in row for value in cell.values} == {""}
    assert grid.caption.endswith("; not all over the same categories")
    assert only(both, SUMMARY).corner == ("Method", "Backbone"), "nothing beside it is unlike: the notes say it"
    uneven = only([*both, *one, record((98, None, None), "gear", "patchcore", categories=FOUR)], SUMMARY)
    assert [head.labels[2] for head in uneven.rows] == ["2 of 4", "2 of 4"]
    assert [cell.values[0].share for cell in uneven.cells[1]] == ["", "", "1 of 4", "", ""]


def test_markdown_of_many_columns_has_short_heads(tmp_path: Path) -> None:
    records = [record(task=name) for name in MVTEC]
    assert "tran." in render_tables(records, layout(tmp_path, MINE), format="md")
    few = render_tables(records[:3], layout(tmp_path, MINE), format="md")
    assert all(name in few for name in list(MVTEC)[:3])


def test_best_mean_is_among_methods_with_the_most_categories() -> None:
    records = [record((v, v, v), task, m, categories=FOUR) for m, v in (("a", 60), ("b", 70)) for task in FOUR]
    records.append(record((99, 99, 99), "weave", "c", categories=FOUR))
    rows = texts(only(records, cells=["pro"]))
    assert rows["weave"] == ["60.0", "70.0", "99.0*"]
    assert rows["mean of all"] == ["60.0", "70.0*", "99.0"]


def test_equal_numbers_of_different_categories_are_not_compared() -> None:
    records = [record((60, 60, 60), "weave", "a", categories=FOUR), record((70, 70, 70), "gear", "b", categories=FOUR)]
    assert texts(only(records, cells=["pro"]))["mean of all"] == ["60.0", "70.0"]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((90, 80, 70), (89, 81, 70), ["90.0* 80.0 70.0*", "89.0 81.0* 70.0*"]),
        ((90.04, 80, None), (89.96, 80.06, 70), ["90.0* 80.0 –", "90.0* 80.1* 70.0"]),
    ],
)
def test_best_of_a_row_per_component(left: Any, right: Any, expected: list[str]) -> None:
    grid = only([record(left), record(right, method="patchcore")])
    assert texts(grid)["bottle"] == expected


def test_no_best_in_a_single_column() -> None:
    assert "**" not in render_tables([record(), record(task="cable")], PER_CLASS, format="md").split("\n", 1)[1]


def test_seeds_are_averaged_within_a_category_first() -> None:
    seeds = [record((v, v, v), "weave", seed=seed, categories=FOUR) for seed, v in ((0, 90), (1, 60), (2, 30))]
    grid = only([*seeds, record((80, 80, 80), "gear", seed=0, categories=FOUR)], cells=["pro"])
    assert texts(grid)["weave"] == ["60.0"]
    assert texts(grid)["mean of all (2 of 4)"] == ["70.0"]  # not 65, the mean of four values


def test_seeds_are_named() -> None:
    records = [record(task=task, seed=seed) for task in ("bottle", "cable") for seed in (2, 0, 1)]
    assert only(records).notes == [("", "Mean of 3 seeds (0, 1, 2).")]
    assert only(records[:1]).notes == [("", "Seed 2.")]


def test_different_seeds_have_footnotes() -> None:
    tasks = ("bottle", "cable", "pill")
    records = [record(task=task, seed=seed, method=m) for m in ("a", "b") for task in tasks for seed in (0, 1, 2)]
    grid = only([*records[:-1], *(record(task=task, method="c") for task in tasks)])
    assert grid.notes[0] == ("", "Mean of 3 seeds (0, 1, 2) unless marked.")
    assert [head.notes for head in grid.columns] == [(), (), ("a",)]  # every value of c: in its header, not in cells
    assert marked(grid)["a"] == "seed 0"
    mixed = "mean over 2-3 seeds; the number varies by category"
    expected = [[], [], ["mean of 2 seeds (0, 1)"], [mixed], [mixed]]
    assert [[marked(grid)[each] for each in cells[1].notes] for cells in grid.cells] == expected
    assert {cell.notes for cells in grid.cells for cell in (cells[0], cells[2])} == {()}


def test_each_category_with_its_own_seed() -> None:
    grid = only([record(seed=1), record(task="cable", seed=2), record(task="pill", seed=2)], cells=["pro"])
    assert grid.notes[0] == ("", "Seed 2 unless marked.")
    assert [[marked(grid)[each] for each in cells[0].notes] for cells in grid.cells] == [
        *(["seed 1"], [], []),
        *(["seeds vary by category"], ["seeds vary by category"]),
    ]


def test_datasets_without_groups_have_one_mean() -> None:
    plain = {"b": None, "a": None}
    rows = texts(only([record(task=task, categories=plain) for task in plain], cells=["pro"]))  # type: ignore[arg-type]
    assert list(rows) == ["b", "a", "mean of all"]
    assert list(texts(only([record(task="b", categories={"b": None})]))) == ["b"]  # type: ignore[dict-item]


def test_single_group_has_no_separate_mean() -> None:
    names = dict.fromkeys(("a", "b"), "objects")
    assert list(texts(only([record(task=task, categories=names) for task in names]))) == ["a", "b", "mean of all"]


def test_nan_is_a_dash() -> None:
    assert texts(only([record((float("nan"), float("inf"), 1))]))["bottle"] == ["– – 1.0"]


def test_named_test_sets_are_rows_of_their_task() -> None:
    records = [record((v, v, v), "gear", test=test, categories=FOUR) for test, v in (("test", 90), ("dark", 60))]
    rows = texts(only(records, cells=["pro"]))
    assert rows["gear"] == ["90.0"]
    assert rows["gear/dark"] == ["60.0"]
    assert rows["mean of all (2 of 5)"] == ["75.0"]


def test_test_sets_of_one_task_for_all_categories_are_the_categories() -> None:
    records = [record((v, v, v), "together", test=test, categories=FOUR) for test, v in (("gear", 90), ("weave", 60))]
    assert list(texts(only(records)))[:2] == ["weave", "mean of textures (1 of 2)"]


def test_results_csv_and_tables_use_the_same_category_names() -> None:
    together = [record(task="together", test=test, categories=FOUR) for test in ("gear", "weave", "dark")]
    alone = [record(task="gear", test=test, categories=FOUR) for test in ("test", "dark")]
    for records in (together, alone):
        rows = {csv_row(each)["category"] for each in records}
        assert rows == {each.category for each in records} == {name for name in texts(only(records)) if name in rows}
    assert [each.category for each in (*together, *alone)] == ["gear", "weave", "together/dark", "gear", "gear/dark"]


def test_outdated_metrics_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(), record(method="patchcore")]
    monkeypatch.setitem(packaged_metrics(), "pro", dataclasses.replace(packaged_metrics()["pro"], revision=3))
    new = record(method="patchcore")
    assert "outdated" not in render_tables([new], PER_CLASS)
    grid = only([records[0], new])
    assert grid.columns[0].notes == ("a",)
    assert grid.notes == [("", "Seed 0."), ("a", "PRO: outdated (revision 1, now 3)")]
    grid = only([*records, record(method="zero")], cells=["pro"])  # two of three are outdated
    assert [head.notes for head in grid.columns] == [("a",), ("a",), ()]
    assert only([records[0]], cells=["pro"]).notes == [("", "Seed 0. Outdated (revision 1, now 3).")]


@pytest.mark.parametrize(
    ("changed", "description"),
    [
        ({"dataset": "visa", "titles": {"dataset": "VisA"}}, "VisA, input 256×256: PRO"),
        ({"protocol": "paper"}, "MVTec AD, input 256×256, as in the method's paper: PRO"),
        ({"input": {"resize": [256, 128], "crop": None}}, "MVTec AD, input 256×128: PRO"),
        ({"input": {"resize": [256, 256], "crop": [224, 224]}}, "input 256×256, crop 224×224: PRO"),
        ({"oracle": True}, "input 256×256, oracle (settings chosen on the test images): PRO"),
        (
            {"input": {"resize": [256, 256], "crop": None, "filter": "area"}},
            "MVTec AD, input 256×256, filter area: PRO",
        ),
        ({"precision": "bf16"}, "MVTec AD, input 256×256, bf16: PRO"),
    ],
)
def test_setups_have_their_own_tables(changed: dict[str, Any], description: str) -> None:
    records = [record((90, 90, 90)), record((50, 50, 50), method="patchcore", **changed)]
    assert sorted(len(part) for part in setups(records)) == [1, 1]
    made = {grid.caption: texts(grid)["bottle"] for grid in build_tables(records, PER_CLASS, ["pro"])}
    (caption,) = [caption for caption, row in made.items() if row == ["50.0"]]
    assert f"{description} (in %)" in caption
    assert made["MVTec AD, input 256×256: PRO (in %)"] == ["90.0"]
    assert len({grid.name for grid in build_tables(records, PER_CLASS)}) == 2  # labels of LaTeX


def test_records_from_before_input_filter_share_the_tables_of_bilinear_ones() -> None:
    said = {"resize": [256, 256], "crop": None, "filter": "bilinear"}
    records = [record(), record(input=said, task="cable"), record(input={**said, "filter": "area"})]
    assert [setup_name(part[0]) for part in setups(records)] == [
        "mvtec-unified-256x256-area",
        "mvtec-unified-256x256",
    ]
    assert [len(part) for part in setups(records)] == [1, 2]


def test_columns_by_title_and_backbone() -> None:
    pairs = [("patchcore", "wrn50"), ("padim", "wrn50"), ("padim", "r18"), ("zero", "none")]
    grid = only([record(method=method, backbone=backbone) for method, backbone in pairs])
    assert columns(grid) == ["PaDiM / R18", "PaDiM / WRN50", "PatchCore / WRN50", "zero"]


def test_methods_sharing_a_title_are_distinguished() -> None:
    titles = {"dataset": "MVTec AD", "method": "PaDiM", "backbone": "WRN50"}
    grid = only([record(method="padim", titles=titles), record(method="mine", titles=titles)])
    assert columns(grid) == ["PaDiM (mine) / WRN50", "PaDiM (padim) / WRN50"]


def test_hyper_parameters_are_not_averaged() -> None:
    records = [record((v, v, v), settings={"dims": dims, "more": {"eps": 1}}) for dims, v in ((50, 90), (100, 70))]
    grid = only([*records, record(backbone="r18", settings={"dims": 3})], cells=["pro"])
    assert columns(grid) == ["PaDiM / R18", "PaDiM (dims=50) / WRN50", "PaDiM (dims=100) / WRN50"]
    assert texts(grid)["bottle"] == ["70.0", "90.0*", "70.0"]


def test_every_differing_hyper_parameter_is_named() -> None:
    settings = [{"more": {"eps": eps}, "kind": kind} for eps, kind in ((0.1, "x"), (0.2, "x"), (0.1, None))]
    grid = only([record(task=task, settings=each) for task, each in zip(MVTEC, settings, strict=False)])
    assert columns(grid) == [
        "PaDiM (kind=null, more.eps=0.1) / WRN50",
        "PaDiM (kind=x, more.eps=0.1) / WRN50",
        "PaDiM (kind=x, more.eps=0.2) / WRN50",
    ]


def test_backbone_with_other_weights_has_its_own_column() -> None:
    def config(weights: str) -> dict[str, Any]:
        return {"method": {}, "backbone": {"weights": weights * 64}}

    grid = only([record(config=config("a")), record(config=config("b"))])
    assert columns(grid) == [f"PaDiM (backbone.weights={8 * each}) / WRN50" for each in "ab"]


def test_neutral_settings_do_not_split_columns() -> None:
    about = [{"title": "A", "revision": 1}, {"title": "B", "revision": 1, "input": 256}]
    grid = only([record(settings={"about": each}, seed=seed) for seed, each in enumerate(about)])
    assert columns(grid) == ["PaDiM / WRN50"]
    grid = only([record(settings={"about": {"revision": revision}}) for revision in (1, 2)])
    assert columns(grid) == ["PaDiM (revision=1) / WRN50", "PaDiM (revision=2) / WRN50"]


def test_unexplained_differences_are_labelled_by_fingerprint() -> None:
    clash = [record((v, v, v), fingerprint=f"{v}" * 32) for v in (10, 20)]
    grid = only([*clash, record((30, 30, 30), "pill")], cells=["pro"])
    assert columns(grid) == ["PaDiM / WRN50", "PaDiM (10101010) / WRN50", "PaDiM (20202020) / WRN50"]
    assert texts(grid)["bottle"] == ["–", "10.0", "20.0*"]
    assert texts(grid)["pill"] == ["30.0", "–", "–"]


def test_records_of_unlike_images_are_neither_averaged_nor_ranked() -> None:
    def of(test: str, fit: str = "1") -> dict[str, str]:
        return {"fit": fit * 64, "test": test * 64}

    usual = [record((v, v, v), seed=seed, hashes=of("2")) for seed, v in enumerate((10, 20))]
    rerun = record((60, 60, 60), seed=2, hashes=of("3"))
    other = record((90, 90, 90), method="patchcore", hashes=of("3", "4"))
    pill = record((30, 30, 30), "pill", hashes=of("5"))
    grid = only([*usual, rerun, other, pill], cells=["pro"])
    titles = ["PaDiM / WRN50", "PaDiM (other images) / WRN50", "PatchCore (other images 2) / WRN50"]
    assert columns(grid) == titles
    assert texts(grid)["bottle"] == ["15.0", "60.0", "90.0"], "none is the best, as they are not comparable"
    notes = " ".join(text for _, text in grid.notes)
    assert "other test images of bottle than unmarked values" in notes
    assert "other test images of bottle and other training images of bottle than unmarked values" in notes


def test_older_records_are_of_unknown_images() -> None:
    old, new = record((10, 10, 10)), record((20, 20, 20), seed=1, hashes={"fit": "1" * 64, "test": "2" * 64})
    grid = only([old, new], cells=["pro"])
    assert texts(grid)["bottle"] == ["15.0"]
    third = record((60, 60, 60), seed=2, hashes={"fit": "1" * 64, "test": "3" * 64})
    grid = only([old, new, third], cells=["pro"])
    assert texts(grid)["bottle"] == ["15.0", "60.0"]
    assert "does not tell which of the unlike images it was made from" in " ".join(text for _, text in grid.notes)


def test_methods_of_other_planes_are_not_of_other_images() -> None:
    known = [
        record((v, v, v), method=method, settings={"planes": planes}, hashes={"fit": digit * 64, "test": digit * 64})
        for v, method, planes, digit in ((10, "padim", ["rgb"], "1"), (20, "patchcore", ["xyz"], "2"))
    ]
    assert columns(only(known, cells=["pro"])) == ["PaDiM / WRN50", "PatchCore / WRN50"]


def timed(fps: float, method: str = "padim", task: str = "bottle", **others: Any) -> Record:
    speed = {**SPEED, "fps": fps, "latency_ms": 1000 / fps, "backbone_latency_ms": 20.0}
    return record(task=task, method=method, **{"speed": [speed], **others})


def test_operating_points() -> None:
    """F1 is ranked, false alarms and the floor are not; the number of held-out images is said; a setup of its own."""
    names = ("image_f1", "image_recall", "image_false_alarms", "image_f1_floor", "image_f1_max")
    values = {"other": (0.7, 0.6, 0.0, 0.85, 0.95), "padim": (0.8, 0.7, 0.1, 0.85, 0.9)}
    limits = {"image": 1.0, "pixel": 1.0, "max_false_alarms": 0.05}
    held_out = [
        record(
            method=method,
            task=task,
            metrics={name: {"value": value, "revision": 1} for name, value in zip(names, values[method], strict=True)},
            holdout=0.2,
            thresholds={**limits, "images": images},
        )
        for method in values
        for task, images in (("bottle", 42), ("zipper", 48))
    ]
    grid = only([*SMALL, *held_out], load_layout("operating", [FOLDER]))
    assert "holdout 0.2 (thresholds at 5% false alarms)" in grid.caption
    assert texts(grid) == {
        "other WRN50": ["70.0", "60.0", "0.0", "95.0*", "85.0", "–", "–"],
        "PaDiM WRN50": ["80.0*", "70.0*", "10.0", "90.0", "85.0", "–", "–"],
    }
    assert columns(only(held_out, COMPLEXITY))[:3] == ["Image (%) / AUROC", "Image (%) / recall", "FPS"]
    notes = " ".join(text for _, text in grid.notes)
    assert "Thresholds from 42 to 48 held-out normal images a category." in notes
    few = [dataclasses.replace(each, thresholds={**limits, "images": 19}) for each in held_out]
    notes = " ".join(text for _, text in only(few, load_layout("operating", [FOLDER])).notes)
    assert "Thresholds from 19 held-out normal images a category, fewer than 1 / max_false_alarms." in notes
    with pytest.raises(UsageError, match=r"no record has thresholds from held-out images; run with holdout=0\.2"):
        only(SMALL, load_layout("operating", [FOLDER]))
    strict = [dataclasses.replace(each, thresholds={**limits, "max_false_alarms": 0.1}) for each in held_out]
    both = setups([*held_out, record(), *strict])
    assert [len(part) for part in both] == [1, 4, 4]


def test_complexity() -> None:
    size = {"extra_params": 41_300_000, "extra_mb": 165.2, "stored_mb": 0.0}
    records = [timed(10, task=task) for task in ("bottle", "cable")]
    records += [timed(fps, "patchcore", task, size=size) for fps, task in ((20, "bottle"), (40, "cable"))]
    records += [record(task=task, method="other", backbone="none") for task in ("bottle", "cable")]
    assert render_tables(records, COMPLEXITY) == (
        """\
MVTec AD, input 256×256: speed, size and cost

                                 Latency (ms)     Extra parameters      Memory (MB)
                               ────────────────   ────────────────   ─────────────────
Method      Backbone     FPS   total   backbone   million       MB   stored   peak RAM   Fit (s)
────────────────────────────────────────────────────────────────────────────────────────────────
other                      –       –          –      0.00      0.0      0.0          1       1.0
PaDiM       WRN50      10.00   100.0       20.0      0.00      0.0      0.0          1       1.0
PatchCore   WRN50      30.00    37.5       20.0     41.30    165.2      0.0          1       1.0

Mean of 2 of 15 categories (bottle, cable). Seed 0. Speed: EPYC, 2 threads, batch 32, fp32. Fit
and memory: EPYC, 2 threads.
FPS: in batches. Latency: median over single images; backbone: its share, timed alone. MB = 10⁶
bytes.
Extra parameters: trained, not counting the backbone's. Stored: statistics of the normal images.
"""
    )
    assert texts(only(records, COMPLEXITY))["PatchCore WRN50"][:3] == ["30.00*", "37.5*", "20.0"]


def test_speeds_at_other_settings_are_not_compared() -> None:
    gpu = {"device": "H100", "threads": None, "batch_size": 64, "precision": "fp32", "fps": 900.0}
    both = timed(10)
    both.speed.append(gpu)
    grid = only([both, timed(20, "patchcore"), record(method="other")], COMPLEXITY)
    assert [head.above for head in grid.rows] == [
        *("EPYC, 2 threads, batch 32, fp32", ""),
        *("H100, batch 64, fp32", "speed not measured"),
    ]
    assert [head.opens for head in grid.rows] == [False, False, True, True]
    assert [shown(cells[0]) for cells in grid.cells] == ["10.00", "20.00*", "900.00", "–"]
    assert "Speed:" not in grid.notes[0][1]
    assert render_tables([both, timed(20, "patchcore")], COMPLEXITY).count("\nH100, batch 64, fp32\n") == 1


def test_costs_on_other_machines_are_not_compared(tmp_path: Path) -> None:
    text = MINE.replace("columns: categories", "columns: cells")
    fit = layout(tmp_path, text.replace("[pro]", "[{value: fit_s, best: lowest, scale: 1}]"))
    here = {"fit_s": 1.0, "device": "EPYC", "threads": 2}
    costs = [here, {**here, "fit_s": 2.0}]
    pair = [record(method=method, cost=cost) for method, cost in zip("ab", costs, strict=True)]
    assert [shown(cells[0]) for cells in only(pair, fit).cells] == ["1.0*", "2.0"]
    pair[1].cost["threads"] = 4
    assert [shown(cells[0]) for cells in only(pair, fit).cells] == ["1.0", "2.0"]


def test_fit_with_cached_features_is_marked() -> None:
    pair = [timed(10), timed(9, "patchcore")]
    pair[1].cost = {**pair[1].cost, "extraction": {"images": 0, "s": 1.0, "cached": True}}
    grid = only(pair, COMPLEXITY)
    notes = [[marked(grid)[each] for each in row[-1].notes] for row in grid.cells]
    assert notes == [[], ["fit: the backbone's share was timed when the features were cached"]]
    assert not grid.cells[1][-2].notes, "memory was measured"


def test_the_latest_speed_of_a_setting_counts() -> None:
    twice = timed(10)
    twice.speed.append({**twice.speed[0], "fps": 11.0})
    assert texts(only([twice], COMPLEXITY))["PaDiM WRN50"][0] == "11.00"


def test_percentile_of_too_few_calls_is_a_dash() -> None:
    grid = only([timed(10, speed=[{**SPEED, "fps": 10.0, "latency_ms": None}])], COMPLEXITY)
    assert texts(grid)["PaDiM WRN50"][:3] == ["10.00", "–", "–"]


def test_a_speed_that_was_not_timed_alone_is_marked() -> None:
    beside = timed(10)
    beside.speed[0] |= {"alone": False}
    grid = only([beside, timed(9, "spade"), timed(8, "zero")], COMPLEXITY)
    (mark,) = [mark for mark, text in grid.notes if text == "timed while other jobs were running on the machine"]
    assert [head.notes for head in grid.rows] == [(mark,), (), ()]
    mended = timed(11, speed=[*beside.speed, timed(11).speed[0] | {"alone": True}])
    assert not [text for _, text in only([mended], COMPLEXITY).notes if "other jobs" in text], "the latest counts"


def test_complexity_says_what_it_covers() -> None:
    records = [timed(10, task=task) for task in MVTEC] + [timed(9, "patchcore", task) for task in list(MVTEC)[1:]]
    slow = record(method="zero", cost={"fit_s": 9.0, "peak_ram_mb": None, "device": "H100", "threads": None})
    grid = only([*records, slow], COMPLEXITY)
    assert grid.notes[0][1].startswith("Mean of 15 categories unless marked. Seed 0. Speed: EPYC, 2 threads")
    assert [[marked(grid)[each] for each in head.notes] for head in grid.rows] == [
        [],
        ["mean of 14 of 15 categories (without carpet)"],
        ["1 of 15 categories (bottle)"],
    ]
    assert [marked(grid)[each] for each in grid.cells[2][-1].notes] == ["fit and memory: H100"]
    assert shown(grid.cells[0][0]) == "10.00"  # 15 categories against 14: not compared


def layout(tmp_path: Path, text: str, name: str = "mine") -> Layout:
    (tmp_path / f"{name}.yaml").write_text(text)
    return load_layout("mine", [tmp_path, FOLDER])


MINE = "name: mine\ncaption: '{cells}'\nrows: methods\ncolumns: categories\ncells: [pro]\nscale: 100\n"


def test_categories_as_columns(tmp_path: Path) -> None:
    grid = only(SMALL, layout(tmp_path, MINE))
    assert columns(grid) == [
        *("textures / weave", "textures / granite", "textures / mean of textures"),
        *("objects / gear", "objects / mean of objects (1 of 2)", "mean of all (3 of 4)"),
    ]
    assert texts(grid)["PaDiM WRN50"] == ["90.1", "80.0", "85.0", "92.0*", "92.0*", "87.4*"]
    lines = render_tables(SMALL, layout(tmp_path, MINE), format="latex").splitlines()
    header = [line for line in lines if "multicolumn" in line or "cmidrule" in line]
    assert header[0].strip() == r"&  & \multicolumn{3}{c}{textures} & \multicolumn{2}{c}{objects} &  \\"
    assert header[1].strip() == r"\cmidrule(lr){3-5} \cmidrule(lr){6-7}"


def test_methods_as_columns_metrics_as_rows(tmp_path: Path) -> None:
    text = MINE.replace("rows: methods", "rows: cells").replace("columns: categories", "columns: methods")
    grid = only(SMALL, layout(tmp_path, text.replace("[pro]", "[image_auroc, {value: pro, digits: 0}]")))
    assert texts(grid) == {"image AUROC": ["97.7*", "81.0", "96.3"], "PRO": ["–", "85", "87*"]}
    assert grid.notes == [("", "Mean of 3 of 4 categories (without biscuit). Seed 0.")]


def test_cells_are_chosen(tmp_path: Path) -> None:
    assert columns(only([record()], cells=["pro", "image_auroc"])) == ["PaDiM / WRN50"]
    assert texts(only([record()], cells=["pro", "image_auroc"]))["bottle"] == ["70.0 90.0"]
    assert "bottle                       70.0" in render_tables([record()], PER_CLASS, ["pro"])
    assert len(only([record()], COMPLEXITY, ["pro"]).columns) == 8  # its cells are columns, which stay
    with pytest.raises(UsageError, match="unknown metric image_aurc; did you mean image_auroc"):
        build_tables([record()], PER_CLASS, ["image_aurc"])
    with pytest.raises(UsageError, match="cells is empty"):
        build_tables([record()], PER_CLASS, [])


def test_a_users_own_metric() -> None:
    own = {"mine": {"value": 0.5, "revision": 1}}
    rows = texts(only([record(metrics=own), record(method="zero", metrics={})], cells=["mine"]))
    assert rows["bottle"] == ["50.0", "–"]


def test_the_first_folder_wins(tmp_path: Path) -> None:
    (tmp_path / "per_class.yaml").write_text(MINE.replace("mine", "per_class"))
    assert load_layout("per_class", [tmp_path, FOLDER]).columns == "categories"
    assert load_layout("per_class", [FOLDER, tmp_path]).columns == "methods"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("scale: 100", "scales: 100", "unknown key scales; did you mean scale"),
        ("scale: 100", "scale: ten", "scale is 'ten', expected a value of type float"),
        ("scale: 100", "digits: true", "digits is True"),
        ("scale: 100", "notes: [5]", r"notes is \[5\]"),
        ("name: mine", "name: other", "name is other, expected mine"),
        ("rows: methods", "rows: method", "rows or columns is method; did you mean methods"),
        ("rows: methods", "rows: categories", "exactly one of them must be methods"),
        ("rows: methods\n", "", "missing 1 required positional argument: 'rows'"),
        ("{cells}", "{cell}", r"caption: KeyError\('cell'\); valid: {dataset}, {setup}, {cells}"),
        ("[pro]", "[]", "cells is empty"),
        ("[pro]", "[5]", "found 5, expected a mapping"),
        ("[pro]", "[{title: PRO}]", "missing 1 required positional argument: 'value'"),
        ("[pro]", "[{value: pro, digit: 2}]", "unknown key digit; did you mean digits"),
        ("[pro]", "[{value: pro, over: Pixels}]", "over: Pixels has no effect"),
        ("[pro]", "[{value: pro, best: most}]", "best is most"),
        ("name: mine", "- name", "cannot be read"),
    ],
)
def test_invalid_layouts_are_rejected(tmp_path: Path, old: str, new: str, message: str) -> None:
    layout(tmp_path, MINE)
    with pytest.raises(UsageError, match=message):
        layout(tmp_path, MINE.replace(old, new))


def test_an_unknown_layout_names_the_closest() -> None:
    with pytest.raises(UsageError, match="no table layout named per_clas; did you mean per_class"):
        load_layout("per_clas", [FOLDER])


def test_every_layout_is_readable() -> None:
    assert [load_layout(path.stem, [FOLDER]).name for path in FOLDER.glob("*.yaml")]


def hostile() -> list[Record]:
    names = {HOSTILE: HOSTILE, "b": "g", "*c": "g", "[d]": "g"}
    titles = dict.fromkeys(("dataset", "method", "backbone"), HOSTILE)
    first = [record(task=task, categories=names, titles=titles, settings={"k": HOSTILE}) for task in names]
    return [*first, *(timed(1, "z_%", task, categories=names) for task in names)]


def test_hostile_names_keep_the_markdown_table() -> None:
    text = render_tables(hostile(), PER_CLASS, format="md")
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert html.count("<table>") == 1
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    assert {row.count("<td") + row.count("<th") for row in rows} == {3}
    shown = "a_b &amp; 50% #1 \\x {y} ~ ^ &lt;b&gt;|pipe| [z] --- `c` $m$ 漢é"
    assert f'<td style="text-align:left">{shown}</td>' in html
    assert f"<em>mean of {shown}</em>" in html


def test_hostile_names_keep_the_lines_of_the_console() -> None:
    text = render_tables([*hostile(), record(task="b", method="\x1b[31mred\r\n")], PER_CLASS)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    tables = [part.splitlines() for part in re.split(r"\n\n", text)]
    assert [len(lines) for lines in tables if lines[-1].startswith("mean of all")] == [12]


def pdf(text: str, folder: Path) -> str:
    """Compile a document, fail on overfull lines, and return the log."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-recommended)")
    (folder / "table.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "table.pdf").stat().st_size > 1000
    return done.stdout


def test_latex_compiles(tmp_path: Path) -> None:
    others = [
        record(task="cable", oracle=True),
        timed(5, speed=[{**SPEED, "fps": 1.0}, {**SPEED, "threads": 9, "fps": 2.0}]),
    ]
    for number, records in enumerate(([*SMALL, *others], hostile())):
        for each in (PER_CLASS, COMPLEXITY):
            folder = tmp_path / f"{number}-{each.name}"
            folder.mkdir()
            log = pdf(render_tables(records, each, format="latex", standalone=True), folder)
            assert "Overfull" not in log
            assert f"({len(setups(records))} page" in log.replace("\n", "")


def test_latex_typesets_every_unescaped_letter(tmp_path: Path) -> None:
    letters = "".join(map(chr, (*range(32, 127), *range(0xA0, 0x250), 0x2013, 0x2014, 0x2019, 0x4E00, 0x1F600)))
    names = [letters[start : start + 30] for start in range(0, len(letters), 30)]
    records = [record(task=name, categories=dict.fromkeys(names, "")) for name in names]
    pdf(render_tables(records, PER_CLASS, format="latex", standalone=True), tmp_path)


def test_latex_escapes() -> None:
    text = render_tables(hostile(), PER_CLASS, ["pro"], "latex")
    escaped = (
        r"a\_b \& 50\% \#1 \textbackslash{}x \{y\} \textasciitilde{} \textasciicircum{} \textless{}b\textgreater{}"
        r"\textbar{}pipe\textbar{} {[}z] -{}-{}- `c` \$m\$ U+6F22é"
    )
    assert f"    {escaped} & 70.0 & 70.0 " in text.replace(r"\textbf{70.0}", "70.0")
    assert "    {[}d] & " in text
    assert "    {*}c & " in text


def test_importing_tables_is_light() -> None:
    slow = {"torch", "pandas", "numpy", "rich", "omegaconf"}
    code = f"import sys, anomaly_bench.tables.formats.draw; print({slow} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_printing_tables_does_not_import_torch() -> None:
    packages = ("tables", "published", "comparison", "report", "records", "data", "config", "metrics")
    code = f"""
import importlib, pkgutil, sys
for name in {packages}:
    package = importlib.import_module("anomaly_bench." + name)
    modules = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    assert modules, name
    for each in modules:
        importlib.import_module(each)
        assert not {{"torch", "timm", "torchvision"}} & set(sys.modules), each"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_method_is_fitted_on_is_a_footnote() -> None:
    """From the YAML of built-in methods, from the record of others; nothing for normal images only."""
    own = {"about": {"title": "Mine", "revision": 1, "supervision": "few anomalies"}}
    made = [record(method="padim"), record(method="draem"), record(method="mine", settings=own)]
    grid = only(made, load_layout("per_class", [FOLDER]))
    notes = [[marked(grid)[mark] for mark in head.notes] for head in grid.columns]
    found = {
        name.split(" / ")[0]: [note for note in each if "fitted on" in note]
        for name, each in zip(columns(grid), notes, strict=True)
    }
    assert found == {
        "PaDiM": [],
        "draem": ["fitted on normal images and synthetic anomalies"],
        "mine": ["fitted on normal images and few anomalies"],
    }


def test_a_wrong_supervision_mark_is_refused() -> None:
    with pytest.raises(UsageError, match=r"method.about.supervision=labels: expected one of normal images only, synth"):
        supervision({"about": {"supervision": "labels"}})
    for name in choices("method", [conf_folder()]):
        assert supervision(packaged_node("method", name)), name
    assert supervision(packaged_node("method", "draem")) == "synthetic anomalies"
