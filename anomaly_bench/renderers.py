"""Text of tables: a grid as console text, Markdown or LaTeX."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from anomaly_bench.errors import UsageError, closest
from anomaly_bench.tables import DASH, Cell, Grid, Head, Layout, Value, grids

if TYPE_CHECKING:
    from anomaly_bench.records import Record


def render(
    records: Iterable[Record],
    layout: Layout,
    cells: Sequence[str] | None = None,
    format: str = "console",
    *,
    color: bool = False,
    standalone: bool = False,
) -> str:
    """The tables of all setups as text.

    Args:
        cells: metrics to show instead of the layout's, see `grids`.
        format: "console", "md" or "latex".
        color: console only: set the best values in bold with terminal codes; for a terminal, not a file.
        standalone: LaTeX only: a whole document instead of a part to \\input.

    Raises:
        UsageError: an unknown format or metric.
    """
    made = grids(records, layout, cells)
    if format == "console":
        return "\n".join(console(grid, color) for grid in made)
    if format == "md":
        return "\n".join(map(markdown, made))
    if format == "latex":
        return document(made) if standalone else "\n".join(map(latex, made))
    raise UsageError(f"format={format}: no such format{closest(format, ('console', 'md', 'latex'))}")


def _one_line(text: str) -> str:
    """Without line breaks and control characters, which would break a table or command a terminal."""
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split())


def _joined(cell: Cell, show: Callable[[Value], str]) -> str:
    """'97.5', '(99.1, –, 92.1)', or one dash where nothing was measured."""
    if all(value.number is None for value in cell.values):
        return DASH
    texts = [show(value) for value in cell.values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _labels(head: Head, escape: Callable[[str], str], mark: str) -> list[str]:
    """Its labels, the last one that is not empty followed by the letters of its notes."""
    labels = [escape(label) for label in head.labels]
    if head.notes:
        last = max((level for level, label in enumerate(labels) if label), default=0)
        labels[last] += mark.format(",".join(head.notes))
    return labels


def _header(labels: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    """Header lines from the top as (label, columns that it spans); equal neighbours under one header are merged."""
    lines = []
    for level in range(len(labels[0])):
        line: list[tuple[str, int]] = []
        lowest = level == len(labels[0]) - 1
        for column, own in enumerate(labels):
            same = column > 0 and own[level] and own[: level + 1] == labels[column - 1][: level + 1]
            if same and not lowest:
                line[-1] = (own[level], line[-1][1] + 1)
            else:
                line.append((own[level], 1))
        lines.append(line)
    return lines


class Piece(NamedTuple):
    """A text in a line of the console's table. side: "<", "^", ">", or a character that fills its place."""

    plain: str
    side: str = "<"
    span: int = 1
    text: str = ""  # printed instead of `plain`: the same with terminal codes


RULE: list[Piece] = []
GAP = 3


def console(grid: Grid, color: bool = False) -> str:
    """Lines for a terminal or a text file; every column is as wide as it needs.

    Args:
        color: set the best values in bold with terminal codes.
    """
    lines = [*_header_pieces(grid), RULE, *_body_pieces(grid, color)]
    widths = _widths(lines, len(grid.corner) + len(grid.columns))
    total = _width(widths)
    drawn = [_drawn(pieces, widths) if pieces else "─" * total for pieces in lines]
    notes = [f"[{mark}] {text}" if mark else text for mark, text in grid.notes]
    folded = [textwrap.fill(_one_line(text), max(total, 88)) for text in (grid.caption, *notes)]
    return "\n".join((folded[0], "", *drawn, *([""] if notes else []), *folded[1:])) + "\n"


def _header_pieces(grid: Grid) -> Iterator[list[Piece]]:
    side = "^" if grid.paired else ">"
    header = _header([_labels(head, _one_line, "[{}]") for head in grid.columns])
    for level, line in enumerate(header, 1):
        stubs = [Piece(title if level == len(header) else "") for title in grid.corner]
        yield [*stubs, *(Piece(label, "^" if span > 1 else side, span) for label, span in line)]
        if any(span > 1 for _, span in line):
            yield [*(Piece("") for _ in stubs), *(Piece("", "─" if span > 1 else " ", span) for _, span in line)]


def _body_pieces(grid: Grid, color: bool) -> Iterator[list[Piece]]:
    marks = [[f"[{','.join(cell.notes)}]" if cell.notes else "" for cell in row] for row in grid.cells]
    room = [max(map(len, column)) for column in zip(*marks, strict=True)]
    for row, cells, own in zip(grid.rows, grid.cells, marks, strict=True):
        if row.opens:
            yield RULE
        if row.above:
            yield [Piece(_one_line(row.above), span=len(grid.corner) + len(grid.columns))]
        ends = [mark.ljust(width) for mark, width in zip(own, room, strict=True)]
        stubs = [Piece(label) for label in _labels(row, _one_line, "[{}]")]
        yield [*stubs, *(_value_piece(cell, end, color) for cell, end in zip(cells, ends, strict=True))]


def _value_piece(cell: Cell, end: str, color: bool) -> Piece:
    bold = "\x1b[1m{}\x1b[0m" if color else "{}"
    text = _joined(cell, lambda value: bold.format(value.text) if value.rank == 1 else value.text)
    return Piece(_joined(cell, lambda value: value.text) + end, ">", 1, text + end)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _widths(lines: Iterable[Sequence[Piece]], columns: int) -> list[int]:
    """Of columns: the widest single piece, then more for the last column under a wider span."""
    from rich.cells import cell_len

    widths = [0] * columns
    placed = [(sum(piece.span for piece in pieces[:at]), piece) for pieces in lines for at, piece in enumerate(pieces)]
    for start, piece in sorted(placed, key=lambda pair: pair[1].span):
        end = start + piece.span
        widths[end - 1] += max(0, cell_len(piece.plain) - _width(widths[start:end]))
    return widths


def _drawn(pieces: Sequence[Piece], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    texts, start = [], 0
    for piece in pieces:
        width = _width(widths[start : start + piece.span])
        room = width - cell_len(piece.plain)
        left = {"<": 0, "^": room // 2, ">": room}.get(piece.side, 0)
        fill = " " if piece.side in "<^>" else piece.side
        texts.append(fill * left + (piece.text or piece.plain) + fill * (room - left))
        start += piece.span
    return (" " * GAP).join(texts).rstrip()


def markdown(grid: Grid) -> str:
    """A GitHub-flavoured table: header lines and letters of notes as <br> and <sup>."""
    header = ["<br>".join(filter(None, _labels(head, _markdown_text, "<sup>{}</sup>"))) for head in grid.columns]
    rows = [[*map(_markdown_text, grid.corner), *header]]
    for head, cells in zip(grid.rows, grid.cells, strict=True):
        if head.above:
            rows.append([f"*{_markdown_text(head.above)}*", *[""] * (len(rows[0]) - 1)])
        stubs = _labels(head, _markdown_text, "<sup>{}</sup>")
        rows.append([f"*{stubs[0]}*" if head.mean else stubs[0], *stubs[1:], *map(_markdown_cell, cells)])
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" * len(grid.corner) + ">" * len(grid.columns)
    shapes = list(zip(sides, widths, strict=True))
    padded = [[f"{text:{side}{width}}" for text, (side, width) in zip(row, shapes, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    dashes = "|".join(f":{'-' * (width + 1)}" if side == "<" else f"{'-' * (width + 1)}:" for side, width in shapes)
    marks = [f"<sup>{mark}</sup> " if mark else "" for mark, _ in grid.notes]
    notes = [f"- {mark}{_markdown_text(text)}" for mark, (_, text) in zip(marks, grid.notes, strict=True)]
    parts = (f"**{_markdown_text(grid.caption)}**", "", lines[0], f"|{dashes}|", *lines[1:], *([""] if notes else []))
    return "\n".join((*parts, *notes)) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = _joined(cell, lambda value: f"**{value.text}**" if value.rank == 1 else value.text)
    return text + (f"<sup>{','.join(cell.notes)}</sup>" if cell.notes else "")


def _markdown_text(text: str) -> str:
    """Escaped; underscores within words are left, as they mean nothing there."""
    return re.sub(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", _one_line(text))


TEX = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    **{char: f"{{{char}}}" for char in "[*"},  # after a line break they would be its argument or its star
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "{''}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"–": r"{\textendash}", "—": r"{\textemdash}", "’": "'", "×": r"$\times$", "±": r"$\pm$", "⁶": "$^6$"},
}
OGONEK = "\N{COMBINING OGONEK}"  # the one accent up to U+017F that the default encoding lacks


def _latex_text(text: str) -> str:
    escaped = "".join(map(_latex_char, _one_line(text)))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens are no dash


def _latex_char(char: str) -> str:
    """Escaped; what the default fonts have no glyph for as its code, U+6F22."""
    letters = unicodedata.normalize("NFD", char)  # the letter, then its accents
    accented = char <= "ſ" and letters[0].isascii() and OGONEK not in letters
    return TEX.get(char) or (char if accented else f"U+{ord(char):04X}")


def latex(grid: Grid) -> str:
    """A `table` environment; needs \\usepackage{booktabs}."""
    sides = "l" * len(grid.corner) + ("c" if grid.paired else "r") * len(grid.columns)
    marks = [f"\\textsuperscript{{{mark}}}~" if mark else "" for mark, _ in grid.notes]
    notes = [mark + _latex_text(text) for mark, (_, text) in zip(marks, grid.notes, strict=True)]
    below = ["  \\par\\smallskip", "  \\parbox{\\linewidth}{\\footnotesize", "    " + " \\\\\n    ".join(notes) + "}"]
    lines = [
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{_latex_text(grid.caption)}}}",
        f"  \\label{{tab:{re.sub('[^A-Za-z0-9_-]', '-', grid.name)}}}",
        f"  \\begin{{tabular}}{{{sides}}}",
        *(
            f"    {line}"
            for line in ("\\toprule", *_latex_header(grid), "\\midrule", *_latex_body(grid), "\\bottomrule")
        ),
        "  \\end{tabular}",
        *(below if notes else ()),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_header(grid: Grid) -> Iterator[str]:
    header = _header([_labels(head, _latex_text, "\\textsuperscript{{{}}}") for head in grid.columns])
    for level, line in enumerate(header, 1):
        stubs = [_latex_text(title) if level == len(header) else "" for title in grid.corner]
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


def _latex_body(grid: Grid) -> Iterator[str]:
    for head, cells in zip(grid.rows, grid.cells, strict=True):
        if head.opens:
            yield "\\midrule"
        if head.above:
            width = len(grid.corner) + len(grid.columns)
            yield _latex_row([f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{_latex_text(head.above)}}}}}"])
        stubs = _labels(head, _latex_text, "\\textsuperscript{{{}}}")
        stubs[0] = f"\\emph{{{stubs[0]}}}" if head.mean else stubs[0]
        yield _latex_row([*stubs, *map(_latex_cell, cells)])


def _latex_cell(cell: Cell) -> str:
    text = _joined(cell, lambda value: f"\\textbf{{{value.text}}}" if value.rank == 1 else value.text)
    mark = f"\\rlap{{\\textsuperscript{{{','.join(cell.notes)}}}}}" if cell.notes else ""
    return text.replace(DASH, "--") + mark


def document(made: Sequence[Grid]) -> str:
    """A whole LaTeX document, one table a page, the paper as wide as the widest table needs."""
    widest = max((len(line) for grid in made for line in console(grid).splitlines()), default=0)
    width = max(21, round(widest * 0.18 + 4))  # cm; a digit is 0.18 cm wide
    lines = (
        "\\documentclass{article}",
        "\\usepackage[utf8]{inputenc}",
        "\\usepackage{booktabs}",
        f"\\usepackage[paperwidth={width}cm,paperheight=29.7cm,margin=2cm]{{geometry}}",
        "\\setlength{\\belowcaptionskip}{1ex}",
        "\\makeatletter\\setlength{\\@fptop}{0pt}\\makeatother % tables at the top of their pages",
        "\\pagestyle{empty}",
        "\\begin{document}",
        "\n\\clearpage\n".join(map(latex, made)) + "\\end{document}",
    )
    return "\n".join(lines) + "\n"
