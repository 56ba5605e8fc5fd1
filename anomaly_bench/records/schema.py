"""The JSON schema of records, `record.schema.json`: the types that `load` checks, for readers without anomaly-bench."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from anomaly_bench.records.content import Hash, Training, content_type
from anomaly_bench.records.record import LATER, SCHEMA, Record

FILE = Path(__file__).parent / "record.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABOUT = "The file of one record of anomaly-bench: docs/records.md explains it. Later keys are missing in older records."


def record_schema() -> dict[str, Any]:
    """Of the current `SCHEMA`, which is its `version` too."""
    kind = content_type(Record)
    _, parts = msgspec.json.schema_components([kind, Training], ref_template="#/$defs/{name}")
    content = parts.pop("Content")
    properties = {name: without_default(node) for name, node in content["properties"].items()}
    properties["schema"] = {"const": SCHEMA}
    properties["training"] = {"anyOf": [{"type": "null"}, {"maxProperties": 0}, {"$ref": "#/$defs/Training"}]}
    properties["checksum"] = {**msgspec.json.schema(Hash), "description": "sha256 of the rest as canonical JSON"}
    required = [each.name for each in fields(Record) if each.name not in LATER]
    return {
        "$schema": DIALECT,
        "title": f"Record of anomaly-bench, schema {SCHEMA}",
        "description": ABOUT,
        "version": SCHEMA,
        "type": "object",
        "properties": properties,
        "required": [*required, "checksum"],
        "additionalProperties": False,
        "$defs": dict(sorted(parts.items())),
    }


def without_default(node: dict[str, Any]) -> dict[str, Any]:
    """The types have defaults, as a class needs; a file has none."""
    return {key: value for key, value in node.items() if key != "default"}
