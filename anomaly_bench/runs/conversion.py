"""`anomaly-bench records convert`: records and saved models of older schemas carried over, their numbers as they are.

What is hashed into a fingerprint changes with the schema, so the fingerprint of before is computed again from the data
first: it proves that the record is of these files. Where the data is not at hand, or other, the old fingerprint is kept
and the record says so: tables show it, no run takes it for done. An old file goes when the new one is written.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anomaly_bench.config.compose import dataset_node
from anomaly_bench.config.parts import OURS, packaged_node
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import digest, write_atomically
from anomaly_bench.records import SCHEMA, DamagedRecord, Record, load, save
from anomaly_bench.runs.job import files_of, fingerprint_of, folders


class Sources:
    """The files that records are of, as far as they are at hand.

    Args:
        data_root: the folder of a dataset's categories; None: as the environment says.
        configs: the user's own configuration, where datasets are looked up by name.
    """

    def __init__(self, data_root: Path | None, configs: Sequence[Path] = ()) -> None:
        self.data_root, self.configs = data_root, configs

    @functools.cache  # noqa: B019 (one for each call of the command)
    def files(self, dataset: str, task: str, test: str) -> dict[str, Any] | None:
        """See `files_of`; None: there are no such files."""
        root = self.data_root
        if root is not None and not (root / task).is_dir() and root.name != task:
            root = None  # of another dataset
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
    """Carry over what is of an older schema below a results folder.

    Returns:
        The paths of "proven" records, of those "kept" with their old fingerprint, and why others are "left".
    """
    done: dict[str, list[str]] = {"proven": [], "kept": [], "left": []}
    for path in sorted((results / "records").rglob("*.json")):
        try:
            content = read_older(path)
            if content is not None:
                record, proven = FROM[content["schema"]](content, sources)
                move(path, record, results)
                done["proven" if proven else "kept"].append(record.path.as_posix())
        except (DamagedRecord, DataError) as error:
            done["left"].append(str(error))
    return done


def read_older(path: Path) -> dict[str, Any] | None:
    """The content of a record of an older schema; None: it is of today's.

    Raises:
        DamagedRecord: it cannot be read, or was changed.
    """
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("checksum")
        if content["schema"] not in FROM:
            load(path)
            return None
        if checksum != digest(content):
            raise DamagedRecord(f"{path}: changed or cut off since it was written; left as it is")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedRecord(f"{path}: not a record ({error}); left as it is") from error
    return dict(content)


def move(old: Path, record: Record, results: Path) -> None:
    """Write a converted record, and take along what lies beside the old one.

    Raises:
        DataError: there is another record in its place, of a run since.
    """
    new = results / record.path
    if new != old and new.is_file() and load(new) != record:
        raise DataError(f"{old}: {new} is there already, computed since; delete one of the two")
    save(record, results)
    folder = old.with_suffix("")
    if folder.is_dir() and new != old:
        folder.rename(new.with_suffix(""))
    convert_model(new.with_suffix("") / "model.yaml")
    if new != old:
        old.unlink()


def convert_model(file: Path) -> None:
    """Carry over the `model.yaml` of a saved model, if there is one and it is of an older schema."""
    if not file.is_file():
        return
    about: Any = OmegaConf.to_container(OmegaConf.load(file))
    if about.get("schema") == SCHEMA:
        return
    parts = {kind: untied(kind, about[kind], about[kind]["name"]) for kind in ("method", "backbone") if about[kind]}
    write_atomically(file, OmegaConf.to_yaml(OmegaConf.create({"schema": SCHEMA, **about, **parts})))


def from_1(content: dict[str, Any], sources: Sources) -> tuple[Record, bool]:
    """Schema 1 hashed every key of method and backbone, their `_target_` too, whether it stood at its default or not.

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
    later = {"schema": SCHEMA, "regime": {"name": "one_class"}}  # schema 1 knew no other
    converted = {"schema": 1, "fingerprint": content["fingerprint"], "proven": proven}
    made = Record(**{**content, "config": {**config, **parts}, **later, "converted": converted})
    if files is not None and proven:
        made.fingerprint = fingerprint_of(made, sources.node(made.dataset), files)
    return made, proven


FROM = {1: from_1}  # the schema of a record -> what carries it over


def untied(group: str, node: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A node of schema 1 as schema 2 keeps it: without the module paths of built-in parts."""
    made = dict(node)
    if "networks" in made:
        made["networks"] = {inner: untied(group, part, inner) for inner, part in made["networks"].items()}
    if str(made["_target_"]).startswith(OURS) and packaged_node(group, name):
        del made["_target_"]
    return made


def fingerprint_1(content: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """The fingerprint that schema 1 gave a record's settings on these files."""
    method, backbone = content["config"]["method"], content["config"]["backbone"]
    run = {key: content[key] for key in ("dataset", "input", "protocol", "oracle", "precision", "seed")}
    about = {"revision": method["about"]["revision"]}
    told = {"method": {**method, **folders(method), "about": about}, "backbone": _read(backbone, method.get("levels"))}
    return digest({**files, **run, **told})


def _read(backbone: Any, levels: Any) -> Any:
    """A backbone with those of its named modules that a method reads."""
    if not isinstance(backbone, dict):
        return backbone
    made = {**backbone}
    if "networks" in made:
        made["networks"] = {name: _read(part, levels) for name, part in made["networks"].items()}
    elif isinstance(levels, list) and isinstance(made.get("modules"), dict):
        names = set(map(str, levels))
        made["modules"] = {level: module for level, module in made["modules"].items() if level in names}
    return made
