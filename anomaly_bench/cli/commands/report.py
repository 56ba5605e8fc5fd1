"""`anomaly-bench report`: one HTML file for a results folder."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_choices
from anomaly_bench.report.page import write_page


def command(arguments: Sequence[str]) -> int:
    return hydra("report", as_choices(arguments), write_page)
