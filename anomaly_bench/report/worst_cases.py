"""The images that methods get most wrong, seen by all methods that rank them among their worst, and thresholds."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from anomaly_bench.records import gallery

if TYPE_CHECKING:
    from anomaly_bench.records.gallery import Case
    from anomaly_bench.records.record import Record
    from anomaly_bench.report.sections import Section

MOST_SHOWN = 24  # images of a kind and category
CASE_TITLES = {
    "alarm": "False alarms: normal images of highest score",
    "miss": "Misses: defective images of lowest score",
}


@dataclass(frozen=True)
class View:
    """One method's view of an image: its map (a data URI, or empty), its rank, and if it is above the threshold."""

    series: int
    map: str
    case: Case
    above: bool | None

    @property
    def mistaken(self) -> bool:
        """At the threshold; False where there is none."""
        return self.above is not None and self.above == (self.case.kind == "alarm")


@dataclass
class Doubt:
    """An image among the worst of at least one method, as seen by all such methods.

    name: among all categories, as in a file of corrected labels.
    image, mask: data URIs; empty if no picture was kept or there is no mask.
    """

    kind: str
    file: str
    defect: str | None
    name: str
    image: str = ""
    mask: str = ""
    views: list[View] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Number of methods that rank it on the wrong side of at least one image with the other label."""
        return sum(view.case.crossed > 0 for view in self.views)

    @property
    def said(self) -> str:
        """How many methods are wrong about it, and at their thresholds."""
        side = "no lower than some defective image" if self.kind == "alarm" else "no higher than some normal image"
        right = "below every defective image" if self.kind == "alarm" else "above every normal image"
        count = f"{self.wrong} of {_methods(len(self.views))} shown"
        text = f"{count} score it {side}" if self.wrong else f"{_methods(len(self.views))} shown: {right}"
        judged = [view for view in self.views if view.above is not None]
        if judged:
            mistaken = sum(view.mistaken for view in judged)
            verb = "call it defective" if self.kind == "alarm" else "miss it"
            text += f"; {mistaken} of {len(judged)} {verb} at the threshold"
        return text

    def order(self) -> tuple[float, ...]:
        """Sort key of the gallery: wrong for most methods first, then by how far it is on the wrong side."""
        shares = [view.case.crossed / max(view.case.others, 1) for view in self.views]
        return -self.wrong, -len(self.views), -sum(shares)


def _methods(count: int) -> str:
    return f"{count} method{'' if count == 1 else 's'}"


def doubts(section: Section, category: str) -> list[Doubt]:
    """The worst images of a category over all methods, using each method's first seed with pictures."""
    found: dict[tuple[str, str], Doubt] = {}
    for number, entry in enumerate(section.entries):
        made = sorted(entry.records.get(category, ()), key=lambda record: record.repetition)
        places = [(record, folder / record.path.with_suffix("")) for record in made for folder in section.results]
        if not made:
            continue
        record, pictures = next((each for each in places if each[1].is_dir()), places[0])
        limit = (record.thresholds or {}).get("image")
        for case in gallery.cases(section.whole(record), pictures):
            new = Doubt(case.kind, case.file, case.defect, record.image_name(case.file))
            doubt = found.setdefault((case.kind, case.file), new)
            parts = gallery.squares(case.picture) if case.picture else {}
            doubt.image = doubt.image or ("image" in parts and data_uri(parts["image"])) or ""
            doubt.mask = doubt.mask or ("mask" in parts and data_uri(parts["mask"].convert("1"))) or ""
            above = None if limit is None else case.score > limit
            doubt.views.append(View(number, data_uri(parts["map"]) if "map" in parts else "", case, above))
    return sorted(found.values(), key=lambda doubt: (doubt.kind, *doubt.order()))


def at_thresholds(section: Section, category: str) -> Iterator[str]:
    """'PaDiM Lite0 misses 3 of 63 defective images at 5 % false alarms (here 1 of 20 ...)', of its first seed."""
    for label, entry in zip(section.labels, section.entries, strict=True):
        made = sorted(entry.records.get(category, ()), key=lambda record: record.repetition)
        if made and (told := _at_threshold(made[0])):
            yield f"{label} {told}"


def _at_threshold(record: Record) -> str:
    recall, alarms = record.value("image_recall"), record.value("image_false_alarms")
    if recall is None or alarms is None or record.thresholds is None:
        return ""
    rate, defects = record.thresholds["max_false_alarms"], record.counts["defects"]
    normal = record.counts["test"] - defects
    missed = f"misses {defects - round(recall * defects)} of {defects} defective images"
    return f"{missed} at {100 * rate:g} % false alarms (here {round(alarms * normal)} of {normal} normal ones)"


def data_uri(picture: PILImage.Image) -> str:
    """A picture as text for `src`: PNG for black and white, JPEG otherwise."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "1" else "jpeg"
    picture.save(buffer, kind, optimize=True, **({} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
