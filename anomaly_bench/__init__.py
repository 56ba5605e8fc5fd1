"""anomaly-bench: unsupervised image anomaly detection under one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_bench.records import Record

__version__ = "0.1.0"


def evaluate(*overrides: str, **keys: Any) -> list[Record]:
    """Fit and score as `anomaly-bench run` does and return one Record per category.

    Args:
        overrides: as on the command line, `"input.crop=224"`.
        keys: the same for keys without a dot, `method="padim"`, `category=["bottle", "screw"]`.

    Raises:
        anomaly_bench.errors.UsageError: a wrong key, choice or value.
    """
    from anomaly_bench.cli import evaluate

    return evaluate(*overrides, **keys)
