"""Widths of text in Computer Modern Roman, the widest of the usual fonts: what fits in it fits in Times, too."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

# thousandths of the size, from cmr10
_GROUPS = {
    278: "il.,:;[]!'`|",
    306: "fj",
    333: "- \u00ad",
    361: "I_",
    389: "t()",
    395: "rs",
    445: "cez",
    473: "?",
    500: '0123456789ago/${}~^\\–"',
    528: "kqvxy",
    556: "bdhnpuS",
    625: "LZ",
    653: "F",
    681: "EP",
    723: "CTw",
    750: "AHNUVXYR",
    778: "DKOQG&+=<>−×±",
    834: "m%#B",
    1028: "MW—→",
}
_WIDTHS = {char: width / 1000 for width, chars in _GROUPS.items() for char in chars}
_WIDEST = 1.1  # of characters that are not listed
BOLD = 1.16
# size in points -> width of text of 10 pt at this size, also of its superscripts: small fonts are wider for their size
SIZES = {10: (1.0, 0.81), 9: (0.93, 0.75), 8: (0.86, 0.75), 7: (0.80, 0.70), 6: (0.74, 0.70)}


@functools.lru_cache(maxsize=4096)
def text_width(text: str) -> float:
    """Points that a text takes at 10 pt; accents take no room."""
    letters = (char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
    return 10 * sum(_WIDTHS.get(char, _WIDEST) for char in letters)


def column_widths(pieces: Iterable[tuple[int, int, float]], columns: int, gap: float) -> list[float]:
    """Column widths for pieces (first column, span, width); the last column under a wider span grows to fit."""
    widths = [0.0] * columns
    for start, span, width in sorted(pieces, key=lambda piece: piece[1]):
        end = start + span
        widths[end - 1] += max(0.0, width - sum(widths[start:end]) - gap * (span - 1))
    return widths
