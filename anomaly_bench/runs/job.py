"""The work of a run: one job per task, with the fingerprint that tells whether it is done. No torch here."""

from __future__ import annotations

import contextlib
import functools
import pickle
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.backbones.build import identify
from anomaly_bench.config.parts import without_target
from anomaly_bench.data import findings, store
from anomaly_bench.data.dataset import RGB
from anomaly_bench.data.geometry import centre, has_masks
from anomaly_bench.data.readers import limit_pixels
from anomaly_bench.data.remembered import content_hash, file_digests
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import digest, safe_filename
from anomaly_bench.hardware.apart import call_apart
from anomaly_bench.protocol import no_progress
from anomaly_bench.records.fingerprint import DEFAULTS, fingerprint
from anomaly_bench.records.record import Record
from anomaly_bench.runs.tasks import make_task

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights
    from anomaly_bench.config.settings import Settings
    from anomaly_bench.data.dataset import Dataset, Digests, Sample, Source, Task
    from anomaly_bench.protocol import Advance


@dataclass(frozen=True)
class Job:
    """One task under one configuration.

    Attributes:
        config: the resolved configuration; backbone is None for an image-space method.
        regime: see `Record`.
        digests: (size, sha256) of every file of the task.
        normals: a hash of all training images, before any are drawn or held out.
        weights: by name of the backbone's networks.
    """

    config: Mapping[str, Any]
    settings: Settings
    dataset: Dataset
    regime: Mapping[str, Any]
    task: Task
    digests: Digests = field(repr=False)
    normals: str
    weights: Mapping[str, Weights]

    def speed_key(self, device: str) -> dict[str, Any]:
        """The key of a speed entry: the device's name and how it was used."""
        settings = self.settings
        used = {"threads": settings.threads, "batch_size": settings.batch_size, "precision": settings.precision}
        return {"device": device, **used}

    @property
    def image_bytes(self) -> int:
        """The size of all decoded images."""
        pixels = len(self.task.samples) * self.settings.resize[0] * self.settings.resize[1]
        return pixels * self.task.channels * self.task.dtype.itemsize

    def pixels(self, images: tuple[Sample, ...], advance: Advance = no_progress) -> NDArray[Any]:
        """Decoded images (N, H, W, C), cropped; a view of the store."""
        return centre(self.decoded(images, advance).values, self.settings.crop)

    def decoded(self, images: tuple[Sample, ...], advance: Advance = no_progress) -> store.Stored:
        """Decoded images before they are cropped; looked up once."""
        kept = self.kept.get(("images", images))
        if kept is None:
            kept = self.kept["images", images] = self.wanted_images(images).load(advance)
        else:
            advance(len(images))
        return kept

    def wanted_images(self, images: tuple[Sample, ...]) -> store.Wanted:
        settings, name = self.settings, self.dataset.name
        how = (settings.resize, settings.filter, name, settings.threads, settings.bits)
        return store.wanted_images(self.task, images, self.hashes(images), *how)

    def wanted_masks(self, images: tuple[Sample, ...]) -> store.Wanted:
        settings, hashes = self.settings, [content_hash(image.masks, self.digests) for image in images]
        how = (settings.resize, settings.crop, self.dataset.name, settings.threads)
        return store.wanted_masks(images, hashes, *how)

    @functools.cached_property
    def kept(self) -> dict[tuple[str, tuple[Sample, ...]], store.Stored]:
        """What `decoded` and `decoded_masks` returned."""
        return {}

    def hashes(self, images: tuple[Sample, ...]) -> list[str]:
        return [content_hash(image.sources, self.digests) for image in images]

    def noticed(self, tests: Sequence[str]) -> list[findings.Finding]:
        """What was noticed about the files of test sets and of the training images; decodes them if need be."""
        fit, held_out = self.task.fit, self.task.validation
        normals = findings.ReadSet(
            (*fit, *held_out), [*self.decoded(fit).facts, *self.decoded(held_out).facts], masks=[]
        )
        parts = [
            findings.ReadSet(images, self.decoded(images).facts, self.mask_facts(images))
            for images in (self.task.tests[test] for test in tests)
        ]
        found = findings.find(normals, parts, lambda image: content_hash(image.sources, self.digests))
        return [*self.task.findings, *found]

    def region_counts(self, test: str) -> dict[str, int]:
        """For a record's `counts`; nothing without masks."""
        lost, every = findings.regions(self.mask_facts(self.task.tests[test]))
        return {"regions": every, "lost_regions": lost} if every else {}

    def mask_facts(self, images: tuple[Sample, ...]) -> list[findings.Facts]:
        """The facts of each image's mask; empty if there are no masks."""
        found = self.decoded_masks(images) if any(image.masks for image in images) else None
        return [] if found is None else found.facts

    def pixels_identity(self, images: tuple[Sample, ...]) -> dict[str, Any]:
        """Everything that `pixels` depends on, except the version of Pillow."""
        return {"files": self.hashes(images), **self.settings.input, **store.made_by(self.task, self.settings.filter)}

    def masks(self, images: tuple[Sample, ...]) -> NDArray[np.bool_] | None:
        """Masks (N, H, W), cropped; None if the dataset has none for this test set."""
        found = self.decoded_masks(images)
        return None if found is None else centre(found.values, self.settings.crop).view(np.bool_)

    def decoded_masks(self, images: tuple[Sample, ...]) -> store.Stored | None:
        """Masks before they are cropped; None: see `masks`."""
        if not has_masks(images):
            return None
        kept = self.kept.get(("masks", images))
        if kept is None:
            kept = self.kept["masks", images] = self.wanted_masks(images).load()
        return kept

    @functools.cached_property
    def expected(self) -> dict[str, Record]:
        """The record of each test set, as far as it is known before computing."""
        return {test: self._expected(test) for test in self.task.tests}

    @property
    def first(self) -> Record:
        """The expected record of the first test set; the job's files are named after it."""
        return next(iter(self.expected.values()))

    @functools.cached_property
    def checkpoint(self) -> Path:
        """File for the state of unfinished training, below the results folder."""
        return self.first.path.with_suffix(".checkpoint")

    @functools.cached_property
    def staging(self) -> Path:
        """Folder below the results folder, of this process alone, for what is to stand beside the records."""
        return Path(".staging", self.lease, uuid.uuid4().hex[:12])

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """The folder `staging`, deleted at the end, and before it those that killed runs of this job have left."""
        folder = self.settings.results / self.staging
        shutil.rmtree(folder.parent, ignore_errors=True)  # this run has the lease now
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's files are in it
                folder.parent.rmdir()
                folder.parent.parent.rmdir()

    @functools.cached_property
    def lease(self) -> str:
        """The name under which a run claims this job."""
        return safe_filename("--".join(self.first.path.with_suffix("").parts[1:]), longest=200)

    def held_out(self, test: str) -> tuple[Sample, ...]:
        """The normal images that a test set's thresholds are made from; of several categories those of its own."""
        images = self.task.validation if self.settings.holdout else ()
        categories = self.regime.get("categories", ())
        own = tuple(f"{name}/" for name in categories if f"{test}/".startswith(f"{name}/"))
        return tuple(image for image in images if image.id.startswith(own)) if own else images

    def decode_early(self) -> None:
        """While torch is imported, begin to fill the store; what fails fails again when the pixels are read.

        Threads would wait for Python's lock, which the import holds, so that a process of its own decodes.
        """
        sets = (self.task.fit, self.task.validation, *self.task.tests.values())
        masked = filter(has_masks, self.task.tests.values())
        wanted = [*map(self.wanted_images, sets), *map(self.wanted_masks, masked)]
        if "torch" not in sys.modules and not all(part.known() for part in wanted):
            limit = functools.partial(limit_pixels, self.settings.max_megapixels)
            with contextlib.suppress(OSError, pickle.PicklingError, AttributeError, TypeError):  # then it is done later
                call_apart([limit, *(part.load for part in wanted)])

    @functools.cached_property
    def parts(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Method and backbone as stored in records."""
        backbone = self.config["backbone"]
        identified = None if backbone is None else identify(without_target("backbone", backbone), self.weights)
        return without_target("method", self.config["method"]), identified

    def _expected(self, test: str) -> Record:
        settings, tested = self.settings, self.task.tests[test]
        method, backbone = self.parts
        titles = {kind: self.config[kind]["about"]["title"] for kind in ("method", "backbone") if self.config[kind]}
        record = Record(
            fingerprint="",
            dataset=self.dataset.name,
            task=self.task.name,
            test=test,
            group=self.dataset.categories.get(test, self.task.group),
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
                "defects": sum(image.label is not None for image in tested),
            },
            regime=dict(self.regime),
            holdout=settings.holdout or None,
            draw=self.config["dataset"].get("draw") or None,
            config={"method": method, "backbone": backbone, "batch_size": settings.batch_size},
            hashes={"fit": self.normals, "test": images_hash(tested, self.digests)},
        )
        files = files_of(self.task, self.digests, test)
        return replace(record, fingerprint=fingerprint_of(record, self.config["dataset"], files))


def files_of(task: Task, digests: Digests, test: str) -> dict[str, Any]:
    """The files of a task and one of its test sets, as hashed into the fingerprint; no local paths."""
    images = {"fit": task.fit, "test": task.tests[test], **({"validation": task.validation} if task.validation else {})}
    return {"task": task.name, **{part: [identity(image, digests) for image in images[part]] for part in images}}


def images_hash(images: Iterable[Sample], digests: Digests) -> str:
    """One hash of images, their labels and masks, whatever their names and order."""
    return digest(sorted(digest(identity(image, digests)[1:]) for image in images))


def identity(image: Sample, digests: Digests) -> list[Any]:
    """[id, label, size, sha256, mask]; an archive member follows its file's hash, further planes follow the mask."""

    def hashed(source: Source) -> list[Any]:
        return [*digests[source.path], *([source.member] if source.member else [])]

    first, *others = map(hashed, image.sources)
    masks = [hashed(mask) for mask in image.masks]
    return [image.id, image.label, *first, masks if len(masks) > 1 else next(iter(masks), None), *others]


def fingerprint_of(record: Record, dataset: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """The fingerprint of a record's settings and these files; see `records.fingerprint`.

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
    """The keys of `about.folders` that are set, with the content of each folder."""
    named = {key: method.get(key) for key in method["about"].get("folders", [])}
    return {key: contents(Path(str(value)).expanduser()) for key, value in named.items() if value is not None}


@functools.cache
def contents(folder: Path) -> list[list[Any]]:
    """Name, size and hash of every file below a folder, as of the first call."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[path.relative_to(folder).as_posix(), *found] for path, found in file_digests(files, folder).items()]


def make_job(
    config: Mapping[str, Any],
    settings: Settings,
    dataset: Dataset,
    weights: Mapping[str, Weights],
    name: str,
    categories: Sequence[str] = (),
) -> Job:
    """List and hash the files of one task.

    Args:
        name, categories: see `task_names`; no categories: the one of that name.

    Raises:
        DataError: see `Dataset.task` and `make_task`; a file cannot be read; there is no image to fit on.
        UsageError: the method reads planes that the images do not have.
    """
    limit_pixels(settings.max_megapixels)
    parts = {category: read_planes(dataset.task(category), config) for category in categories or [name]}
    task = make_task(settings.regime, name, parts, settings.seed, settings.holdout)
    if not task.fit and not config["method"].get("zero_shot", False):
        raise DataError(
            f"{name}: no training images, but method={config['method']['name']} learns from normal images; add some, "
            "or choose a method with zero_shot: true in its YAML"
        )
    digests = {path: found for part in parts.values() for path, found in dataset.digests(part).items()}
    normals = images_hash((image for part in parts.values() for image in (*part.fit, *part.validation)), digests)
    regime = settings.regime | ({"categories": list(parts)} if settings.regime["name"] == "multi_class" else {})
    return Job(config, settings, dataset, regime, task, digests, normals, weights)


def read_planes(task: Task, config: Mapping[str, Any]) -> Task:
    """The task with the planes that the method reads: its YAML's `planes`, by default "rgb".

    Those of `optional_planes` come before them where the images have them.

    Raises:
        UsageError: the images lack a plane, or the backbone does not accept that many channels.
    """
    method, known = config["method"], {plane.name: plane.channels for plane in task.planes}
    wanted = method.get("planes", [RGB.name])
    have = ", ".join(f"{name} ({channels})" for name, channels in known.items())
    wanted = [*(name for name in method.get("optional_planes", ()) if name in known), *wanted]
    if not wanted or not set(wanted) <= known.keys():
        raise UsageError(
            f"method={method['name']} reads the planes {', '.join(wanted) or 'none'}; the images of {task.name} have "
            f"(channels): {have}; choose another dataset or method, or set method.planes if the method has that key"
        )
    if config["backbone"] is not None and sum(known[name] for name in wanted) != RGB.channels:
        raise UsageError(
            f"backbone={config['backbone']['name']} takes {RGB.channels} channels; method={method['name']} reads the "
            f"planes {', '.join(wanted)} of (channels): {have}; set method.planes to {RGB.channels} channels in all"
        )
    return task.with_planes(wanted)
