"""What was trained for less than published has a footnote, and is not ranked against what was."""

from __future__ import annotations

from typing import Any

import pytest
from test_build import FOLDER, FOUR, PER_CLASS, marked, record, render_tables, trained

from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.layout import load_layout
from anomaly_bench.tables.schedule import UNKNOWN, reduced_budget


def of(*trainings: dict[str, Any] | None, **more: Any) -> str:
    return reduced_budget([record(seed=seed, training=each, **more) for seed, each in enumerate(trainings)])


@pytest.mark.parametrize(
    ("trainings", "text"),
    [
        ([trained(25)], "trained for 25 of 200 epochs, 12.5 %"),
        ([trained(20), trained(25), trained(22.7143)], "trained for 20 to 25 of 200 epochs, 10 to 12.5 %"),
        ([trained(200)], ""),
        ([trained(200), trained(100)], "trained for 100 to 200 of 200 epochs, 50 to 100 %"),
        ([trained(300)], ""),
        ([{**trained(4), "published": {"steps": 50000}, "share": 0.0056}], "trained for 280 of 50,000 steps, 0.56 %"),
        (
            [{**trained(12.8), "published": {"epochs": 100, "samples": 10000}, "share": 0.0128}],
            "trained for 12,800 of 1,000,000 samples, 1.28 %",
        ),
        ([{**trained(5), "published": {}, "share": None}], ""),
        ([{}], ""),
    ],
)
def test_words(trainings: list[dict[str, Any]], text: str) -> None:
    assert of(*trainings) == text


def test_unknown_is_not_as_published() -> None:
    assert of(None, method="fastflow") == UNKNOWN
    assert of(None, method="padim") == ""
    assert of(None, method="own", settings={"about": {"schedule": {"epochs": 3}}}) == UNKNOWN
    assert of(None, method="own") == ""


def ranks(*methods: tuple[str, float, dict[str, Any]]) -> dict[str, int]:
    made = [record((value, 50, 50), "weave", name, categories=FOUR, training=told) for name, value, told in methods]
    (grid,) = build_tables(made, PER_CLASS, ["image_auroc"])
    return {" ".join(head.labels): cell.values[0].rank for head, cell in zip(grid.columns, grid.cells[0], strict=True)}


def test_less_training_is_not_ranked_against_full_training() -> None:
    found = ranks(("padim", 80, {}), ("patchcore", 90, {}), ("stfpm", 95, trained(25)))
    assert found == {"PaDiM WRN50": 0, "PatchCore WRN50": 1, "stfpm WRN50": 0}
    assert ranks(("padim", 80, {}), ("stfpm", 95, trained(25))) == {"PaDiM WRN50": 0, "stfpm WRN50": 0}
    assert ranks(("padim", 80, {}), ("stfpm", 95, trained(200))) == {"PaDiM WRN50": 0, "stfpm WRN50": 1}
    assert ranks(("fastflow", 80, trained(5)), ("stfpm", 95, trained(25))) == {"fastflow WRN50": 0, "stfpm WRN50": 1}


def test_the_footnote_is_at_the_method() -> None:
    trainings = {"weave": trained(25), "gear": trained(20)}
    made = [record((90, 80, 70), task, "stfpm", categories=FOUR, training=told) for task, told in trainings.items()]
    note = "trained for 20 to 25 of 200 epochs, 10 to 12.5 %"
    assert f"{note[0].upper()}{note[1:]}." in render_tables(made, PER_CLASS), "alone, it is said of the whole table"
    made += [record((90, 80, 70), task, categories=FOUR) for task in trainings]
    made += [record((90, 80, 70), "gear", "fastflow", categories=FOUR, training=trained(5))]
    (grid,) = build_tables(made, PER_CLASS)
    notes = {" ".join(head.labels): [marked(grid)[letter] for letter in head.notes] for head in grid.columns}
    assert notes["PaDiM WRN50"] == []
    assert note in notes["stfpm WRN50"]
    said = " ".join(marked(grid).values())
    assert "trained for 5 of 200 epochs, 2.5 %" in said


def test_times_of_fits_are_marked_and_speeds_are_not() -> None:
    made = [record(training=trained(25), method="stfpm"), record()]
    layout = load_layout("complexity", [FOLDER])
    (grid,) = build_tables(made, layout)
    assert any("12.5 %" in text for text in marked(grid).values())
