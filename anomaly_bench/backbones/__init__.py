"""Frozen networks read at levels: how they are made, cut, run and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone, Networks

__all__ = ["Backbone", "Networks"]


def __getattr__(name: str) -> Any:  # torch is imported only where a network is made
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anomaly_bench.backbones import backbone

    return getattr(backbone, name)
