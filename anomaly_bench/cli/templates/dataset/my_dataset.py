"""My dataset: TITLE OF THE PAPER.

AUTHORS; YEAR; LICENCE. Its layout, of which this example reads one:

<root>/<category>/normal/*          normal images: the first four fifths to fit on, the others to test
<root>/<category>/defective/*       defective test images
<root>/<category>/masks/<stem>.png  their masks, non-zero = defect
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_bench.data.dataset import Digests, Sample, Source, Task, find_root
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError
from anomaly_bench.files import image_files, relative


@dataclass(frozen=True)
class MyDataset:
    """What `anomaly_bench.data.dataset.Dataset` asks for."""

    name: str
    title: str
    root: Path
    categories: dict[str, str | None]  # category -> group, such as "textures", or None

    @property
    def available(self) -> list[str]:
        return [name for name in self.categories if (self.root / name).is_dir()]

    def task(self, category: str) -> Task:
        """List the images of one category.

        Raises:
            DataError: a folder is missing, or holds too few images.
        """
        folder = self.root / category
        for needed in ("normal", "defective"):
            if not (folder / needed).is_dir():
                raise DataError(f"{category}: no folder {folder / needed}; expected normal and defective; add it")
        normal = [Sample(relative(path, folder), None, (Source(path),)) for path in image_files(folder / "normal")]
        defective = [
            Sample(relative(path, folder), "defective", (Source(path),), (mask_of(path, folder),))
            for path in image_files(folder / "defective")
        ]
        count = len(normal) * 4 // 5
        if not count or not defective:
            raise DataError(f"{category}: {len(normal)} normal and {len(defective)} defective images; add some")
        return Task(category, self.categories[category], tuple(normal[:count]), {"test": (*normal[count:], *defective)})

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root / task.name)


def mask_of(image: Path, folder: Path) -> Source:
    """The mask of a defective image."""
    mask = folder / "masks" / f"{image.stem}.png"
    if not mask.is_file():
        raise DataError(f"{folder.name}: no mask {mask} for {image}; add it")
    return Source(mask)


def my_dataset(name: str, title: str, categories: Sequence[str], data_root: str | os.PathLike[str] | None) -> MyDataset:
    """The dataset in `data_root`, else in `$ANOMALY_BENCH_DATA/my_dataset`."""
    root = find_root(name, data_root, "the folder that contains the categories")
    return MyDataset(name, title, root, dict.fromkeys(categories))
