"""Images listed in a CSV, in any layout: `dataset=folder data_root=DIR dataset.csv=FILE`.

Its columns are `file`, `label`, `mask`, `split`, and `category` where there are several; see `csv_files` for dialects.
Paths are relative to `data_root`. A label that is empty, good, ok, normal (in any case) or among `dataset.normal` means
a normal image, any other one a kind of defect. Splits are train, validation and test.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from anomaly_bench.data.categories import Categories, require_images
from anomaly_bench.data.csv_files import read_csv
from anomaly_bench.data.dataset import Sample, Source, Task
from anomaly_bench.data.findings import Finding
from anomaly_bench.data.mvtec import CALLED_NORMAL
from anomaly_bench.errors import DataError, UsageError, shorten
from anomaly_bench.files import below, composed, image_files, relative, tree

COLUMNS = ("file", "label", "mask", "split")
SPLITS = ("train", "validation", "test")
Images = Mapping[str, Mapping[str, tuple[str, Sample]]]  # category -> id -> split, image


@dataclass(frozen=True)
class Listed(Categories):
    """The categories of one CSV."""

    images: Images

    def task(self, category: str) -> Task:
        """The listed images of one category.

        Raises:
            DataError: nothing to fit or test on, files that do not exist, masks for only some of the defects.
        """
        rows = self.images[category].values()
        fit, validation, test = (tuple(image for part, image in rows if part == split) for split in SPLITS)
        require_images(category, fit, test, self.root, "rows of the splits train and test")
        task = Task(category, self.categories[category], fit, {"test": test}, validation)
        if absent := [str(path.relative_to(self.root)) for path in task.files if not os.path.isfile(path)]:
            raise DataError(f"{category}: no such file in {self.root}: {shorten(absent)}; add them, or mend the list")
        lacking = [image.id for image in test if image.label is not None and not image.masks]
        if lacking and any(image.masks for image in test):
            raise DataError(
                f"{category}: {len(lacking)} defective images have no mask: {shorten(lacking)}; name one for each, or "
                "none for image metrics only"
            )
        if category == next(iter(self.categories)):  # said once
            return replace(task, findings=tuple(self.notice()))
        return task

    def notice(self) -> Iterator[Finding]:
        """Images that the list does not have."""
        images = [image for rows in self.images.values() for _, image in rows.values()]
        read = {relative(source.path, self.root) for image in images for source in (*image.sources, *image.masks)}
        found = (relative(path, self.root) for where in tree(self.root) for path in image_files(where))
        if unlisted := tuple(name for name in found if name not in read):
            yield Finding("unlisted", unlisted)


def read_list(path: Path, root: Path, normal: Collection[str]) -> Images:
    """The images of every category, in the order of the list.

    Raises:
        UsageError: the file cannot be read, or a row is wrong, with its number.
    """
    images: dict[str, dict[str, tuple[str, Sample]]] = defaultdict(dict)
    for line, row in read_csv("dataset.csv", path, COLUMNS, ("category",)):
        try:
            listed, image = images[composed(row.get("category") or root.name)], sample(row, root, normal)
            if image.id in listed:
                raise ValueError(f"{image.id} is listed twice; keep one row")
            listed[image.id] = row["split"], image
        except ValueError as error:
            raise UsageError(f"{path}:{line}: {error}") from error
    if not images:
        raise UsageError(f"{path}: no rows; expected one for each image")
    return images


def sample(row: Mapping[str, str], root: Path, normal: Collection[str]) -> Sample:
    """The image of one row; ValueError says what is wrong."""
    if row["split"] not in SPLITS:
        raise ValueError(f"split {row['split'] or 'is empty'}; expected {', '.join(SPLITS)}")
    label = None if row["label"] in ("", *normal) or row["label"].casefold() in CALLED_NORMAL else row["label"]
    if label is not None and row["split"] != "test":
        raise ValueError(f"{row['file']} of split {row['split']} has label {label}; only test images may have defects")
    if label is None and row["mask"]:
        raise ValueError(f"{row['file']} is normal but has a mask; give it a label, or remove the mask")
    masks = (Source(below(root, row["mask"])),) if row["mask"] else ()
    return Sample(composed(PurePosixPath(row["file"]).as_posix()), label, (Source(below(root, row["file"])),), masks)
