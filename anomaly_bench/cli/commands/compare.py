"""`anomaly-bench compare`: is a difference significant, or due to chance? Does not import torch.

    a=DIR b=DIR      each method in one results folder with the same method in another: before and after a change
    results=DIR      all pairs of methods in one folder

See `comparison.significance` for the tests and `comparison.gate` for `fail_if`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.cli.commands import tables
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.cli.overrides import as_choices
from anomaly_bench.comparison.gate import broken, read_conditions
from anomaly_bench.comparison.pairing import compare_folders, compare_methods
from anomaly_bench.comparison.significance import mean_ranks, metric_title, paired_differences
from anomaly_bench.comparison.tables import comparison_tables
from anomaly_bench.errors import Exit, UsageError, closest, how_to_install, one_line
from anomaly_bench.metrics.registry import find_metric, packaged_metrics
from anomaly_bench.tables import query
from anomaly_bench.tables.formats.draw import draw

if TYPE_CHECKING:
    from anomaly_bench.comparison.gate import Condition
    from anomaly_bench.comparison.pairing import Comparison

PICTURES = (".svg", ".pdf", ".png")


def command(arguments: Sequence[str]) -> int:
    words = [f"method={word.removeprefix('methods=')}" if word.startswith("methods=") else word for word in arguments]
    return hydra("compare", as_choices(words, "shown"), print_comparison)


def print_comparison(config: Any) -> int:
    """Print the comparison, draw the figure, check `fail_if`; return the exit status.

    Raises:
        UsageError: invalid folders, names, metrics or conditions, or nothing to compare.
    """
    conditions = read_conditions(config["fail_if"])
    folders = config["a"] is not None or config["b"] is not None
    if conditions and not folders:
        raise UsageError(f"fail_if={config['fail_if']} needs a=DIR b=DIR: it checks b against a")
    for key, usual in (("figure", None), ("results", "results")):
        if folders and config[key] != usual:
            raise UsageError(f"{key}={config[key]} has no effect with a=DIR b=DIR; give one or the other")
    shown = query.name_list(config["shown"]) or []
    metrics = {*shown, *(condition.metric for condition in conditions)}
    found = list(compare_folders(config, metrics) if folders else compare_methods(config, metrics))
    check_shown(shown, found)
    if config["figure"] is not None:
        draw_figure(Path(str(config["figure"])).expanduser(), found, shown)
    made = [table for each in found for table in comparison_tables(each, shown, folders)]
    tables.show(draw(made, str(config["format"]), color=tables.in_color(config["out"])), config["out"])
    failed = list(gate_failures(conditions, found))
    for line in dict.fromkeys(failed):
        print(f"failed: {one_line(line)}", file=sys.stderr)
    return Exit.FAILED if failed else Exit.DONE


def gate_failures(conditions: Sequence[Condition], found: Sequence[Comparison]) -> Iterator[str]:
    """A line per reason to fail; anything missing in b is one.

    Raises:
        UsageError: a or b has no value of a condition's metric.
    """
    for condition in conditions:
        check_metric(condition.metric, "fail_if", found)
        check_best(condition.metric, f"fail_if={condition}", found)
        compared = {each.name: paired_differences(each.pairs, condition.metric) for each in found}
        listed = [each for part in compared.values() for each in part]
        for key, some in (("a", any(each.first for each in listed)), ("b", any(each.second for each in listed))):
            if not some:
                raise UsageError(f"fail_if={condition}: no record in {key} has a value of {condition.metric}")
        for each in found:
            yield from each.missing
        for where, part in compared.items():
            yield from broken(condition, part, where)


def check_shown(shown: Sequence[str], found: Sequence[Comparison]) -> None:
    """Raise UsageError if a metric to show is unknown, or no record has a value of any of them."""
    if not shown:
        raise UsageError("metric=[]: expected at least one, such as metric=image_auroc")
    for name in shown:
        check_metric(name, "metric", found)
    records = [record for each in found for record in each.records]
    have = {name for record in records for name in record.metrics if record.value(name) is not None}
    if have.isdisjoint(shown):
        raise UsageError(f"metric={','.join(shown)}: no record has a value of it; recorded: {', '.join(sorted(have))}")


def check_metric(name: str, key: str, found: Sequence[Comparison]) -> None:
    """Raise UsageError if a metric is neither ours nor in the records."""
    known = packaged_metrics().keys() | {name for each in found for record in each.records for name in record.metrics}
    if name not in known:
        raise UsageError(f"{key}={name}: no such metric{closest(name, known)}")


def check_best(name: str, where: str, found: Sequence[Comparison]) -> None:
    """Raise UsageError if a metric's highest value is not its best."""
    metric = find_metric(name, [record.metrics for each in found for record in each.records])
    if metric is not None and metric.best != "highest":
        raise UsageError(f"{where}: a higher {name} is not a better one; choose a metric whose highest is best")


def draw_figure(path: Path, found: Sequence[Comparison], metrics: Sequence[str]) -> None:
    """Draw the critical-difference diagrams of all metrics, one below the other.

    Raises:
        UsageError: several setups, too few methods or categories, an unknown suffix, or scikit-posthocs is missing.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"figure={path}: expected a name that ends in {', '.join(PICTURES)}")
    if len(found) > 1:
        raise UsageError(
            f"figure: {len(found)} setups; choose one: {', '.join(f'setup={each.name}' for each in found)}"
        )
    for metric in metrics:
        check_best(metric, f"figure={path}", found)
    rankings = [mean_ranks(found[0].sides, metric) for metric in metrics]
    from anomaly_bench.report.figures.plots import critical_difference
    from anomaly_bench.report.figures.svg import write_figure

    try:
        drawn = critical_difference(rankings, found[0].title)
    except ModuleNotFoundError as error:
        raise UsageError(f"figure={path}: needs {error.name}; {how_to_install('compare')}") from error
    try:
        write_figure(drawn, path)
    except OSError as error:
        raise UsageError(f"figure={path}: cannot be written ({error.strerror}); give another file") from error
    titles = ", ".join(metric_title(metric, found[0].records) for metric in metrics)
    print(one_line(f"{path}: {titles}"), file=sys.stderr)
