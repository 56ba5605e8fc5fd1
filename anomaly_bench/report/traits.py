"""What the report filters methods by: their family, what they are fitted on, and what their numbers rest on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import STATUSES, SUPERVISIONS

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

TRAITS = {"family": "Family", "supervision": "Fitted on", "status": "Evidence"}
OTHER = "other"


def traits(record: Record) -> dict[str, str]:
    """Each of `TRAITS`, from the method's YAML; a method that is not ours keeps it in its records."""
    about: Mapping[str, Any] = _about(record.method) or (record.config.get("method") or {}).get("about") or {}
    status = (about.get("evidence") or {}).get("status")
    return {
        "family": str(about.get("family", OTHER)),
        "supervision": str(about.get("supervision", SUPERVISIONS[0])),
        "status": STATUSES[status][0] if status in STATUSES else OTHER,
    }


@functools.cache
def _about(method: str) -> Mapping[str, Any]:
    about: Mapping[str, Any] = packaged_node("method", method).get("about") or {}
    return about
