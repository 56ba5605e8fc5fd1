"""The share of a published schedule, of new records and of those from before they held it."""

from __future__ import annotations

import pytest

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.records.content import check_training
from anomaly_bench.records.training_share import derived_training, share_of, training_of


@pytest.mark.parametrize(
    ("told", "published", "share"),
    [
        ({"epochs": 25, "steps": 350, "samples": 5225}, {"epochs": 200}, 0.125),
        ({"epochs": 25, "steps": 350, "samples": 5225}, {"steps": 7000}, 0.05),
        ({"epochs": 40, "steps": 400, "samples": 12800}, {"epochs": 100, "samples": 10000}, 0.0128),
        ({"epochs": 300, "steps": 1, "samples": 1}, {"epochs": 200}, 1.5),
        ({"epochs": 25, "steps": 350, "samples": 5225}, {}, None),
    ],
)
def test_share(told, published, share):
    assert share_of(told, published) == share


def test_what_a_record_holds():
    told = {"epochs": 5, "steps": 35, "samples": 1045}
    held = training_of(told, {"about": {"schedule": {"epochs": 500, "batch": 32, "source": "the paper"}}})
    assert held == {**told, "published": {"epochs": 500}, "share": 0.01}
    assert training_of(None, {"about": {}}) == {}
    assert training_of(None, {"about": {"schedule": {"epochs": 500}}}) is None
    assert training_of(None, {"about": {"schedule": {"epochs": 500}}, "epochs": 0}) == {}
    assert training_of(told, {"about": {}})["share"] is None


def old(method, epochs, fit=209, **changed):
    """`derived_training` of a record of a built-in method from before there was `training`."""
    node = {key: value for key, value in packaged_node("method", method).items() if key != "_target_"}
    cost = {} if epochs is None else {"epochs": epochs, "losses": [1.0] * epochs}
    return derived_training({**node, **changed}, cost, {"fit": fit})


@pytest.mark.parametrize(
    ("method", "epochs", "changed", "expected"),
    [
        ("fastflow", 40, {}, (280, 8360, 0.08)),
        ("stfpm", 15, {}, (90, 2505, 0.15)),  # 42 of 209 images are held out
        ("ae_l2", 40, {"samples": 320, "batch": 32}, (400, 12800, 0.0128)),
        ("cflow_ad", 8, {}, (None, 1672, 0.04)),
    ],
)
def test_old_records_tell_what_is_certain(method, epochs, changed, expected):
    held = old(method, epochs, **changed)
    assert (held["steps"], held["samples"], held["share"]) == expected
    assert held["curve"] is None


def test_old_records_that_tell_nothing():
    assert old("padim", None) == {}
    assert old("fastflow", None) is None
    assert derived_training({"name": "fastflow", "_target_": "my.Flow"}, {"epochs": 3}, {"fit": 9}) is None
    assert derived_training({"name": "mine"}, {}, {"fit": 9}) is None


TOLD = {"epochs": 5, "steps": 35, "samples": 1045, "curve": {"steps": [35], "loss": [1.0]}, "last_tenth": None}


def test_what_a_training_tells_is_whole():
    whole = training_of(TOLD, {"about": {"schedule": {"epochs": 500}}})
    check_training(whole)
    damaged = [
        {name: value for name, value in whole.items() if name != "share"},
        {**whole, "published": {}},
        {**whole, "published": {"steps": 7000}, "steps": None},
        {**whole, "published": {"epochs": 0}},
        {**whole, "curve": {"steps": [35], "loss": []}},
        {**whole, "epochs": "5"},
    ]
    for each in damaged:
        with pytest.raises(ValueError, match=r"epochs|steps|share"):
            check_training(each)
