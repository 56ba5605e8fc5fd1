"""How long a method was trained, and what share of its published schedule that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anomaly_bench.config.budget import LENGTHS
from anomaly_bench.config.parts import packaged_node

PUBLISHED = (*LENGTHS, "samples")  # of about.schedule; samples: images per epoch, where that is not each image once


def training_of(facts: Mapping[str, Any] | None, method: Mapping[str, Any]) -> dict[str, Any] | None:
    """`Record.training` of what `components.training.Loop` tells; None: a method with a schedule told nothing.

    Empty: nothing is to be trained, also with `epochs=0`.

    Args:
        method: its node in the configuration.
    """
    schedule = method["about"].get("schedule") or {}
    if facts is None:
        return None if schedule and method.get("epochs") != 0 else {}
    published = {key: schedule[key] for key in PUBLISHED if key in schedule}
    return {**facts, "published": published, "share": share_of(facts, published)}


def share_of(facts: Mapping[str, Any], published: Mapping[str, Any]) -> float | None:
    """Of the published schedule: of its steps, of its samples or of its epochs; None: nothing is published.

    Epochs rather than steps where both could be counted: a last batch that is left out, or another batch size, does not
    make a training shorter.
    """
    if "steps" in published:
        if facts["steps"] is None:
            return None
        share = facts["steps"] / published["steps"]
    elif "samples" in published:
        share = facts["samples"] / (published["epochs"] * published["samples"])
    elif "epochs" in published:
        share = facts["epochs"] / published["epochs"]
    else:
        return None
    return float(f"{share:.6g}")


def derived_training(
    method: Mapping[str, Any], cost: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, Any] | None:
    """`Record.training` of a record from before there was such a key, where its settings leave no doubt; else None.

    The built-in methods of that time took one step per batch, the smaller last one included; STFPM held out some of the
    images, and CFLOW-AD took several steps per batch, of a number that is not derived here.

    Args:
        method, cost, counts: the record's `config["method"]`, `cost` and `counts`.
    """
    packaged = packaged_node("method", method.get("name", ""))
    if not packaged or "_target_" in method:
        return None
    schedule, epochs = packaged["about"].get("schedule"), cost.get("epochs")
    if schedule is None and epochs is None:
        return {}
    if schedule is None or epochs is None or "batch" not in method:
        return None
    images = counts["fit"]
    if "held_out" in method:
        images -= min(max(1, round(method["held_out"] * images)), images - 1)
    samples = method.get("samples", images)
    steps = None if "fibres" in method else epochs * math.ceil(samples / method["batch"])
    facts = {"epochs": epochs, "steps": steps, "samples": epochs * samples, "curve": None, "last_tenth": None}
    return training_of(facts, {**method, "about": {"schedule": schedule}})
