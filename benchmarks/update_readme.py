"""Put the tables of results/ between the README's two marks; `make results` ends with it."""

from __future__ import annotations

from pathlib import Path

from anomaly_bench import records
from anomaly_bench.config.settings import conf_folder
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.draw import draw
from anomaly_bench.tables.layout import load_layout

ROOT = Path(__file__).parents[1]


def tables() -> str:
    """The Markdown of both tables of every setup in results/."""
    found, damaged = records.load_all(ROOT / "results")
    if damaged or not found:
        raise SystemExit("\n".join(damaged) or "no records in results/: run make results")
    layouts = [load_layout(name, [conf_folder() / "table"]) for name in ("per_class", "complexity")]
    return "\n".join(draw(build_tables(found, layout), "md") for layout in layouts)


def main() -> None:
    readme = ROOT / "README.md"
    head, mark, rest = readme.read_text(encoding="utf-8").partition("results`, checked by tests/test_readme.py -->\n")
    end = rest[rest.index("<!-- end of tables -->") :]
    readme.write_text(f"{head}{mark}\n{tables()}\n{end}", encoding="utf-8")


if __name__ == "__main__":
    main()
