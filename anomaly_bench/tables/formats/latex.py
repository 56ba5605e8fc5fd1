"""Tables as LaTeX: fragments to \\input that fit a paper's columns, or a complete document."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from anomaly_bench.tables.formats.fit import PLAIN, fitted, mark_widths
from anomaly_bench.tables.formats.latex_text import latex_text
from anomaly_bench.tables.formats.widths import SIZES
from anomaly_bench.tables.table import BEST, DASH, SECOND, cell_text, header_lines, labels_of

if TYPE_CHECKING:
    from anomaly_bench.tables.formats.fit import Fitted, Style
    from anomaly_bench.tables.table import Cell, CellValue, Table

MARK = "\\textsuperscript{{{}}}"
STYLES = {BEST: "\\textbf{{{}}}", SECOND: "\\underline{{{}}}"}
COLORS = {
    **{"better": "\\textcolor{{green!45!black}}{{{}}}", "worse": "\\textcolor{{red!75!black}}{{{}}}"},
    **{"even": "{}", "unlike": "\\textcolor{{gray}}{{{}}}"},
}
PACKAGES = {  # and what needs them
    "adjustbox": r"\begin{adjustbox}",
    "booktabs": r"\toprule",
    "rotating": r"\begin{sideways",
    "threeparttable": r"\begin{threeparttable}",
    "xcolor": r"\textcolor",
}


def latex(table: Table, fit: str = "page") -> str:
    """`table` environments to \\input; a comment on top names the packages that they need.

    Args:
        fit: one of `FITS`: the room that the table may take.
    """
    parts = fitted(table, fit)
    body = "\n".join(_environment(part, fit, number, len(parts)) for number, part in enumerate(parts, 1))
    used = [name for name, command in PACKAGES.items() if command in body]
    return f"% \\usepackage{{{','.join(used)}}}\n{body}"


def _environment(part: Fitted, fit: str, number: int, of: int) -> str:
    """One `table` environment. Its last resort, on a page narrower than expected, is scaling."""
    table, name = part.table, "sidewaystable" if fit == "landscape" else "table"
    name += "*" if part.wide else ""
    share, suffix = (f" ({number} of {of})", f"-{number}" if number > 1 else "") if of > 1 else ("", "")
    label = table.label or f"tab:{re.sub('[^A-Za-z0-9_-]', '-', table.name)}"
    caption = [f"\\caption{{{latex_text(table.caption + share)}}}", f"\\label{{{label}{suffix}}}", r"\par\smallskip"]
    body = _threeparttable(table, part.style)
    if fit != "none":
        body = [r"\begin{adjustbox}{max width=\linewidth}", *body, r"\end{adjustbox}"]
    lines = [f"\\begin{{{name}}}{'' if name.startswith('s') else '[t]'}", r"  \centering"]
    ordered = body + caption[:-1] if table.caption_below else caption + body
    lines += [*(f"  {line}" for line in ordered), f"\\end{{{name}}}"]
    return "\n".join(lines) + "\n"


def _threeparttable(table: Table, style: Style) -> list[str]:
    """The tabular with its notes in its own width."""
    settings = [] if style.size == PLAIN.size else [f"\\fontsize{{{style.size}}}{{{1.2 * style.size:g}}}\\selectfont"]
    settings += [] if style.sep == PLAIN.sep else [f"\\setlength{{\\tabcolsep}}{{{style.sep}pt}}"]
    lines = ("\\toprule", *_latex_header(table), "\\midrule", *_latex_body(table), "\\bottomrule")
    made = [f"\\begin{{tabular}}{{{_columns(table, style)}}}", *(f"  {line}" for line in lines), r"\end{tabular}"]
    if table.notes:
        notes = [f"  \\item[{mark}] {latex_text(text)}" for mark, text in table.notes]
        made += [r"\begin{tablenotes}[flushleft]", r"  \footnotesize", *notes, r"\end{tablenotes}"]
    return [r"\begin{threeparttable}", *(f"  {line}" for line in settings + made), r"\end{threeparttable}"]


def _columns(table: Table, style: Style) -> str:
    """The columns' alignment; where footnotes hang over the right edge of a column, there is room for their letters."""
    side = "c" if table.paired else "r"
    rooms = [SIZES[style.size][1] * width for width in mark_widths(table)]
    sides = ["l"] * len(table.corner)
    for head, before in zip(table.columns, [0.0, *rooms], strict=False):
        gap = f"@{{\\hspace{{{2 * style.sep + before:.1f}pt}}}}" if before else ""
        sides.append(f"{gap}{'|' if head.divides else ''}{side}")  # a rule before our columns, beside a paper's
    last = f"\\hspace{{{rooms[-1]:.1f}pt}}" if rooms and rooms[-1] else ""
    return f"@{{}}{''.join(sides)}@{{{last}}}"


def _latex_header(table: Table) -> Iterator[str]:
    escape = functools.partial(_latex_head, side="c" if table.paired else "r")
    levels = header_lines([labels_of(head, escape, MARK) for head in table.columns])
    for level, line in enumerate(levels, 1):
        stubs = [latex_text(title) if level == len(levels) else "" for title in table.corner]
        labels = [f"\\multicolumn{{{span}}}{{c}}{{{text}}}" if span > 1 else text for text, span in line]
        yield _latex_row([*stubs, *labels])
        rules, end = [], len(stubs)
        for _, span in line:
            end += span
            rules += [f"\\cmidrule(lr){{{end - span + 1}-{end}}}"] if span > 1 else []
        if rules:
            yield " ".join(rules)


def _latex_head(text: str, side: str) -> str:
    """A label, in several lines where it is broken."""
    lines = [latex_text(line) for line in text.split("\n")]
    return lines[0] if len(lines) == 1 else f"\\shortstack[{side}]{{{(chr(92) * 2).join(lines)}}}"


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_body(table: Table) -> Iterator[str]:
    for head, cells in zip(table.rows, table.cells, strict=True):
        if head.opens:
            yield "\\midrule"
        if head.above:
            width = len(table.corner) + len(table.columns)
            yield _latex_row([f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{latex_text(head.above)}}}}}"])
        stubs = labels_of(head, latex_text, MARK)
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
    return text if text == DASH else latex_text(text)


def document(made: Sequence[Table], fit: str, widest: int) -> str:
    """A complete LaTeX document on A4; for fit=none, the paper is wide enough for `widest` characters."""
    width = max(21, round(widest * 0.19 + 4)) if fit == "none" else 21  # cm; a bold digit is 0.19 cm wide
    lines = (
        "\\documentclass{article}",
        "\\usepackage[utf8]{inputenc}",
        f"\\usepackage{{{','.join(PACKAGES)}}}",
        f"\\usepackage[paperwidth={width}cm,paperheight=29.7cm,margin=2.5cm]{{geometry}}",
        "\\setlength{\\belowcaptionskip}{1ex}",
        "\\makeatletter\\setlength{\\@fptop}{0pt}\\makeatother % tables at the top of their pages",
        "\\pagestyle{empty}",
        "\\begin{document}",
        "\n\\clearpage\n".join(latex(table, fit) for table in made) + "\\end{document}",
    )
    return "\n".join(lines) + "\n"
