"""Update results.csv, results/tables and the tables of README.md and docs/: the last step of `make results`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from anomaly_bench import records
from anomaly_bench.cli.commands.tables import write_tables
from anomaly_bench.config.settings import conf_folder
from anomaly_bench.records.record import Record
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.evidence import evidence_page
from anomaly_bench.tables.formats.draw import draw
from anomaly_bench.tables.layout import load_layout

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": True, "docs/results.md": False}  # page -> whether one table holds all setups
BETWEEN = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- end of table -->\n)", re.DOTALL)


def tables(one: bool) -> str:
    """Markdown tables: three per setup of any dataset, or one summary of MVTec AD.

    The summary leaves out setups with fewer categories than others have: their means would not compare.
    """
    found, damaged = records.load_all(ROOT / "results")
    if damaged or not found:
        raise SystemExit("\n".join(damaged) or "no records in results/: run make results")
    if one:
        found = [record for record in found if record.dataset == "mvtec"]
        measured = Counter(name for name, _ in {(setup(record), record.task) for record in found})
        found = [record for record in found if measured[setup(record)] == max(measured.values())]
    names = ["summary"] if one else ["per_class", "summary", "complexity"]
    layouts = [load_layout(name, [conf_folder() / "table"]) for name in names]
    return "\n".join(draw(build_tables(found, layout, mixed=one), "md") for layout in layouts)


def setup(record: Record) -> tuple[str, str]:
    return record.method, str(record.input)


def updated(page: str, one: bool) -> str:
    """The page's text with up-to-date tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    new, count = BETWEEN.subn(lambda found: f"{found[1]}\n{tables(one)}\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"{page}: found {count} places for tables, expected one '<!-- table: ... -->' with its end")
    return new


def main() -> None:
    write_tables(ROOT / "results")
    for page, one in PAGES.items():
        (ROOT / page).write_text(updated(page, one), encoding="utf-8")
    (ROOT / "docs" / "evidence.md").write_text(evidence_page(ROOT / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
