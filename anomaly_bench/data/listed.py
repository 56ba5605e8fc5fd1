"""Images listed in a CSV, in any layout: `dataset=folder data_root=DIR dataset.csv=FILE`.

Its columns are `file`, `label`, `mask`, `split`, and `category` where there are several. Paths are relative to
`data_root`. A label that is empty or among `dataset.normal` means a normal image, any other one a kind of defect.
Splits are train, validation and test.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from anomaly_bench.data.dataset import Digests, Sample, Source, Task
from anomaly_bench.data.findings import Finding
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError, shorten
from anomaly_bench.files import image_files, relative, tree

COLUMNS = ("file", "label", "mask", "split")
SPLITS = ("train", "validation", "test")
Images = Mapping[str, Mapping[str, list[Sample]]]  # category -> split -> images


@dataclass(frozen=True)
class Listed:
    """The categories of one CSV."""

    name: str
    title: str
    root: Path
    categories: Mapping[str, str | None]
    images: Images

    @property
    def available(self) -> list[str]:
        return list(self.categories)

    def task(self, category: str) -> Task:
        """The listed images of one category.

        Raises:
            DataError: nothing to fit or test on, files that do not exist, masks for only some of the defects.
        """
        fit, validation, test = (tuple(self.images[category].get(split, ())) for split in SPLITS)
        if not fit or not test:
            raise DataError(f"{category}: {len(fit)} images of split train and {len(test)} of test; expected both")
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
        sources = (
            source
            for splits in self.images.values()
            for images in splits.values()
            for image in images
            for source in (*image.sources, *image.masks)
        )
        read = {relative(source.path, self.root) for source in sources}
        found = (relative(path, self.root) for where in tree(self.root) for path in image_files(where))
        if unlisted := tuple(name for name in found if name not in read):
            yield Finding("unlisted", unlisted)

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root / task.name)


def read_list(path: Path, root: Path, normal: Collection[str]) -> Images:
    """The images of every category, in the order of the list.

    Raises:
        UsageError: the file cannot be read, or a row is wrong, with its number.
    """
    images: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[str, str]] = set()
    for number, row in rows(path):
        try:
            category = row.get("category") or root.name
            image = sample(row, root, normal)
            if (category, image.id) in seen:
                raise ValueError(f"{image.id} is listed twice; keep one row")
            seen.add((category, image.id))
            images[category][row["split"]].append(image)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: {error}") from error
    if not images:
        raise UsageError(f"{path}: no rows; expected one for each image")
    return images


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            found = reader.fieldnames or []
            if not set(COLUMNS) <= set(found) <= {*COLUMNS, "category"}:
                raise UsageError(f"{path}: columns {','.join(found)}; expected {','.join(COLUMNS)}, perhaps category")
            for row in reader:
                yield reader.line_num, {name: (row[name] or "").strip() for name in found}
    except OSError as error:
        raise UsageError(f"dataset.csv={path}: {error.strerror}; expected a CSV of {','.join(COLUMNS)}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"dataset.csv={path}: not a UTF-8 CSV file: {error}") from error


def sample(row: Mapping[str, str], root: Path, normal: Collection[str]) -> Sample:
    """The image of one row; ValueError says what is wrong."""
    if row["split"] not in SPLITS:
        raise ValueError(f"split {row['split'] or 'is empty'}; expected {', '.join(SPLITS)}")
    label = None if row["label"] in ("", *normal) else row["label"]
    if label is not None and row["split"] != "test":
        raise ValueError(f"{row['file']} of split {row['split']} has label {label}; only test images may have defects")
    if label is None and row["mask"]:
        raise ValueError(f"{row['file']} is normal but has a mask; give it a label, or remove the mask")
    masks = (below(root, row["mask"]),) if row["mask"] else ()
    return Sample(PurePosixPath(row["file"]).as_posix(), label, (below(root, row["file"]),), masks)


def below(root: Path, text: str) -> Source:
    """A file named in the list."""
    parts = PurePosixPath(text).parts
    if not parts or PurePosixPath(text).is_absolute() or ".." in parts or "\\" in text or not text.isprintable():
        raise ValueError(f"file or mask {text!r}; expected a path below {root}, with forward slashes")
    return Source(root.joinpath(*parts))
