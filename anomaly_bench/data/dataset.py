"""Datasets by name: found, opened, their categories selected."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.instantiate import construct
from anomaly_bench.config.settings import names
from anomaly_bench.errors import UsageError, closest

if TYPE_CHECKING:
    from anomaly_bench.data.mvtec import Dataset


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


def as_path(data_root: Any) -> Path | None:
    """The key `data_root`, which may look like a number."""
    return None if data_root is None else Path(str(data_root))


def chosen(dataset: Dataset, category: Any) -> list[str]:
    """The categories that the key `category`, a name or a list, stands for."""
    return selected(dataset, names(category, "category"))


DATA_VARIABLE = "ANOMALY_BENCH_DATA"


def find_root(name: str, data_root: str | os.PathLike[str] | None, what: str) -> Path:
    """The dataset's folder from the key `data_root` or from the environment."""
    shared = os.environ.get(DATA_VARIABLE)
    if data_root is None and shared is None:
        raise UsageError(f"dataset={name} needs data_root=DIR ({what}), or {DATA_VARIABLE} set to its parent")
    root = Path(data_root).expanduser() if data_root is not None else Path(str(shared)).expanduser() / name
    origin = "data_root" if data_root is not None else f"${DATA_VARIABLE}/{name}"
    try:
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{origin}={root}: no such folder; give {what}") from error
    except OSError as error:
        raise UsageError(f"{origin}={root}: cannot be listed ({error.strerror}); check its rights") from error
    return root
