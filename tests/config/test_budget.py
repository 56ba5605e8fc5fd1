"""`budget=`: which methods it concerns, what overrides it, and that it is part of the fingerprint."""

from __future__ import annotations

import pytest

from anomaly_bench.config.budget import REDUCED, with_budget
from anomaly_bench.config.compose import compose
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.console import Reporter
from anomaly_bench.errors import UsageError
from anomaly_bench.runs.runner import Runner

SCHEDULES = {
    name: schedule
    for name in choices("method", [conf_folder()])
    if (schedule := compose("config", [f"method={name}"])["method"]["about"].get("schedule"))
}


def steps(*words):
    return with_budget(compose("config", words))["method"].get("train_steps")


@pytest.mark.parametrize("method", SCHEDULES)
def test_a_schedule_is_what_the_method_does_by_default(method):
    schedule, node = SCHEDULES[method], compose("config", [f"method={method}"])["method"]
    for key in schedule.keys() & {"epochs", "steps", "batch", "samples"}:
        assert schedule[key] == node.get(key, schedule[key]), key
    for key in schedule:
        budget, _, changed = key.partition("_")
        if changed:
            assert budget in REDUCED
            assert schedule[changed] == node[changed], f"what {key} replaces"
    assert schedule["source"]
    assert 0 < schedule["smoke"] < schedule["short"]


def test_steps_are_those_of_the_yaml_and_the_paper_has_none():
    schedule = SCHEDULES["fastflow"]
    assert steps("method=fastflow") is None
    assert steps("method=fastflow", "budget=short") == schedule["short"]
    assert steps("method=fastflow", "budget=smoke") == schedule["smoke"]
    assert steps("method=fastflow", "budget=70") == 70


def test_a_short_budget_may_have_a_smaller_batch():
    def method(*words):
        return with_budget(compose("config", ["method=ae_l2", *words]))["method"]

    schedule = SCHEDULES["ae_l2"]
    assert (method("budget=short")["train_steps"], method("budget=short")["batch"]) == (schedule["short"], 8)
    assert method("budget=short", "method.batch=16")["batch"] == 16, "what the user says"
    assert method("budget=paper")["batch"] == method("budget=smoke")["batch"] == schedule["batch"]


def test_a_search_may_be_shorter_as_well():
    node = with_budget(compose("config", ["method=anogan", "budget=smoke"]))["method"]
    assert (node["train_steps"], node["moves"]) == (3, 3)
    assert with_budget(compose("config", ["method=anogan", "budget=short"]))["method"]["moves"] == 300


def test_epochs_override_the_budget():
    assert steps("method=fastflow", "budget=short", "method.epochs=3") is None


def test_methods_that_do_not_train_are_not_concerned():
    for method in ("padim", "patchcore", "spade", "mahalanobis_ad"):
        assert (
            with_budget(compose("config", [f"method={method}", "budget=short"]))["method"]
            == (compose("config", [f"method={method}"])["method"])
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=shrot"], "budget=shrot: expected paper, short, smoke or a number.*did you mean short"),
        (["budget=0"], "budget=0: expected"),
        (["budget=1.5"], "budget=1.5: expected"),
        (["budget=null"], "budget=None: expected"),
        (["method=fastflow", "~method.about.schedule.short", "budget=short"], "fastflow has no number of steps.*STEPS"),
        (["budgte=short"], "budgte: no such key; did you mean budget"),
    ],
)
def test_wrong_budgets(words, message):
    with pytest.raises(UsageError, match=message):
        steps(*words)


def test_only_a_changed_budget_changes_a_fingerprint(tree):
    def fingerprint(*words):
        config = compose("config", ["dataset=folder", f"data_root={tree}", *words])
        return Runner(config, Reporter()).job("cog").first.fingerprint

    trained = [fingerprint("method=fastflow", f"budget={budget}") for budget in ("paper", "short", "smoke", "281")]
    assert len(set(trained)) == 4
    assert trained[0] == fingerprint("method=fastflow")
    assert trained[1] == fingerprint("method=fastflow", f"budget={SCHEDULES['fastflow']['short']}")
    assert fingerprint("budget=short") == fingerprint()
