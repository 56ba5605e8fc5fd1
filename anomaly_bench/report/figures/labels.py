"""Labelled points, with labels placed so they do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_bench.report.figures.style import FONT, INK, MUTED
from anomaly_bench.report.figures.svg import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels of the drawing
# (right, up) in points, and the side of that place which the text lies on (-1 left, 0 both, 1 right); nearest first
OFFSETS: list[tuple[float, float, int]] = [
    place
    for far in (8, 18, 28, 40, 54)
    for place in (
        *((far, 0, 1), (-far, 0, -1), (0, far + 2, 0), (0, -far - 2, 0)),
        *((0.7 * far, far, 1), (0.7 * far, -far, 1), (-0.7 * far, far, -1), (-0.7 * far, -far, -1)),
    )
]


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot.

    Attributes:
        label: its name; behind it the share, if its mean leaves out categories that others have: a hollow mark.
        series: the number of its style, None for a published value.
        method: our id.
    """

    x: float
    y: float
    label: str
    series: int | None = None
    method: str = ""
    share: str = ""

    @property
    def text(self) -> str:
        return f"{self.label} ({self.share})" if self.share else self.label


def label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Place each label where it covers no point or other label; distant ones get a thin line."""
    scale = points_to_pixels(axes)
    left, bottom, right, top = axes.get_window_extent().extents
    places = [tuple(axes.transData.transform((point.x, point.y))) for point in points]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in places]
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: (pair[0].series is None, pair[1])):
        boxes = [_label_box(point.text, x, y, offset, scale) for offset in OFFSETS]
        free = [
            3 * _shared_area(box, (left, bottom, right, top)) - sum(_shared_area(box, each) for each in taken)
            for box in boxes
        ]
        chosen = max(range(len(boxes)), key=lambda number: (round(free[number]), -number))
        taken.append(boxes[chosen])
        _write(axes, point, OFFSETS[chosen])


def _write(axes: Axes, point: Point, offset: tuple[float, float, int]) -> None:
    """A label at one of `OFFSETS` from its point."""
    dx, dy, side = offset
    line = {"arrowstyle": "-", "color": MUTED.light, "linewidth": 0.6, "shrinkB": 4}
    text = axes.annotate(
        clean(point.text),
        (point.x, point.y),
        (dx, dy),
        textcoords="offset points",
        ha={-1: "right", 0: "center", 1: "left"}[side],
        va="center",
        color=MUTED.light if point.series is None else INK.light,
        arrowprops=line if max(abs(dx), abs(dy)) > 12 else None,
    )
    if point.series is not None:
        text.set_gid(f"series-{point.series}")


def _label_box(label: str, x: float, y: float, offset: tuple[float, float, int], scale: float) -> Box:
    """The box that a label of the point at pixel (x, y) would cover."""
    dx, dy, side = offset
    width, height = text_width(label) * scale, 1.15 * FONT * scale
    left, bottom = x + dx * scale + (side - 1) / 2 * width, y + dy * scale - height / 2
    return left, bottom, left + width, bottom + height


def _shared_area(first: Box, second: Box) -> float:
    """The overlap area of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def text_width(label: str) -> float:
    """Approximate text width in points; the reader's font is unknown."""
    return 0.63 * FONT * len(label)


def points_to_pixels(axes: Axes) -> float:
    """Pixels of the drawing per point."""
    return float(axes.figure.dpi) / 72
