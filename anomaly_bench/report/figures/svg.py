"""Export figures: as inline SVG in the page's colours, or as SVG, PDF or PNG files for print."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from anomaly_bench.files import write_atomically
from anomaly_bench.report.figures.style import PAPER, VARIABLES, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def clean(text: str) -> str:
    """Remove characters that HTML, SVG and PDF forbid: control characters and lone surrogates."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)


def save_for_print(figure: Figure, stem: Path) -> None:
    """Write `<stem>.svg` and `<stem>.pdf` on white, for print."""
    for kind in ("svg", "pdf"):
        write_figure(figure, stem.with_name(f"{stem.name}.{kind}"))


_NO_DATES: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}  # left out


def write_figure(figure: Figure, path: Path) -> None:
    """Write an svg, pdf or png file, chosen by the suffix; equal figures give equal bytes."""
    kind, buffer = path.suffix.lower().removeprefix("."), io.BytesIO()
    look: dict[str, Any] = {"dpi": 200, "facecolor": PAPER.light} if kind == "png" else {}
    with styled():
        figure.savefig(buffer, format=kind, metadata=_NO_DATES[kind], **look)
    write_atomically(path, buffer.getvalue())


_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_COLOURS = {shade.light: f"var(--{name})" for name, shade in VARIABLES.items()}


def inline(figure: Figure, name: str, title: str) -> str:
    """An `<svg>` element for a page.

    Colours are the page's `VARIABLES`, the font is the page's, numbers have 2 decimals, the style sheet sets the size;
    groups of a series have the class `series-N`, and ids start with `name`.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    for element in root.iter():
        _adapt(element, name, used)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": clean(title)}
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Adapt one element to a page with many figures; see `inline`."""
    own = element.attrib.pop("id", "")
    if own.startswith("series-"):
        element.set("class", own)
    elif own in used:
        element.set("id", f"{name}-{own}")
    for key, value in element.attrib.items():
        if key == "style":
            value = re.sub(r"font-family:[^;]*;? ?|(?<=font: )([\d.]+px) [^;]*", r"\1", value)
        if key in ("style", "fill", "stroke"):
            value = re.sub("#[0-9a-f]{6}", lambda found: _COLOURS.get(found[0], found[0]), value)
        if key in ("d", "x", "y", "transform", "width", "height"):
            value = re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
        value = re.sub(r"^#(?=.)|(?<=url\(#)", lambda found: f"{found[0]}{name}-", value)
        element.set(key, value)
