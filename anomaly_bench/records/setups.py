"""Setups: what one table may compare."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.settings import FILTER, MAX_FALSE_ALARMS, describe_input
from anomaly_bench.files import safe_filename

OWN_INPUTS = ("zheng2022_4",)  # protocols of one paper that give each method its own input: one setup
PROTOCOLS = {  # in plain words
    "unified": "input {}",
    "paper": "input {}, as in the method's paper",
    "zheng2022_4": "inputs of Table 4 of Zheng et al. 2022",
}

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record


def setups(records: Iterable[Record], mixed: bool = False) -> list[list[Record]]:
    """Group records by dataset, task, protocol, input, oracle, precision and holdout, without duplicates.

    Args:
        mixed: group by dataset only.
    """
    parts: dict[tuple[Any, ...], dict[tuple[Any, ...], Record]] = defaultdict(dict)
    for record in records:
        same = None if record.protocol in OWN_INPUTS else record.input
        shape, regime = (json.dumps(part, sort_keys=True) for part in (same, record.regime))
        key = (record.dataset, record.protocol, shape, record.oracle, record.precision, regime, *holdout_of(record))
        parts[key[:1] if mixed else key][record.identity] = record
    return [[parts[key][each] for each in sorted(parts[key])] for key in sorted(parts)]


def setup_name(record: Record) -> str:
    """The name of a record's setup: a folder name, and a value of `setup=`."""
    parts = [record.dataset, *regime_words(record), record.protocol]
    if record.protocol not in OWN_INPUTS:
        parts += ["x".join(map(str, record.input["resize"]))]
        parts += ["crop" + "x".join(map(str, record.input["crop"]))] if record.input["crop"] else []
        parts += [record.input["filter"]] if record.input["filter"] != FILTER else []
    parts += [record.precision] if record.precision != "fp32" else []
    share, rate = holdout_of(record)
    parts += [f"holdout{share:g}"] if share else []
    parts += [f"alarms{rate:g}"] if rate not in (0, MAX_FALSE_ALARMS) else []
    return safe_filename("-".join([*parts, *(["oracle"] if record.oracle else [])]))


def setup_title(records: Sequence[Record], mixed: bool = False) -> str:
    """'MVTec AD, input 256×256', for the records of one table; `mixed`: of several setups."""
    return f"{dataset_title(records[0])}, {'several setups' if mixed else describe(records[0])}"


def dataset_title(record: Record) -> str:
    return record.titles.get("dataset") or record.dataset


def regime_words(record: Record) -> list[str]:
    """What was fitted on, as parts of a setup's name; empty for all images of one category."""
    regime = record.regime or {"name": "unknown_task"}
    if regime["name"] == "one_class":
        return []
    some = [record.task] if len(regime.get("categories", record.categories)) < len(record.categories) else []
    return [regime["name"], *some, *([str(regime["shots"])] if "shots" in regime else [])]


def holdout_of(record: Record) -> tuple[float, float]:
    """The share of the training images held out for thresholds, and the rate of false alarms; 0, 0: none."""
    return record.holdout or 0.0, (record.thresholds or {}).get("max_false_alarms", 0.0)


def describe(record: Record) -> str:
    """'input 256×256, crop 224×224', and any other non-default part of the setup."""
    words = PROTOCOLS.get(record.protocol, f"input {{}}, protocol {record.protocol}")
    parts = [words.format(describe_input(record.input))]
    if regime := regime_words(record):
        parts.append(f"task {' '.join(regime)}")
    if record.precision != "fp32":
        parts.append(record.precision)
    share, rate = holdout_of(record)
    if share:
        parts.append(f"holdout {share:g} (thresholds at {100 * rate:g}% false alarms)")
    if record.oracle:
        parts.append("oracle (settings chosen on the test images)")
    return ", ".join(parts)


def all_categories(records: Sequence[Record]) -> dict[str, str]:
    """Category -> group or "", in the dataset's order, with a task's named test sets in its place."""
    listed: dict[str, str] = {}
    for record in sorted(records, key=lambda record: -len(record.categories)):
        for each in record.categories:
            listed.setdefault(each["name"], each.get("group") or "")
    tested = {record.category: record for record in records}
    by_task: dict[str, list[str]] = defaultdict(list)
    for category in sorted(tested):
        by_task[tested[category].task].append(category)
    order: dict[str, str] = {}
    for name, group in listed.items():
        order |= dict.fromkeys(by_task.get(name) or [name], group)
    return {**order, **{name: tested[name].group or "" for name in sorted(tested.keys() - order.keys())}}
