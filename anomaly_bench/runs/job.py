"""What a run has to do: one job per task, with the fingerprint that says whether it is done. No torch here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.backbones.build import identify
from anomaly_bench.data import store
from anomaly_bench.data.geometry import centre, has_masks
from anomaly_bench.errors import DataError
from anomaly_bench.files import digest
from anomaly_bench.records.record import Record

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights
    from anomaly_bench.config.settings import Settings
    from anomaly_bench.data.mvtec import Dataset
    from anomaly_bench.protocol import Image, Task


@dataclass(frozen=True)
class Job:
    """One task under one configuration.

    Attributes:
        config: the resolved configuration; its backbone is None for an image-space method.
        weights: of each of the backbone's networks, by its name.
        digests: (size, sha256) of every file of the task.
    """

    config: Mapping[str, Any]
    settings: Settings
    dataset: Dataset
    task: Task
    weights: Mapping[str, Weights]
    digests: Mapping[Path, tuple[int, str]] = field(repr=False)

    def fingerprint(self, test: str) -> str:
        """Over everything that can change a score, and nothing else; no paths of this machine."""
        method, backbone = self.config["method"], self.config["backbone"]
        return digest(
            {
                "dataset": self.dataset.name,
                "task": self.task.name,
                "fit": [self.identity(image) for image in self.task.fit],
                "test": [self.identity(image) for image in self.task.tests[test]],
                "method": {**method, **folders(method), "about": {"revision": method["about"]["revision"]}},
                "backbone": None if backbone is None else identify(backbone, self.weights, method.get("levels")),
                "input": self.settings.input,
                "protocol": self.settings.protocol,
                "oracle": self.settings.oracle,
                "precision": self.settings.precision,
                "seed": self.settings.seed,
            }
        )

    def identity(self, image: Image) -> list[Any]:
        mask = None if image.mask is None else self.digests[image.mask]
        return [image.file, image.defect, *self.digests[image.path], mask]

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
    def expected_record(self) -> Record:
        """The first test set's record, as far as it is known before the work: the job's files are named after it."""
        return self.record(next(iter(self.task.tests)))

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training is kept, below the results folder."""
        return self.expected_record.path.with_suffix(".checkpoint")

    @property
    def lease(self) -> str:
        """The name under which a run claims this job."""
        return "--".join(self.expected_record.path.with_suffix("").parts[1:])

    def decode(self) -> None:
        """Fill the store; what is wrong with a file is said when its pixels are asked for."""
        with contextlib.suppress(DataError, MemoryError):
            for images in (self.task.fit, *self.task.tests.values()):
                self.pixels(images)
                self.masks(images)

    def record(self, test: str) -> Record:
        """The record as far as it is known before the work: who, what, with which settings."""
        method, backbone = self.config["method"], self.config["backbone"]
        network = None if backbone is None else identify(backbone, self.weights)
        tested = self.task.tests[test]
        return Record(
            fingerprint=self.fingerprint(test),
            dataset=self.dataset.name,
            task=self.task.name,
            test=test,
            group=self.task.group,
            categories=[{"name": name, "group": group} for name, group in self.dataset.categories.items()],
            method=method["name"],
            backbone="none" if backbone is None else backbone["name"],
            titles={
                "dataset": self.dataset.title,
                "method": method["about"]["title"],
                "backbone": "none" if backbone is None else backbone["about"]["title"],
            },
            seed=self.settings.seed,
            protocol=self.settings.protocol,
            oracle=self.settings.oracle,
            precision=self.settings.precision,
            input=self.settings.input,
            counts={
                "fit": len(self.task.fit),
                "test": len(tested),
                "defects": sum(image.defect is not None for image in tested),
            },
            metrics={},
            curves={},
            images=[],
            speed=[],
            size={},
            cost={},
            config={"method": dict(method), "backbone": network, "batch_size": self.settings.batch_size},
            provenance={},
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
    task = dataset.task(category)
    images = [*task.fit, *(image for test in task.tests.values() for image in test)]
    paths = [image.path for image in images] + [image.mask for image in images if image.mask]
    return Job(config, settings, dataset, task, weights, store.file_digests(paths, dataset.folder(category)))
