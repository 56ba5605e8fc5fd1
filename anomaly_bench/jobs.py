"""What a run has to do: one job per task, with the fingerprint that says whether it is done. No torch here."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from hydra.utils import get_object
from numpy.typing import NDArray

from anomaly_bench.config import MOST_SEED, Settings
from anomaly_bench.data import store
from anomaly_bench.data.mvtec import Dataset
from anomaly_bench.errors import DataError, UsageError, closest, one_line
from anomaly_bench.protocol import Image, Task
from anomaly_bench.records import Record, digest
from anomaly_bench.weights import Weights, resolve

NUMBERS: dict[Any, tuple[tuple[type, ...], str]] = {int: ((int,), "a whole number"), float: ((int, float), "a number")}
RANGES = {"batch": (1, 10**6), "eps": (0, 1e6), "sigma": (0, 1000), "seed": (0, MOST_SEED)}  # settings methods share
NEEDED: dict[str, dict[str, type]] = {  # in each group's YAML, besides what its `_target_` asks for
    "dataset": {"_target_": str},
    "method": {"_target_": str, "name": str, "about.title": str, "about.revision": int},
    "backbone": {"_target_": str, "name": str, "about.title": str, "about.revision": int},
}
NETWORK: dict[str, type] = {
    "_target_": str,
    "about.revision": int,
    "weights": str,
}  # of each network
SOURCES = ({"package", "file"}, {"repo", "file"}, {"url", "sha256"})  # of weights
RUNNER_KEYS = ("name", "about", "levels", "uses_backbone", "weights", "oracle")  # of a YAML, not of a constructor


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a method's, backbone's or dataset's YAML that its `_target_` is called with."""
    return {key: value for key, value in node.items() if key not in RUNNER_KEYS}


def construct(node: Mapping[str, Any], kind: str, **extra: Any) -> Any:
    """Call a YAML's `_target_` with its keys and `extra`.

    Raises:
        UsageError: no such target, or keys that it does not take.
    """
    keys = {**arguments(node), **extra}
    target = keys.pop("_target_", None)
    try:
        made = get_object(str(target))
        inspect.signature(made).bind(**keys)
    except ImportError as error:
        raise UsageError(f"{kind}._target_={target}: cannot be imported ({one_line(str(error))})") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind}={node.get('name')}: {target}: {one_line(str(error))}") from error
    if kind == "method":
        check_values(made, keys)
    return made(**keys)


def check_values(method: Any, keys: Mapping[str, Any]) -> None:
    """Compare a method's settings with the types of its constructor's arguments, and with `RANGES`.

    Raises:
        UsageError: the setting, what was found, what was expected.
    """
    hints: dict[str, Any] = {}
    with contextlib.suppress(NameError):  # a hint that is imported for type checkers only
        hints = get_type_hints(method.__init__ if inspect.isclass(method) else method)
    for key, hint in hints.items():
        if key not in keys or hint not in NUMBERS:
            continue
        value, (types, what) = keys[key], NUMBERS[hint]
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if type(value) not in types or not low <= value <= high:
            limits = f" from {low} to {high}" if key in RANGES else ""
            raise UsageError(f"method.{key}={value}: expected {what}{limits}")


def check_choices(config: Mapping[str, Any]) -> None:
    """Raise UsageError where the YAML of a dataset, method or backbone lacks what all must have."""
    for group, needed in NEEDED.items():
        if not isinstance(config.get(group), Mapping):
            raise UsageError(f"{group}: nothing is chosen; expected {group}=NAME, see anomaly-bench --help")
        require_keys(config[group], group, needed)
    for name, node in networks(config["backbone"]).items():
        require_keys(node, "backbone" if node is config["backbone"] else f"backbone.networks.{name}", NETWORK)


def require_keys(node: Any, where: str, needed: Mapping[str, type]) -> None:
    """Raise UsageError where a dotted key of a configuration's node has no value of its type."""
    for key, kind in needed.items():
        value = node
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if type(value) is not kind:
            what = "a name or text" if kind is str else "a whole number"
            raise UsageError(f"{where}.{key}={value}: expected {what} in the YAML")


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
    def told(self) -> Record:
        """The first test set's record, as far as it is known before the work: the job's files are named after it."""
        return self.record(next(iter(self.task.tests)))

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training is kept, below the results folder."""
        return self.told.path.with_suffix(".checkpoint")

    @property
    def lease(self) -> str:
        """The name under which a run claims this job."""
        return "--".join(self.told.path.with_suffix("").parts[1:])

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


def identify(node: Mapping[str, Any], weights: Mapping[str, Weights], levels: Any = "all") -> dict[str, Any]:
    """A backbone's arguments, revision and the hash of its weights, or those of each of its networks.

    Of named modules only those of the `levels` that are read are told.
    """
    told = {**arguments(node), "revision": node["about"]["revision"]}
    if "networks" in node:
        parts = {name: identify(part, weights, levels) for name, part in node["networks"].items()}
        return {**told, "networks": parts}
    if isinstance(levels, list) and isinstance(told.get("modules"), Mapping):
        names = {str(level) for level in levels}
        told["modules"] = {level: module for level, module in told["modules"].items() if str(level) in names}
    return {**told, "weights": weights[node["name"]].sha256}


def has_masks(images: Sequence[Image]) -> bool:
    """Whether the dataset marks the defects of these images; without defects there is nothing to be marked."""
    return any(image.mask for image in images) or not any(image.defect for image in images)


def centre(images: NDArray[Any], crop: store.Size | None) -> NDArray[Any]:
    """The central (H, W) of (N, H, W, ...) as a view."""
    if crop is None:
        return images
    top, left = margins((images.shape[1], images.shape[2]), crop)
    return images[:, top : top + crop[0], left : left + crop[1]]


def margins(size: store.Size, crop: store.Size | None) -> store.Size:
    """How many pixels the central (H, W) of an image leaves out at the top and at the left."""
    return (0, 0) if crop is None else (round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2))


def open_dataset(node: Mapping[str, Any], data_root: Path | None) -> Dataset:
    """The dataset of a YAML; its name is an argument too, for one's own folders."""
    texts = {key: str(node[key]) for key in ("name", "title") if node.get(key) is not None}  # 2024 is one too
    dataset: Dataset = construct({**node, **texts}, "dataset", name=texts.get("name"), data_root=data_root)
    return dataset


def selected(dataset: Dataset, wanted: list[str]) -> list[str]:
    """The categories that `category=` names, in the dataset's order.

    Raises:
        UsageError: a name that is neither a category nor a group of the dataset.
    """
    groups = {group for group in dataset.categories.values() if group is not None}
    for name in wanted:
        if name != "all" and name not in dataset.categories and name not in groups:
            near = closest(name, [*dataset.categories, *groups, "all"])
            raise UsageError(f"category={name}: {dataset.title} has no such category or group{near}")
    return [name for name, group in dataset.categories.items() if {"all", name, group or "all"} & set(wanted)]


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


def networks(backbone: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The networks that a backbone is made of, by their names: mostly itself; none for an image-space method."""
    if backbone is None:
        return {}
    found: dict[str, Mapping[str, Any]] = backbone.get("networks", {backbone["name"]: backbone})
    return found


def find_weights(config: Mapping[str, Any]) -> dict[str, Weights]:
    """The weights of each network of the configured backbone, by its name; none for an image-space method."""
    return {name: network_weights(name, node) for name, node in networks(config["backbone"]).items()}


def network_weights(name: str, node: Mapping[str, Any]) -> Weights:
    source = node["about"].get("pretrained")
    source = source if isinstance(source, Mapping) else {}
    if node["weights"] == "pretrained" and not any(keys <= source.keys() for keys in SOURCES):
        known = ", or ".join(" and ".join(sorted(keys)) for keys in SOURCES)
        raise UsageError(f"backbone={name}: about.pretrained={dict(source)}; expected {known}, or give weights=FILE")
    return resolve(name, node["weights"], source)


def make_network(node: Mapping[str, Any], weights: Weights, precision: str, levels: Any) -> Any:
    """One network of a backbone, read at these levels. This imports torch."""
    return construct(node, "backbone", levels=levels, weights=weights.file, precision=precision)


def make_backbone(
    config: Mapping[str, Any],
    weights: Mapping[str, Weights],
    precision: str = "fp32",
    wrap: Callable[[str, Any], Any] = lambda name, network: network,
) -> Any:
    """The configured backbone, read at the method's levels; None for an image-space method. This imports torch.

    Args:
        wrap: is given the name of each network and itself, and returns what takes its place.
    """
    backbone, levels = config["backbone"], config["method"].get("levels")
    made = [
        wrap(name, make_network(node, weights[name], precision, levels)) for name, node in networks(backbone).items()
    ]
    if backbone is None or "networks" not in backbone:
        return made[0] if made else None
    return construct(backbone, "backbone", networks=made)
