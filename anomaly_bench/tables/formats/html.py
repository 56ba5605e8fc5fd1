"""Tables in HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from anomaly_bench.tables.table import BEST, SECOND, cell_text, header_lines, labels_of, safe_text

if TYPE_CHECKING:
    from anomaly_bench.tables.table import CellValue, Table

SUP = "<sup>{}</sup>"
CSS = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; margin-bottom: 1ex; }
caption { caption-side: top; text-align: left; font-weight: bold; padding-bottom: 1ex; }
th, td { padding: 2px 10px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: normal; }
thead th { text-align: center; vertical-align: bottom; }
thead th[colspan] { border-bottom: 1px solid; }
tbody, tr.rule { border-top: 1px solid; }
tbody th, thead th.stub { text-align: left; }
tr.mean th { font-style: italic; }
.best { font-weight: bold; }
.second { text-decoration: underline; }
.published { color: #555; }
.better { color: #17722a; }
.worse { color: #b3261e; }
.unlike { color: #999; }
.notes { font-size: 13px; margin: 0 0 3em; padding: 0; list-style: none; max-width: 75em; }
"""


def html_page(made: Sequence[Table]) -> str:
    """A self-contained HTML page of tables."""
    title = html.escape(made[0].caption if made else "no tables")
    head = f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
    style = f"<style>{CSS}</style>\n</head>\n<body>\n"
    return head + style + "\n".join(map(html_table, made)) + "</body>\n</html>\n"


def html_table(table: Table, shares: Sequence[Sequence[float | None]] | None = None) -> str:
    """A <table> and a list of its notes; classes mark best values, means and gap grades.

    Args:
        shares: of each cell, for the shades of a heat map; the style sheet reads it as the variable `--share`.
    """
    lines = [f'<table id="{html.escape(table.name)}">', f"<caption>{_html_text(table.caption)}</caption>", "<thead>"]
    levels = header_lines([labels_of(head, _html_text, SUP) for head in table.columns])
    for level, line in enumerate(levels, 1):
        corner = table.corner if level == len(levels) else [""] * len(table.corner)
        stubs = [f'<th class="stub">{_html_text(title)}</th>' for title in corner]
        titles = [f'<th colspan="{span}">{label}</th>' if span > 1 else f"<th>{label}</th>" for label, span in line]
        lines.append(f"<tr>{''.join((*stubs, *titles))}</tr>")
    lines += ["</thead>", "<tbody>", *_html_body(table, shares), "</tbody>", "</table>"]
    notes = [f"<li>{SUP.format(mark) + ' ' if mark else ''}{_html_text(text)}</li>" for mark, text in table.notes]
    return "\n".join((*lines, '<ul class="notes">', *notes, "</ul>")) + "\n"


def _html_body(table: Table, shares: Sequence[Sequence[float | None]] | None) -> Iterator[str]:
    shades = [[_shade(share) for share in row] for row in shares or [[None] * len(row) for row in table.cells]]
    for head, cells, row in zip(table.rows, table.cells, shades, strict=True):
        if head.above:
            width = len(table.corner) + len(table.columns)
            yield f'<tr class="rule"><th colspan="{width}">{_html_text(head.above)}</th></tr>'
        kinds = " ".join(filter(None, ("rule" if head.opens and not head.above else "", "mean" if head.mean else "")))
        first, *others = labels_of(head, _html_text, SUP)
        stubs = "".join(f"<th>{label}</th>" for label in (_linked(first, head.link), *others))
        texts = [_linked(cell_text(cell, table.has_published, _html_value), cell.link) for cell in cells]
        marks = [SUP.format(",".join(cell.notes)) if cell.notes else "" for cell in cells]
        shown = "".join(f"<td{each[0]}>{each[1]}{each[2]}</td>" for each in zip(row, texts, marks, strict=True))
        yield f"<tr{f' class={kinds!r}' if kinds else ''}>{stubs}{shown}</tr>"


def _shade(share: float | None) -> str:
    return "" if share is None else f' style="--share: {share:.3f}"'


def _html_value(value: CellValue) -> str:
    parts = [_span(value.text, {BEST: "best", SECOND: "second"}.get(value.rank, ""))]
    parts += [_span(f"({value.published})", "published")] if value.published else []
    return " ".join([*parts, *([_span(value.gap, value.grade)] if value.gap else [])])


def _span(text: str, kind: str) -> str:
    return f'<span class="{kind}">{_html_text(text)}</span>' if kind else _html_text(text)


def _linked(content: str, address: str) -> str:
    return f'<a href="{html.escape(address)}">{content}</a>' if address else content


def _html_text(text: str) -> str:
    return html.escape(safe_text(text))
