"""Tables as LaTeX: fragments to \\input, or a complete document. Needs booktabs, and xcolor for coloured gaps."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from anomaly_bench.tables.table import BEST, DASH, SECOND, cell_text, header_lines, labels_of, safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Cell, CellValue, Table

TEX = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    **{char: f"{{{char}}}" for char in "[*"},  # after a line break they would be its argument or its star
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "{''}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{
        "−": "$-$",
        "–": r"{\textendash}",
        "—": r"{\textemdash}",
        "’": "'",
        "×": r"$\times$",
        "±": r"$\pm$",
        "⁶": "$^6$",
    },
}
MARK = "\\textsuperscript{{{}}}"
STYLES = {BEST: "\\textbf{{{}}}", SECOND: "\\underline{{{}}}"}
COLORS = {
    **{"better": "\\textcolor{{green!45!black}}{{{}}}", "worse": "\\textcolor{{red!75!black}}{{{}}}"},
    **{"even": "{}", "unlike": "\\textcolor{{gray}}{{{}}}"},
}
OGONEK = "\N{COMBINING OGONEK}"  # the one accent up to U+017F that the default encoding lacks


def _latex_text(text: str) -> str:
    escaped = "".join(map(_latex_char, safe_text(text)))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens are no dash


def _latex_char(char: str) -> str:
    """Escape a character; one without a glyph in the default fonts becomes its code point, U+6F22."""
    letters = unicodedata.normalize("NFD", char)  # the letter, then its accents
    accented = char <= "ſ" and letters[0].isascii() and OGONEK not in letters
    return TEX.get(char) or (char if accented else f"U+{ord(char):04X}")


def latex(table: Table) -> str:
    """A `table` environment; needs booktabs, and xcolor if published values are shown."""
    sides = "l" * len(table.corner) + ("c" if table.paired else "r") * len(table.columns)
    notes = [(MARK.format(mark) + "~" if mark else "") + _latex_text(text) for mark, text in table.notes]
    below = ["  \\par\\smallskip", "  \\parbox{\\linewidth}{\\footnotesize", "    " + " \\\\\n    ".join(notes) + "}"]
    lines = [
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{_latex_text(table.caption)}}}",
        f"  \\label{{tab:{re.sub('[^A-Za-z0-9_-]', '-', table.name)}}}",
        f"  \\begin{{tabular}}{{{sides}}}",
        *(
            f"    {line}"
            for line in ("\\toprule", *_latex_header(table), "\\midrule", *_latex_body(table), "\\bottomrule")
        ),
        "  \\end{tabular}",
        *(below if notes else ()),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_header(table: Table) -> Iterator[str]:
    levels = header_lines([labels_of(head, _latex_text, MARK) for head in table.columns])
    for level, line in enumerate(levels, 1):
        stubs = [_latex_text(title) if level == len(levels) else "" for title in table.corner]
        labels = [f"\\multicolumn{{{span}}}{{c}}{{{text}}}" if span > 1 else text for text, span in line]
        yield _latex_row([*stubs, *labels])
        rules, end = [], len(stubs)
        for _, span in line:
            end += span
            rules += [f"\\cmidrule(lr){{{end - span + 1}-{end}}}"] if span > 1 else []
        if rules:
            yield " ".join(rules)


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_body(table: Table) -> Iterator[str]:
    for head, cells in zip(table.rows, table.cells, strict=True):
        if head.opens:
            yield "\\midrule"
        if head.above:
            width = len(table.corner) + len(table.columns)
            yield _latex_row([f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{_latex_text(head.above)}}}}}"])
        stubs = labels_of(head, _latex_text, MARK)
        stubs[0] = f"\\emph{{{stubs[0]}}}" if head.mean else stubs[0]
        yield _latex_row([*stubs, *(_latex_cell(cell, table.has_published) for cell in cells)])


def _latex_cell(cell: Cell, with_published: bool) -> str:
    mark = f"\\rlap{{{MARK.format(','.join(cell.notes))}}}" if cell.notes else ""
    return cell_text(cell, with_published, _latex_value).replace(DASH, "--") + mark


def _latex_value(value: CellValue) -> str:
    text = STYLES.get(value.rank, "{}").format(_latex_number(value.text))
    text += f" ({_latex_number(value.published)})" if value.published else ""
    return text + (" " + COLORS[value.grade].format(_latex_number(value.gap)) if value.gap else "")


def _latex_number(text: str) -> str:
    return text if text == DASH else _latex_text(text)


def document(made: Sequence[Table], widest: int) -> str:
    """A complete LaTeX document, one table per page, the paper wide enough for `widest` characters."""
    width = max(21, round(widest * 0.19 + 4))  # cm; a bold digit is 0.19 cm wide
    lines = (
        "\\documentclass{article}",
        "\\usepackage[utf8]{inputenc}",
        "\\usepackage{booktabs,xcolor}",
        f"\\usepackage[paperwidth={width}cm,paperheight=29.7cm,margin=2cm]{{geometry}}",
        "\\setlength{\\belowcaptionskip}{1ex}",
        "\\makeatletter\\setlength{\\@fptop}{0pt}\\makeatother % tables at the top of their pages",
        "\\pagestyle{empty}",
        "\\begin{document}",
        "\n\\clearpage\n".join(map(latex, made)) + "\\end{document}",
    )
    return "\n".join(lines) + "\n"
