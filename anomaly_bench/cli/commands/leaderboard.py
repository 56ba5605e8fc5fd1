"""`anomaly-bench leaderboard`: a static site of the records in results folders."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_choices
from anomaly_bench.report.leaderboard import write_site


def command(arguments: Sequence[str]) -> int:
    return hydra("leaderboard", as_choices(arguments), write_site)
