"""Frozen backbones read at levels: created, truncated, run and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone, Networks

__all__ = ["Backbone", "Networks"]


def __getattr__(name: str) -> Any:  # imports torch only when a network is needed
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anomaly_bench.backbones import backbone

    return getattr(backbone, name)
