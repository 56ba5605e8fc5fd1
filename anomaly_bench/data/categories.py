"""What datasets made of files share: fields, digests, and checks of keys and of what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_bench.data.dataset import Digests, Sample, Task
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError, closest


@dataclass(frozen=True)
class Categories:
    """The fields of a dataset; see `dataset.Dataset`. A subclass adds `task`."""

    name: str
    title: str
    root: Path
    categories: Mapping[str, str | None]

    @property
    def available(self) -> list[str]:
        """All; a subclass looks where some may be absent."""
        return list(self.categories)

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root / task.name)


def require_choice(key: str, value: object, choices: Collection[str]) -> None:
    """Raise UsageError if a key of the dataset is none of its choices."""
    if value not in list(choices):
        raise UsageError(f"dataset.{key}={value}: no such {key}{closest(str(value), choices)}")


def require_images(category: str, fit: Sequence[Sample], test: Sequence[Sample], root: Path, where: str) -> None:
    """Raise DataError if there are no images to fit on, or none to test on; `where`: the place of both."""
    if not fit or not test:
        raise DataError(
            f"{category}: {len(fit)} training and {len(test)} test images in {root}; expected both, in {where}"
        )
