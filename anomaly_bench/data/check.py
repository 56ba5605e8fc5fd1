"""`anomaly-bench data check dataset=NAME data_root=DIR`: what is there, and its problems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_bench.data import readers
from anomaly_bench.data.remembered import remembered
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset, Source, Task
    from anomaly_bench.data.remembered import Facts

COUNTED = {"train": "train", "good": "test good", "defects": "test defects", "kinds": "kinds of defect"}
ALL_COUNTED = {**COUNTED, "validation": "validation"}  # shown only if it differs from the official number


def examine(dataset: Dataset, name: str, official: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The cells of one category's row, and its problems."""
    cells, problems = [""] * (len(COUNTED) + 1), []
    try:
        task = dataset.task(name)
        found, masks = count(task)
        cells = [str(number) for number in (*(found[key] for key in COUNTED), masks)]
        problems += count_differences(found, official)
        look_at_headers(task, dataset.root / name)
    except DataError as error:
        problems.append(str(error))
    return cells, problems


def count(task: Task) -> tuple[dict[str, int], int]:
    """The numbers for `ALL_COUNTED`, and the number of test images with a mask."""
    tested = [image for test in task.tests.values() for image in test]
    labels = [image.label for image in tested if image.label is not None]
    numbers = (len(task.fit), len(tested) - len(labels), len(labels), len(set(labels)), len(task.validation))
    return dict(zip(ALL_COUNTED, numbers, strict=True)), sum(bool(image.masks) for image in tested)


def count_differences(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """At most one line: every count that differs from the official one, if there is one."""
    wrong = [
        f"{ALL_COUNTED[key]} {found[key]}, official {number}"
        for key, number in official.items()
        if found[key] != number
    ]
    return [f"counts differ: {'; '.join(wrong)}"] if wrong else []


def look_at_headers(task: Task, place: Path) -> None:
    """Raise DataError for the first file that is not an image, or plane or mask that differs from its image in size."""

    def find(source: Source) -> Facts:
        height, width = readers.source_size(source)
        return [width, height]

    with remembered("headers", place, find) as look_up:
        first: dict[str, list[int]] = {}  # clip -> size of its first frame
        for image in task.samples:
            expected, *others = ([source, *look_up(source)] for source in (*image.sources, *image.masks))
            for source, width, height in others:
                if [width, height] != expected[1:]:
                    raise DataError(
                        f"{source}: {width}x{height} pixels, its image {image.id} has {expected[1]}x{expected[2]}; "
                        "expected the same"
                    )
            if image.clip and expected[1:] != (size := first.setdefault(image.clip, expected[1:])):
                raise DataError(
                    f"{expected[0]}: {expected[1]}x{expected[2]} pixels, the first frame of clip {image.clip} has "
                    f"{size[0]}x{size[1]}; expected the same"
                )
