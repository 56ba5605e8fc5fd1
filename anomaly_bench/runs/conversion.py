"""`anomaly-bench records convert`: migrate records and saved models from older schemas; their numbers stay the same.

A fingerprint's inputs change with the schema, so the old fingerprint is first recomputed from the data: this proves
that the record belongs to these files. If the data is missing or differs, the record keeps its old fingerprint and
says so: tables show it, but no run counts it as done. The old file is deleted once the new one is written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anomaly_bench.config.compose import dataset_node
from anomaly_bench.config.parts import OURS, packaged_node
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.documents import read_json, read_yaml
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import digest, write_atomically
from anomaly_bench.records import SCHEMA, DamagedRecord, Record, load, save
from anomaly_bench.records.content import check_content
from anomaly_bench.runs.job import files_of, fingerprint_of, folders


class Sources:
    """The available data files behind records.

    Args:
        data_root: the folder of a dataset's categories; None: taken from the environment.
        configs: folders of user YAML, searched for datasets by name.
    """

    def __init__(self, data_root: Path | None, configs: Sequence[Path] = ()) -> None:
        self.data_root, self.configs = data_root, configs

    @functools.cache  # noqa: B019 (one instance per command)
    def files(self, dataset: str, task: str, test: str) -> dict[str, Any] | None:
        """See `files_of`; None: no such files."""
        root = self.data_root
        if root is not None and not (root / task).is_dir() and root.name != task:
            root = None  # belongs to another dataset
        try:
            found = open_dataset(self.node(dataset), root)
            if task not in found.categories:
                return None
            listed = found.task(task)
            return files_of(listed, found.digests(listed), test)
        except (UsageError, DataError):
            return None

    @functools.cache  # noqa: B019
    def node(self, dataset: str) -> dict[str, Any]:
        return dataset_node(dataset, self.configs)


def convert(results: Path, sources: Sources) -> dict[str, list[str]]:
    """Migrate records of older schemas in a results folder.

    Returns:
        The paths of records "proven" and "kept" (with their old fingerprint), and why others were "left" as they are.
    """
    done: dict[str, list[str]] = {"proven": [], "kept": [], "left": []}
    for path in sorted((results / "records").rglob("*.json")):
        try:
            content = read_older(path)
            if content is not None:
                record, proven = convert_content(path, content, sources)
                move(path, record, results)
                done["proven" if proven else "kept"].append(record.path.as_posix())
        except (DamagedRecord, DataError) as error:
            done["left"].append(str(error))
    return done


def read_older(path: Path) -> dict[str, Any] | None:
    """The content of a record of an older schema; None: its schema is current.

    Raises:
        DamagedRecord: it cannot be read, or was modified.
    """
    try:
        content = read_json(path)
        checksum = content.pop("checksum")
        if content["schema"] not in FROM:
            load(path)
            return None
        if checksum != digest(content):
            raise DamagedRecord(f"{path}: modified or truncated since it was written; left as it is")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecord(f"{path}: not a record ({error}); left as it is") from error
    return dict(content)


def convert_content(path: Path, content: dict[str, Any], sources: Sources) -> tuple[Record, bool]:
    """The record, and whether it is proven; DamagedRecord: the content is none of its schema."""
    try:
        record, proven = FROM[content["schema"]](content, sources)
        check_content(asdict(record), Record)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecord(f"{path}: not a record ({error}); left as it is") from error
    return record, proven


def move(old: Path, record: Record, results: Path) -> None:
    """Write a converted record, and move the files saved with the old one.

    Raises:
        DataError: a later run has already written a different record there.
    """
    new = results / record.path
    if new != old and new.is_file() and load(new) != record:
        raise DataError(f"{old}: {new} already exists, from a later run; delete one of the two")
    save(record, results)
    folder = old.with_suffix("")
    if folder.is_dir() and new != old:
        folder.rename(new.with_suffix(""))
    convert_model(new.with_suffix("") / "model.yaml")
    if new != old:
        old.unlink()


def convert_model(file: Path) -> None:
    """Migrate the `model.yaml` of a saved model, if it exists and has an older schema."""
    if not file.is_file():
        return
    try:
        about: Any = read_yaml(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if about.get("schema") == SCHEMA:
        return
    parts = {kind: untied(kind, about[kind], about[kind]["name"]) for kind in ("method", "backbone") if about[kind]}
    write_atomically(file, OmegaConf.to_yaml(OmegaConf.create({"schema": SCHEMA, **about, **parts})))


def from_1(content: dict[str, Any], sources: Sources) -> tuple[Record, bool]:
    """Schema 1 hashed every key of method and backbone, including `_target_` and default values.

    Returns:
        The record, and whether it is proven.
    """
    config, files = content["config"], sources.files(content["dataset"], content["task"], content["test"])
    backbone = config["backbone"]
    parts = {
        "method": untied("method", config["method"], content["method"]),
        "backbone": None if backbone is None else untied("backbone", backbone, content["backbone"]),
    }
    proven = files is not None and fingerprint_1(content, files) == content["fingerprint"]
    later = {"schema": SCHEMA, "regime": {"name": "one_class"}}  # the only one in schema 1
    converted = {"schema": 1, "fingerprint": content["fingerprint"], "proven": proven}
    record = Record(**{**content, "config": {**config, **parts}, **later, "converted": converted})
    if files is not None and proven:
        record.fingerprint = fingerprint_of(record, sources.node(record.dataset), files)
    return record, proven


FROM = {1: from_1}  # schema -> its converter


def untied(group: str, node: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A schema 1 node as stored in schema 2: without the module paths of built-in parts."""
    converted = dict(node)
    if "networks" in converted:
        converted["networks"] = {inner: untied(group, part, inner) for inner, part in converted["networks"].items()}
    if str(converted["_target_"]).startswith(OURS) and packaged_node(group, name):
        del converted["_target_"]
    return converted


def fingerprint_1(content: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """The schema 1 fingerprint of a record's settings and these files."""
    method, backbone = content["config"]["method"], content["config"]["backbone"]
    run = {key: content[key] for key in ("dataset", "input", "protocol", "oracle", "precision", "seed")}
    about = {"revision": method["about"]["revision"]}
    parts = {"method": {**method, **folders(method), "about": about}, "backbone": _read(backbone, method.get("levels"))}
    return digest({**files, **run, **parts})


def _read(backbone: Any, levels: Any) -> Any:
    """A backbone with only the named modules that a method reads."""
    if not isinstance(backbone, dict):
        return backbone
    result = {**backbone}
    if "networks" in result:
        result["networks"] = {name: _read(part, levels) for name, part in result["networks"].items()}
    elif isinstance(levels, list) and isinstance(result.get("modules"), dict):
        names = set(map(str, levels))
        result["modules"] = {level: module for level, module in result["modules"].items() if level in names}
    return result
