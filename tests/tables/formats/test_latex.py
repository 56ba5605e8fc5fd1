"""LaTeX tables in the pages of papers: nothing is wider than its column, and letters print as themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_build import FOLDER, MVTEC, PER_CLASS, record
from test_papers import EVERY, LAYOUTS, table

from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.fit import fitted
from anomaly_bench.tables.formats.latex import PACKAGES, latex
from anomaly_bench.tables.formats.latex_text import latex_text
from anomaly_bench.tables.formats.widths import BOLD, SIZES, text_width
from anomaly_bench.tables.layout import load_layout

GEOMETRY = r"\usepackage[a4paper,margin=2.5cm]{geometry}"
CLASSES = {
    "article": rf"\documentclass{{article}}{GEOMETRY}",
    "two columns": rf"\documentclass[twocolumn]{{article}}{GEOMETRY}",
    "IEEE": r"\documentclass[journal]{IEEEtran}",
    "CVPR": r"\documentclass[10pt,twocolumn,letterpaper]{article}\usepackage{times}"
    r"\usepackage[letterpaper,textwidth=6.875in,textheight=8.875in,columnsep=0.3125in]{geometry}",
}
HEADS = [pytest.param(head, id=name, marks=[pytest.mark.slow] * (name != "IEEE")) for name, head in CLASSES.items()]
SOURCES = ("reported", "ours_beside", "measured", "gaps")
# adjustbox would hide what is too wide
WHOLE = r"\renewenvironment{adjustbox}[1]{}{}\vbadness10000\hbadness10000\vfuzz\maxdimen"


def compiled(text: str, folder: Path) -> str:
    """Run pdflatex and return its log with whole lines."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-extra texlive-publishers)")
    (folder / "paper.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        env={"max_print_line": "10000", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )
    if missing := re.search(r"File `(\S+)' not found", done.stdout):
        pytest.skip(f"LaTeX has no {missing[1]} (apt-get install texlive-latex-extra texlive-publishers)")
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def paper(tables: str, head: str) -> str:
    packages = f"\\usepackage[utf8]{{inputenc}}\\usepackage{{{','.join(PACKAGES)}}}"
    return f"{head}{packages}{WHOLE}\\begin{{document}}{tables}\\end{{document}}"


def too_wide(log: str) -> list[str]:
    return [width for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(width) > 1]


@pytest.fixture(scope="module")
def tables() -> str:
    """Every paper's table from every source, and generic ones, as wide as a page; some in a column or across a page."""
    made = [table(EVERY, layout, source) for layout in LAYOUTS.values() for source in SOURCES]
    made += [*build_tables(EVERY[:4], PER_CLASS), *build_tables(EVERY[:4], load_layout("complexity", [FOLDER]))]
    drawn = [latex(each) for each in made]
    drawn += [latex(each, fit) for each in made[::10] for fit in ("column", "landscape")]
    return "\n\\clearpage\n".join(drawn)


@pytest.mark.parametrize("head", HEADS)
def test_no_table_is_wider_than_its_column(head: str, tables: str, tmp_path: Path) -> None:
    assert too_wide(compiled(paper(tables, head), tmp_path)) == []


def test_a_table_that_does_not_fit_would_be_noticed(tmp_path: Path) -> None:
    plain = latex(table([], source="reported"), "none")
    assert len(too_wide(compiled(paper(plain, CLASSES["article"]), tmp_path))) == 1


def test_widths_are_those_of_latex(tmp_path: Path) -> None:
    """At every size, no narrower than the text is, and at most a tenth wider."""
    texts = ["0123456789.", "Reconstruction-based methods", "(100.0, 98.1)", "PaDiM-WR50-Rd550", "AE simm", "mean"]
    lines = [
        rf"\fontsize{{{size}}}{{12}}\selectfont\setbox0\hbox{{{bold}{text}}}\typeout{{width \the\wd0}}"
        for size in SIZES
        for bold in ("", r"\bfseries ")
        for text in texts
    ]
    document = rf"\documentclass{{article}}\begin{{document}}{''.join(lines)}x\end{{document}}"
    real = [float(width) for width in re.findall(r"width ([\d.]+)pt", compiled(document, tmp_path))]
    ours = [factor * bold * text_width(text) for factor, _ in SIZES.values() for bold in (1, BOLD) for text in texts]
    assert len(real) == len(ours)
    assert all(0.985 * true <= guess <= 1.1 * true for guess, true in zip(ours, real, strict=True))


def test_what_fits_no_page_at_6_points_is_two_tables() -> None:
    many = [record(method=f"method_{number}") for number in range(10)]
    (whole,) = build_tables(many, PER_CLASS)
    parts = fitted(whole, "page")
    assert [len(part.table.columns) for part in parts] == [5, 5]
    assert all(part.style.size >= 7 and part.wide for part in parts)
    text = latex(whole)
    assert re.findall(r"\\label{(.*)}", text) == ["tab:per_class", "tab:per_class-2"]
    assert re.findall(r"\((. of .)\)}", text) == ["1 of 2", "2 of 2"]


def test_narrow_tables_take_one_column() -> None:
    assert latex(table([], LAYOUTS["padim2020_IV"], "reported")).count("\\begin{table}[t]") == 1
    assert latex(table([], source="reported")).count("\\begin{table*}[t]") == 1
    assert "\\begin{sidewaystable*}\n" in latex(table([], source="reported"), "landscape")


def test_long_heads_are_broken_as_in_the_papers() -> None:
    text = latex(table([], source="reported"))
    assert r"\shortstack[c]{PaDiM-\\R18-\\Rd100}" in text or r"\shortstack[c]{PaDiM-\\R18-Rd100}" in text
    assert r"\shortstack[r]{Patch-\\Core}" in latex(table([], LAYOUTS["zheng2022_1"], "reported"))


def test_long_names_of_categories_are_abbreviated_where_it_is_narrow(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        'name: mine\ncaption: ""\nrows: methods\ncolumns: categories\ncells: [pro]\nscale: 100\n', encoding="utf-8"
    )
    made = [record(task=task) for task in MVTEC]
    (whole,) = build_tables(made, load_layout("mine", [tmp_path]))
    (part,) = fitted(whole, "page")
    assert [head.labels[-1] for head in part.table.columns[:5]] == ["carp.", "grid", "leat.", "tile", "wood"]


def test_letters_that_pdflatex_has_print_as_themselves(tmp_path: Path) -> None:
    names = ["Größe", "Łódź", "50µm", "½", "20 °C", "e\u0301", "Ø5", "ı", "naïve ﬁ", "x\u0302", "a\u0323\u0308", "“q”"]
    text = "\\par ".join(map(latex_text, names))
    assert "U+" not in text
    compiled(rf"\documentclass{{article}}\begin{{document}}{text}\end{{document}}", tmp_path)
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (apt-get install poppler-utils)")
    shown = subprocess.run(["pdftotext", "paper.pdf", "-"], cwd=tmp_path, capture_output=True, text=True).stdout
    for letter in ("ß", "µ", "°", "Ø", "ı", "½"):
        assert letter in shown.replace("μ", "µ"), (letter, shown)


def test_caption_and_label_are_the_authors(command: Any, tmp_path: Path) -> None:
    words = ["tables", "table=padim2020_IV", "source=reported", "format=latex"]
    status, out, err = command(*words, "caption=Mine", "label=tab:mine", "fit=column")
    assert (status, err) == (0, "")
    assert "\\caption{Mine}" in out
    assert "\\label{tab:mine}" in out
    for word, message in (
        ("fit=colum", "fit=colum: unknown; did you mean column"),
        ("format=md", "label=a has no effect on format=md; expected format=latex"),
        ("table=[padim2020_IV,spade2020_1]", "label= for 2 tables, expected one"),
    ):
        status, _, err = command(*words, "label=a", word)
        assert (status, message in err) == (2, True), err
