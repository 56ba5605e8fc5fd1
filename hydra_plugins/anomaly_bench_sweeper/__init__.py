"""Hydra finds sweepers only in the namespace package `hydra_plugins`; the work is done in `anomaly_bench.cli.sweep`."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser


class ResumingSweeper(BasicSweeper):
    """Expands a multirun into jobs like Hydra's basic sweeper, and leaves running them to the command's sweep."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)  # launchers have their own limits

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task = task_function

    def sweep(self, arguments: list[str]) -> Any:
        from anomaly_bench.cli.sweep import Jobs

        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        lists = self.split_arguments(overrides, None)[0]
        varied = [override.get_key_element() for override in overrides if override.is_sweep_override()]
        return self.task.sweep(Jobs(lists, varied, self.config, loader, self.launcher))
