"""Corrected labels: a file of images with new labels or masks, under which kept scores and maps are evaluated again.

A CSV (see `csv_files` for dialects) with the columns
    file     the image with its category, as the report writes it: screw/test/good/003.png
    label    the new label: good (or ok, normal, in any case), or a kind of defect; empty: as before
    mask     the new mask of a defective image, a file relative to the CSV; empty: as before, and none for a good image
    reason   why, in words
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.data.csv_files import read_csv
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.mvtec import CALLED_NORMAL
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError, closest
from anomaly_bench.files import composed, digest

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample
    from anomaly_bench.metrics.metrics import Evaluation
    from anomaly_bench.records.record import Record

COLUMNS = ("file", "label", "mask", "reason")


@dataclass(frozen=True)
class Correction:
    """One row of the file; "" and None: as before."""

    file: str
    label: str
    mask: Path | None
    reason: str

    def applied(self, image: Sample, masked: bool) -> Sample:
        """The image as corrected; `masked`: pixels are evaluated, so that defects need masks.

        Raises:
            DataError: a mask for a good image, or none for one that is now defective.
        """
        label = None if self.label.casefold() in CALLED_NORMAL else self.label or image.label
        if label is None:
            if self.mask is not None:
                raise DataError(
                    f"{self.file}: the mask {self.mask} for a good image; give a kind of defect as its label"
                )
            return replace(image, label=None, masks=())
        masks = image.masks if self.mask is None else (Source(self.mask),)
        if masked and not masks:
            raise DataError(f"{self.file}: now labelled {label}, without a mask; give one in the column mask")
        return replace(image, label=label, masks=masks)


@dataclass(frozen=True)
class CorrectedLabels:
    """The rows of a file by image; `digest`: of rows and masks."""

    path: Path
    rows: Mapping[str, Correction]
    digest: str

    def of(self, record: Record) -> dict[int, Correction]:
        """The rows for a record's images, by place in its test set."""
        names = (record.image_name(image["file"]) for image in record.images)
        return {place: self.rows[name] for place, name in enumerate(names) if name in self.rows}

    def check_known(self, records: Collection[Record]) -> None:
        """Raise UsageError for rows of images that no record has."""
        names = {record.image_name(image["file"]) for record in records for image in record.images}
        for file in self.rows:
            if file not in names:
                near = closest(file, names)
                raise UsageError(f"labels={self.path}: {file} is in no record, as <category>/<file>{near}")

    def entry(self, record: Record, images: Sequence[Sample], evaluation: Evaluation | None) -> dict[str, Any]:
        """A record's `corrected`; without an evaluation, none of its images is in the file and its values stay."""
        changed = [
            {"file": images[place].id, "label": images[place].label, "reason": row.reason}
            for place, row in self.of(record).items()
        ]
        metrics = record.metrics if evaluation is None else evaluation.entries
        return {"labels": self.digest, "images": changed, "metrics": metrics}


def read_labels(value: Any) -> CorrectedLabels | None:
    """The file that `labels=` names.

    Raises:
        UsageError: it cannot be read, or a row is not complete, without a reason or there twice.
    """
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    rows: dict[str, Correction] = {}
    for _, cells in read_csv("labels", path, COLUMNS):
        row = read_row(path, cells)
        if row.file in rows:
            raise UsageError(f"labels={path}: {row.file} is listed twice; expected one row for each image")
        rows[row.file] = row
    if not rows:
        raise UsageError(f"labels={path}: no rows; expected the columns {', '.join(COLUMNS)}, one row for each image")
    masks = [row.mask for row in rows.values() if row.mask]
    hashes = file_digests(masks, path.parent)
    told = [[row.file, row.label, row.mask and hashes[row.mask][1], row.reason] for row in rows.values()]
    return CorrectedLabels(path, rows, digest(sorted(told)))


def read_row(path: Path, cells: Mapping[str, str]) -> Correction:
    """One row of a CSV."""
    file, label, mask, reason = (cells[name] for name in COLUMNS)
    file, mask = composed(file).replace("\\", "/"), mask.replace("\\", "/")
    if not label and not mask:
        raise UsageError(f"labels={path}: {file} has no new label and no new mask; give one, or delete the row")
    if not reason:
        raise UsageError(f"labels={path}: {file} without a reason; say in a few words why its label was wrong")
    found = path.parent / mask if mask else None
    if found is not None and not found.is_file():
        raise UsageError(f"labels={path}: no file {found}; expected a mask, relative to the CSV")
    return Correction(file, label, found, reason)
