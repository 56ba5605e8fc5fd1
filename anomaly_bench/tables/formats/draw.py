"""Render tables in a chosen format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly_bench.errors import UsageError, closest
from anomaly_bench.tables.formats.console import console
from anomaly_bench.tables.formats.csv_text import csv_text
from anomaly_bench.tables.formats.fit import FITS
from anomaly_bench.tables.formats.html import html_page, html_table
from anomaly_bench.tables.formats.latex import document, latex
from anomaly_bench.tables.formats.markdown import markdown

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Table

FORMATS = {"console": "txt", "md": "md", "latex": "tex", "csv": "csv", "html": "html"}  # and their suffixes


def draw(
    made: Sequence[Table],
    format: str,
    *,
    color: bool = False,
    room: int = 0,
    standalone: bool = False,
    fit: str = "page",
) -> str:
    """Render tables in one format.

    Args:
        format: one of `FORMATS`.
        room: console only: characters in a line; 0: no limit.
        color: console only: color marks and gaps with terminal codes.
        standalone: a complete LaTeX document or HTML page, instead of a fragment to \\input.

        fit: LaTeX only: the room that a table may take, one of `FITS`.

    Raises:
        UsageError: an unknown format or fit, or `standalone` where it has no effect.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format}: no such format{closest(format, FORMATS)}")
    if fit not in FITS:
        raise UsageError(f"fit={fit}: unknown{closest(fit, FITS)}")
    if standalone and format not in ("latex", "html"):
        raise UsageError(f"standalone=true has no effect on format={format}; expected format=latex or html")
    if format == "csv":
        return csv_text(made)
    if standalone:
        widest = max((len(line) for table in made for line in console(table).splitlines()), default=0)
        return document(made, fit, widest) if format == "latex" else html_page(made)
    if format == "console":
        return "\n".join(console(table, color, room) for table in made)
    if format == "latex":
        return "\n".join(latex(table, fit) for table in made)
    return "\n".join(markdown(table) if format == "md" else html_table(table) for table in made)
