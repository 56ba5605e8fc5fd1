"""`budget=`: for how many optimiser steps a method trains; see `about.schedule` in its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anomaly_bench.errors import UsageError, closest

PAPER = "paper"
REDUCED = ("short", "smoke")  # keys of about.schedule
LENGTHS = ("epochs", "steps")  # what a published schedule is stated in


def with_budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the steps that `budget` allows as `method.train_steps`.

    Where the schedule has another key for the budget (`short_batch`, `smoke_moves`), that replaces the published one.
    Unchanged with budget=paper, for a method that does not train, and where `method.epochs` is not the published one:
    that overrides the budget.

    Raises:
        UsageError: an unknown budget, or one that the method's YAML does not have.
    """
    budget, method = config.get("budget", PAPER), config["method"]
    number = type(budget) is int and budget > 0
    if not number and budget not in (PAPER, *REDUCED):
        near = closest(budget, (PAPER, *REDUCED)) if isinstance(budget, str) else ""
        raise UsageError(f"budget={budget}: expected paper, short, smoke or a number of optimiser steps{near}")
    schedule = method["about"].get("schedule") or {}
    trains = bool(schedule) or "epochs" in method
    overridden = any(key in schedule and method.get(key, schedule[key]) != schedule[key] for key in LENGTHS)
    if budget == PAPER or not trains or overridden:
        return dict(config)
    if not number and type(schedule.get(budget)) is not int:
        raise UsageError(
            f"budget={budget}: method.about.schedule of {method['name']} has no number of steps for it; add "
            f"`{budget}: STEPS` to the YAML, or give budget=STEPS"
        )
    changed = {"train_steps": budget if number else schedule[budget]}
    cut = {key: schedule.get(f"{budget}_{key}") for key in schedule if method.get(key) == schedule[key]}
    changed |= {key: value for key, value in cut.items() if value is not None}
    return {**config, "method": {**method, **changed}}
