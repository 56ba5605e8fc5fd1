"""anomaly-bench: unsupervised image anomaly detection under one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anomaly_bench.version import __version__ as __version__

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record


def evaluate(*overrides: str, **keys: Any) -> list[Record]:
    """Fit and score as `anomaly-bench run` does and return one Record per category.

    Args:
        overrides: as on the command line, `"input.crop=224"`.
        keys: the same for keys without a dot, `method="padim"`, `category=["bottle", "screw"]`.

    Raises:
        anomaly_bench.errors.UsageError: a wrong key, choice or value.
    """
    from anomaly_bench.cli.commands.run import evaluate

    return evaluate(*overrides, **keys)
