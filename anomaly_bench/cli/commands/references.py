"""`anomaly-bench references check|evidence`: contradictions in published tables; what methods were checked against."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.published.audit.page import print_contradictions
from anomaly_bench.tables.evidence import print_evidence


def command(subject: str, arguments: Sequence[str]) -> int:
    if subject == "evidence":
        return hydra("evidence", arguments, print_evidence)
    return hydra("references", arguments, print_contradictions)
