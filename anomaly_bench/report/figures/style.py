"""Figure styles: each series (a method with a backbone) has the same colour, marker and dashes in every figure.

No two lines differ in colour alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple


class Shade(NamedTuple):
    """A colour on light and dark backgrounds, each with a contrast of at least 3."""

    light: str
    dark: str


PAPER, INK = Shade("#ffffff", "#14181d"), Shade("#1b1f24", "#e6e9ed")
MUTED, LINE = Shade("#5a646f", "#9aa5b1"), Shade("#d3d9e0", "#39424c")
SERIES = (
    *(Shade("#0072b2", "#56b4e9"), Shade("#d55e00", "#ff9e4a"), Shade("#00845f", "#2fd0a0")),
    *(Shade("#a23b8f", "#e59ad1"), Shade("#7a5c01", "#e8d44d"), Shade("#2b2f77", "#a9b0ff")),
    *(Shade("#c2185c", "#ff8fb0"), Shade("#4d4d4d", "#c9ced4")),
)
VARIABLES = {
    **{"paper": PAPER, "ink": INK, "muted": MUTED, "line": LINE},
    **{f"series-{number}": shade for number, shade in enumerate(SERIES)},
}
MARKERS = "os^DvPX<>p"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
FONT = 10.0  # points
STYLE: Any = {
    "font.size": FONT,
    "text.parse_math": False,  # dollar signs in names are literal
    "text.color": INK.light,
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": INK.light,
    "axes.titlesize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE.light,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelcolor": INK.light,
    "ytick.labelcolor": INK.light,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "anomaly-bench",  # reproducible bytes
    "pdf.fonttype": 42,
    "path.simplify_threshold": 0.2,
}


@contextlib.contextmanager
def styled(changes: Any = None) -> Iterator[None]:
    """Draw in `STYLE`, whatever a matplotlibrc says: matplotlib reads the one in the current folder first."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, **(changes or {})})
        yield
