from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from anomaly_bench.errors import UsageError
from anomaly_bench.metrics import METRICS
from anomaly_bench.records import Record
from anomaly_bench.tables import Grid, Layout, grids, load_layout, render, setups

FOLDER = Path(__file__).parents[1] / "conf" / "table"
PER_CLASS = load_layout("per_class", [FOLDER])
COMPLEXITY = load_layout("complexity", [FOLDER])
MVTEC = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), "textures"),
    **dict.fromkeys(("bottle", "cable", "capsule", "hazelnut", "metal_nut"), "objects"),
    **dict.fromkeys(("pill", "screw", "toothbrush", "transistor", "zipper"), "objects"),
}
FOUR = {"weave": "textures", "granite": "textures", "gear": "objects", "biscuit": "objects"}
TITLES = {"padim": "PaDiM", "patchcore": "PatchCore", "wrn50": "WRN50", "r18": "R18", "mvtec": "MVTec AD"}
SPEED = {"device": "EPYC", "threads": 2, "batch_size": 32, "precision": "fp32"}
HOSTILE = "a_b & 50% #1 \\x {y} ~ ^ <b>|pipe|\n[z] --- `c` $m$ 漢é"


def record(
    points: tuple[float | None, ...] = (90, 80, 70),
    task: str = "bottle",
    method: str = "padim",
    backbone: str = "wrn50",
    seed: int = 0,
    categories: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    **others: Any,
) -> Record:
    """A record with (image AUROC, pixel AUROC, PRO) in points; `others` replace fields as they are."""
    names = MVTEC if categories is None else categories
    config = {"method": {"name": method, "seed": seed, **(settings or {})}, "backbone": {"network": backbone}}
    content: dict[str, Any] = {
        "dataset": "mvtec",
        "task": task,
        "test": "test",
        "group": names.get(task),
        "categories": [{"name": name, "group": group} for name, group in names.items()],
        "method": method,
        "backbone": backbone,
        "titles": {"dataset": "MVTec AD", "method": TITLES.get(method), "backbone": TITLES.get(backbone)},
        "seed": seed,
        "protocol": "unified",
        "oracle": False,
        "precision": "fp32",
        "input": {"resize": [256, 256], "crop": None},
        "counts": {"fit": 10, "test": 10, "defects": 5},
        "metrics": {
            name: {"value": None if value is None else value / 100, "revision": METRICS[name].revision}
            for name, value in zip(("image_auroc", "pixel_auroc", "pro"), points, strict=True)
        },
        "curves": {},
        "images": [],
        "speed": [],
        "size": {"extra_params": 0, "extra_mb": 0.0, "stored_mb": 0.0},
        "cost": {"fit_s": 1.0, "score_s": 1.0, "peak_ram_mb": 1.0, "peak_gpu_mb": None, "device": "EPYC", "threads": 2},
        "config": config,
        "provenance": {},
        **others,
    }
    known = repr((sorted(content.items(), key=lambda item: item[0]), seed))
    return Record(**{"fingerprint": hashlib.sha256(known.encode()).hexdigest(), **content})


def only(records: list[Record], layout: Layout = PER_CLASS, cells: list[str] | None = None) -> Grid:
    (grid,) = grids(records, layout, cells)
    return grid


def texts(grid: Grid) -> dict[str, list[str]]:
    """Row label -> its cells as in the console, without notes."""
    rows = zip(grid.rows, grid.cells, strict=True)
    return {" ".join(head.labels).strip(): [shown(cell) for cell in cells] for head, cells in rows}


def shown(cell: Any) -> str:
    return " ".join(f"{value.text}{'*' if value.rank == 1 else ''}" for value in cell.values)


def columns(grid: Grid) -> list[str]:
    return [" / ".join(filter(None, head.labels)) for head in grid.columns]


def marked(grid: Grid) -> dict[str, str]:
    return dict(grid.notes)


# --------------------------------------------------------------------------------------------- the three formats

SMALL = [
    record((100, 97.5, 90.1), "weave", categories=FOUR),
    record((99, 96.5, 80), "granite", categories=FOUR),
    record((90, 91, 92), "gear", categories=FOUR),
    record((99.96, 95.5, None), "weave", "draem", "none", categories=FOUR),
    record((98, 97.5, None), "granite", "draem", "none", categories=FOUR),
    record((95, 85, None), "gear", "draem", "none", categories=FOUR),
    record((80, 97.46, 91.1), "weave", "padim", "r18", categories=FOUR),
    record((81, 81, 81), "granite", "padim", "r18", categories=FOUR),
    record((82, 82, 82), "gear", "padim", "r18", categories=FOUR),
]


def test_console() -> None:
    assert render(SMALL, PER_CLASS) == (
        """\
MVTec AD, input 256×256, protocol unified: image AUROC, pixel AUROC, PRO (points of 100)

                                                        PaDiM
                                       ────────────────────────────────────────
Category                  draem               R18                 WRN50
───────────────────────────────────────────────────────────────────────────────
"""
    )


def test_color_only_adds_codes() -> None:
    colored = render(SMALL, PER_CLASS, color=True)
    assert "\x1b[1m100.0\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == render(SMALL, PER_CLASS)


def test_markdown() -> None:
    assert render(SMALL, PER_CLASS, ["pixel_auroc"], "md") == ""


def test_latex() -> None:
    assert render(SMALL, PER_CLASS, ["pixel_auroc", "pro"], "latex") == ""
