"""The dataset protocol (categories of images, each a task), and how datasets are opened and categories selected."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anomaly_bench.config.instantiate import construct
from anomaly_bench.config.settings import listed_names
from anomaly_bench.data.findings import Finding
from anomaly_bench.errors import UsageError, closest
from anomaly_bench.files import composed

Digests = Mapping[Path, tuple[int, str]]  # file -> size in bytes, sha256
Root = str | os.PathLike[str] | None  # `data_root`; None: below $ANOMALY_BENCH_DATA


@dataclass(frozen=True)
class Source:
    """Where one array is stored: a file, or part of one.

    Attributes:
        member: the part of a file that holds several: a name within an archive, a row of an array; "": the whole file.
        reader: a key of `data.readers.READERS`, where each documents its `member`.
    """

    path: Path
    member: str = ""
    reader: str = "image"

    def __str__(self) -> str:
        return f"{self.path}[{self.member}]" if self.member else str(self.path)


@dataclass(frozen=True)
class Plane:
    """A modality that every image of a task has, such as "rgb", "depth" or "xyz".

    Attributes:
        dtype: "uint8" values are scaled to [0, 1] for methods, "float32" ones are left as they are.
        filter: "bilinear": resized as `input.filter` says; "nearest": always so, as neighbouring values must not be
            mixed (3D points with holes).
    """

    name: str
    channels: int
    dtype: str = "uint8"
    filter: str = "bilinear"


RGB = Plane("rgb", 3)


@dataclass(frozen=True)
class Sample:
    """One image of a task.

    Attributes:
        id: unique in the task, with forward slashes; for an image file its path below the dataset's folder.
        label: the kind of defect; None: a normal image.
        sources: one for each of the task's planes.
        masks: non-zero = defect; several are merged for the usual metrics. Empty if the image has none.
        clip: the video of which the image is a frame; a clip's frames are consecutive.
    """

    id: str
    label: str | None
    sources: tuple[Source, ...]
    masks: tuple[Source, ...] = ()
    clip: str | None = None


@dataclass(frozen=True)
class Task:
    """A set to fit on (normal images only) and named test sets, each of which becomes a record.

    Attributes:
        group: "textures", "objects"; None: the dataset has no groups.
        fit: empty for methods that see no training images of the task (zero-shot).
        validation: normal images held out from `fit`, for thresholds and early stopping; may be empty.
        planes: the modalities of every image.
        findings: what was noticed while the files were listed.
    """

    name: str
    group: str | None
    fit: tuple[Sample, ...]
    tests: dict[str, tuple[Sample, ...]]
    validation: tuple[Sample, ...] = ()
    planes: tuple[Plane, ...] = (RGB,)
    findings: tuple[Finding, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of all sets."""
        return (*self.fit, *self.validation, *(sample for test in self.tests.values() for sample in test))

    @property
    def files(self) -> list[Path]:
        """Every image and mask file, once."""
        images = [source.path for sample in self.samples for source in sample.sources]
        masks = [source.path for sample in self.samples for source in sample.masks]
        return list(dict.fromkeys(images + masks))

    @property
    def counted(self) -> str:
        """'209 training and 83 test images, 63 of them defective, 63 with masks'."""
        tested = [sample for test in self.tests.values() for sample in test]
        defects, masks = sum(each.label is not None for each in tested), sum(bool(each.masks) for each in tested)
        return (
            f"{len(self.fit)} training and {len(tested)} test images, {defects} of them defective, {masks} with masks"
        )

    @property
    def channels(self) -> int:
        return sum(plane.channels for plane in self.planes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of decoded images: the type of the only plane, float32 for several."""
        return np.dtype(self.planes[0].dtype if len(self.planes) == 1 else "float32")

    def with_planes(self, names: Sequence[str]) -> Task:
        """The same task with only some of its planes, in this order."""
        known = [plane.name for plane in self.planes]
        if list(names) == known:
            return self
        chosen = [known.index(name) for name in names]

        def cut(samples: Sequence[Sample]) -> tuple[Sample, ...]:
            return tuple(replace(each, sources=tuple(each.sources[index] for index in chosen)) for each in samples)

        return replace(
            self,
            fit=cut(self.fit),
            validation=cut(self.validation),
            tests={name: cut(test) for name, test in self.tests.items()},
            planes=tuple(self.planes[index] for index in chosen),
        )


class Dataset(Protocol):
    """Categories of images, each a task. Only the dataset itself reads its folders."""

    @property
    def name(self) -> str:
        """Used in records and paths."""

    @property
    def title(self) -> str:
        """Used in tables and messages."""

    @property
    def root(self) -> Path:
        """The folder or file that holds the images, for messages."""

    @property
    def categories(self) -> Mapping[str, str | None]:
        """Every category in the papers' order -> its group, or None."""

    @property
    def available(self) -> Sequence[str]:
        """The categories found on disk."""

    def task(self, category: str) -> Task:
        """List the images of one category.

        Raises:
            DataError: the files are not as expected.
        """

    def digests(self, task: Task) -> Digests:
        """Size and hash of each of the task's `files`; usually `file_digests(task.files, folder)`."""


def open_dataset(node: Mapping[str, Any], data_root: Path | None) -> Dataset:
    """The dataset described by a YAML; its name is passed on, as `dataset=folder` lets users choose it."""
    texts = {key: str(node[key]) for key in ("name", "title") if node.get(key) is not None}  # 2024 is a valid name
    dataset: Dataset = construct({**node, **texts}, "dataset", name=texts.get("name"), data_root=data_root)
    return dataset


def selected(dataset: Dataset, wanted: list[str]) -> list[str]:
    """The categories named by `category=`, in the dataset's order.

    Raises:
        UsageError: a name that is neither a category nor a group of the dataset.
    """
    groups = {group for group in dataset.categories.values() if group is not None}
    known = {composed(name) for name in (*dataset.categories, *groups, "all")}
    for name in wanted:
        if composed(name) not in known:
            near = closest(name, [*dataset.categories, *groups, "all"])
            raise UsageError(f"category={name}: {dataset.title} has no such category or group{near}")
    typed = set(map(composed, wanted))
    return [
        name for name, group in dataset.categories.items() if {"all", composed(name), composed(group or "all")} & typed
    ]


def as_path(data_root: Any) -> Path | None:
    """The value of `data_root`, which may look like a number."""
    return None if data_root is None else Path(str(data_root))


def chosen(dataset: Dataset, category: Any) -> list[str]:
    """The categories selected by the key `category`, a name or a list."""
    return selected(dataset, listed_names(category, "category"))


DATA_VARIABLE = "ANOMALY_BENCH_DATA"


def find_root(name: str, data_root: Root, what: str, archive: str = "") -> Path:
    """The dataset's folder, or a file with the suffix `archive`, from the key `data_root` or the environment."""
    shared = os.environ.get(DATA_VARIABLE)
    if data_root is None and shared is None:
        raise UsageError(f"dataset={name} needs data_root=DIR ({what}), or {DATA_VARIABLE} set to its parent")
    root = Path(data_root).expanduser() if data_root is not None else Path(str(shared)).expanduser() / name
    origin = "data_root" if data_root is not None else f"${DATA_VARIABLE}/{name}"
    if archive and root.suffix == archive and root.is_file():
        return root
    try:
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{origin}={root}: no such folder; give {what}") from error
    except OSError as error:
        raise UsageError(f"{origin}={root}: cannot be listed ({error.strerror}); check its permissions") from error
    return root
