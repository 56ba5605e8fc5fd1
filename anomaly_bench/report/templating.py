"""Jinja's environment of HTML pages. A page has one script, allowed by its hash, and asks for nothing elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from anomaly_bench.report.figures.style import VARIABLES
from anomaly_bench.report.figures.svg import clean
from anomaly_bench.tables.formats.html import html_table
from anomaly_bench.version import __version__

if TYPE_CHECKING:
    from anomaly_bench.tables.table import Table


def environment() -> jinja2.Environment:
    """With what `base.html` and `shared.html` read."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly_bench.report"),
        autoescape=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def as_html(table: Table, shares: Sequence[Sequence[float | None]] | None = None) -> Markup:
        return Markup(html_table(table, shares))  # already escaped

    made.globals |= {"version": __version__, "variables": VARIABLES, "html_table": as_html}
    return made


def script(made: jinja2.Environment, *names: str) -> dict[str, Any]:
    """The values of `base.html` for a page that runs some of the templates' .js files, or none."""
    assert made.loader is not None
    parts = [made.loader.get_source(made, f"{name}.js")[0] for name in names]
    text = "".join(['"use strict";\n', *parts]) if parts else ""
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" if parts else "'none'"
    return {"script": Markup(text), "script_source": Markup(allowed)}
