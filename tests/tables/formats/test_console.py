"""Tables on a terminal of 80 columns, as kept in tests/tables/console; and what holds for any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from test_build import COMPLEXITY, PER_CLASS, SMALL, only
from test_papers import LAYOUTS, ours, table

from anomaly_bench.tables.formats.console import console

ROOM = 80
MADE = {
    "per_class": lambda: only(SMALL, PER_CLASS),
    "complexity": lambda: only(SMALL, COMPLEXITY),
    "padim2020_III": lambda: table([], source="reported"),
    "npad2022_2": lambda: table([ours(method="zero")], LAYOUTS["npad2022_2"], "ours_beside"),
    "zheng2022_6": lambda: table([], LAYOUTS["zheng2022_6"], "reported"),
}


@pytest.mark.parametrize("name", MADE)
def test_snapshots_at_80_columns(name: str) -> None:
    text = console(MADE[name](), room=ROOM)
    assert max(map(cell_len, text.splitlines())) <= ROOM
    assert text == (Path(__file__).parent / "console" / f"{name}.txt").read_text(encoding="utf-8")


def test_a_part_begins_at_a_group_and_repeats_the_rows() -> None:
    lines = console(MADE["zheng2022_6"](), room=ROOM).splitlines()
    assert sum(line.startswith("cable gland") for line in lines) == 3
    assert [line.split("  ")[0] for line in lines].count("") >= 2


def test_a_terminal_or_columns_limits_the_lines(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["tables", "table=padim2020_III", "source=reported"]
    assert max(map(len, command(*words)[1].splitlines())) > ROOM
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command(*words)[1].splitlines())) <= ROOM
    command(*words, f"out={tmp_path / 'wide.txt'}")
    assert max(map(len, (tmp_path / "wide.txt").read_text(encoding="utf-8").splitlines())) > ROOM
