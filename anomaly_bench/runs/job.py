"""What a run has to do: one job per task, with the fingerprint that says whether it is done. No torch here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.backbones.build import identify
from anomaly_bench.config.parts import without_target
from anomaly_bench.data import store
from anomaly_bench.data.geometry import centre, has_masks
from anomaly_bench.errors import DataError
from anomaly_bench.records.fingerprint import DEFAULTS, fingerprint
from anomaly_bench.records.record import Record

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights
    from anomaly_bench.config.settings import Settings
    from anomaly_bench.data.mvtec import Dataset
    from anomaly_bench.protocol import Image, Task

Digests: TypeAlias = Mapping[Path, tuple[int, str]]


@dataclass(frozen=True)
class Job:
    """One task under one configuration.

    Attributes:
        config: the resolved configuration; its backbone is None for an image-space method.
        digests: (size, sha256) of every file of the task.
        weights: of each of the backbone's networks, by its name.
    """

    config: Mapping[str, Any]
    settings: Settings
    dataset: Dataset
    task: Task
    digests: Digests = field(repr=False)
    weights: Mapping[str, Weights]

    def speed_key(self, device: str) -> dict[str, Any]:
        """What a speed entry is told apart by: the device's name and how it was used."""
        settings = self.settings
        used = {"threads": settings.threads, "batch_size": settings.batch_size, "precision": settings.precision}
        return {"device": device, **used}

    @property
    def image_bytes(self) -> int:
        """Of all decoded images."""
        count = len(self.task.fit) + sum(map(len, self.task.tests.values()))
        return count * self.settings.resize[0] * self.settings.resize[1] * 3

    def pixels(self, images: tuple[Image, ...], advance: store.Advance = lambda done: None) -> NDArray[np.uint8]:
        """Decoded images (N, H, W, 3), cropped; a view of the store."""
        settings = self.settings
        sha256 = self.sha256(images)
        whole = store.load_images(images, sha256, settings.resize, self.dataset.name, settings.threads, advance)
        return centre(whole, settings.crop)

    def sha256(self, images: tuple[Image, ...]) -> list[str]:
        return [self.digests[image.path][1] for image in images]

    def pixels_identity(self, images: tuple[Image, ...]) -> dict[str, Any]:
        """All that `pixels` depends on, the version of Pillow apart."""
        return {"files": self.sha256(images), **self.settings.input, **store.MADE_BY}

    def masks(self, images: tuple[Image, ...]) -> NDArray[np.bool_] | None:
        """Masks (N, H, W), cropped; None where the dataset has none for this test set."""
        if not has_masks(images):
            return None
        sha256 = [self.digests[image.mask][1] if image.mask else "" for image in images]
        settings = self.settings
        whole = store.load_masks(images, sha256, settings.resize, self.dataset.name, settings.threads)
        return centre(whole, settings.crop).astype(np.bool_)

    @functools.cached_property
    def expected(self) -> dict[str, Record]:
        """The record of each test set, as far as it is known before the work."""
        return {test: self._expected(test) for test in self.task.tests}

    @property
    def first(self) -> Record:
        """What is expected of the first test set: the job's files are named after it."""
        return next(iter(self.expected.values()))

    @functools.cached_property
    def checkpoint(self) -> Path:
        """Where an unfinished training is kept, below the results folder."""
        return self.first.path.with_suffix(".checkpoint")

    @functools.cached_property
    def lease(self) -> str:
        """The name under which a run claims this job."""
        return "--".join(self.first.path.with_suffix("").parts[1:])

    def decode(self) -> None:
        """Fill the store; what is wrong with a file is said when its pixels are asked for."""
        with contextlib.suppress(DataError, MemoryError):
            for images in (self.task.fit, *self.task.tests.values()):
                self.pixels(images)
                self.masks(images)

    @functools.cached_property
    def parts(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Method and backbone as records keep them."""
        backbone = self.config["backbone"]
        told = None if backbone is None else identify(without_target("backbone", backbone), self.weights)
        return without_target("method", self.config["method"]), told

    def _expected(self, test: str) -> Record:
        settings, tested = self.settings, self.task.tests[test]
        method, backbone = self.parts
        titles = {kind: self.config[kind]["about"]["title"] for kind in ("method", "backbone") if self.config[kind]}
        record = Record(
            fingerprint="",
            dataset=self.dataset.name,
            task=self.task.name,
            test=test,
            group=self.task.group,
            categories=[{"name": name, "group": group} for name, group in self.dataset.categories.items()],
            method=method["name"],
            backbone="none" if backbone is None else self.config["backbone"]["name"],
            titles={"dataset": self.dataset.title, "backbone": "none", **titles},
            seed=settings.seed,
            protocol=settings.protocol,
            oracle=settings.oracle,
            precision=settings.precision,
            input=settings.input,
            counts={
                "fit": len(self.task.fit),
                "test": len(tested),
                "defects": sum(image.defect is not None for image in tested),
            },
            config={"method": method, "backbone": backbone, "batch_size": settings.batch_size},
        )
        files = files_of(self.task, self.digests, test)
        return replace(record, fingerprint=fingerprint_of(record, self.config["dataset"], files))


def files_of(task: Task, digests: Digests, test: str) -> dict[str, Any]:
    """What the fingerprint says of a task's files, one of its test sets'; no paths of this machine."""
    images = {"fit": task.fit, "test": task.tests[test]}
    return {"task": task.name, **{part: [identity(image, digests) for image in images[part]] for part in images}}


def identity(image: Image, digests: Digests) -> list[Any]:
    """Name and label of an image, size and hash of its file, and those of its mask."""
    return [image.file, image.defect, *digests[image.path], None if image.mask is None else digests[image.mask]]


def fingerprint_of(record: Record, dataset: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """The fingerprint of the settings that a record tells of, on these files; see `records.fingerprint`.

    Args:
        dataset: its node in the configuration.
        files: see `files_of`.
    """
    method, backbone = record.config["method"], record.config["backbone"]
    return fingerprint(
        {key: getattr(record, key) for key in DEFAULTS},
        {**dataset, "name": record.dataset},
        files,
        {**method, **folders(method)},
        None if backbone is None else {**backbone, "name": record.backbone},
    )


def folders(method: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """The keys of `about.folders` that have a value, with what is in that folder."""
    named = {key: method.get(key) for key in method["about"].get("folders", [])}
    return {key: contents(Path(str(value)).expanduser()) for key, value in named.items() if value is not None}


@functools.cache
def contents(folder: Path) -> list[list[Any]]:
    """Name, size and hash of every file below a folder, when it is first asked for."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[path.relative_to(folder).as_posix(), *told] for path, told in store.file_digests(files, folder).items()]


def make_job(
    config: Mapping[str, Any], settings: Settings, dataset: Dataset, category: str, weights: Mapping[str, Weights]
) -> Job:
    """List and hash one category's files.

    Raises:
        DataError: see `Dataset.task`; a file that cannot be read.
    """
    return Job(config, settings, dataset, *read_task(dataset, category), weights)


def read_task(dataset: Dataset, category: str) -> tuple[Task, Digests]:
    """One category's files, and (size, sha256) of each."""
    task = dataset.task(category)
    images = [*task.fit, *(image for test in task.tests.values() for image in test)]
    paths = [image.path for image in images] + [image.mask for image in images if image.mask]
    return task, store.file_digests(paths, dataset.folder(category))
