"""`anomaly-bench references check`: a page of contradictions in the published tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown

from anomaly_bench.errors import DataError, UsageError, closest
from anomaly_bench.files import write_atomically
from anomaly_bench.published import PAPERS, TABLES, load_references
from anomaly_bench.published.audit.columns import LEAST_ROWS, label_of, minus, printed_columns, shared
from anomaly_bench.published.audit.contradictions import CONTRADICTIONS, SIGMAS, find_contradictions, other_runs, value
from anomaly_bench.published.audit.orders import DOUBTFUL, DRAWS, ORDERS, PROBABLE, RARE, fit

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.published.audit.columns import Finding, PrintedColumn

_FORMATS = ("console", "md")
HEAVY = 0.25  # points
WIDTH = 120  # columns, if the output is not a terminal


def print_contradictions(config: Any) -> None:
    """Print the page, or write it into `out`.

    Raises:
        UsageError: no such format, or an unreadable CSV.
    """
    publish(config, lambda: contradictions_page(load_references()))


def publish(config: Any, page: Callable[[], str]) -> None:
    """Print a Markdown page in the config's `format`, or write it to its `out`.

    Raises:
        UsageError: no such format, or unreadable input.
    """
    if config["format"] not in _FORMATS:
        raise UsageError(f"format={config['format']}: unknown{closest(str(config['format']), _FORMATS)}")
    try:
        text = page()
    except DataError as error:
        raise UsageError(str(error)) from error
    if config["out"] is not None:
        written = text if config["format"] == "md" else _terminal_text(text)
        write_atomically(Path(str(config["out"])).expanduser(), written)
    elif config["format"] == "md":
        print(text, end="")
    else:
        Console(width=None if Console().is_terminal else WIDTH).print(Markdown(text))


def _terminal_text(text: str) -> str:
    """The text as a terminal WIDTH columns wide shows it, without codes."""
    file = StringIO()
    Console(file=file, width=WIDTH, color_system=None).print(Markdown(text))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def contradictions_page(references: Sequence[Reference]) -> str:
    """All contradictions in Markdown, with a summary of the largest ones."""
    findings = find_contradictions(references)
    parts = [
        "# Contradictions in the published tables",
        preface(references),
        "## In short",
        bullets(finding.title for finding in findings if finding.weight >= HEAVY),
    ]
    for group, title in CONTRADICTIONS.items():
        parts.append(f"## {title}")
        chosen = [finding for finding in findings if finding.group == group]
        parts += [part for finding in chosen for part in section(finding)] or ["None."]
    parts += ["## Different runs, no contradiction", *runs(references)]
    parts += ["## Repaired or doubtful cells that no check detects", *_uncheckable(references, findings)]
    parts += ["## How the tables are checked", bullets(criteria())]
    return "\n\n".join(parts) + "\n"


def preface(references: Sequence[Reference]) -> str:
    tables = sorted({cell.table for cell in references}, key=list(TABLES).index)
    papers = [paper for paper in PAPERS if any(TABLES[table].paper == paper for table in tables)]
    known = "; ".join(f"{paper} ({PAPERS[paper]})" for paper in papers)
    return (
        f"Made by `anomaly-bench references check format=md`; do not edit. {len(references)} cells of {len(tables)} "
        f"tables in {len(papers)} papers were compared, as they are printed: {known}. A fault may be the paper's or "
        "that of the copy that the numbers were taken from. Accuracies are in %. A cell that the package "
        "repairs keeps what is printed beside the repaired value (`anomaly_bench/published/*.csv`)."
    )


def section(finding: Finding) -> Iterator[str]:
    yield f"### {finding.title}"
    comments = Counter(cell.comment for cell in finding.cells if cell.comment)
    became = [f"In the CSV ({times} of {len(finding.cells)} cells): {text}." for text, times in comments.items()]
    yield bullets([*finding.evidence, *became])
    if finding.table:
        yield markdown_table(finding.table)


def runs(references: Sequence[Reference]) -> Iterator[str]:
    yield (
        "Columns of one method and metric in two papers that share too few values to be copies: another run, another "
        "setting, or another version of the method."
    )
    rows: list[tuple[str, ...]] = [("metric", "one", "other", "mean difference", "largest", "correlation")]
    rows += [compared(one, other) for one, other in other_runs(printed_columns(references))]
    yield markdown_table(rows)


def compared(one: PrintedColumn, other: PrintedColumn) -> tuple[str, ...]:
    """A row in the table of different runs, with repaired values."""
    left, right = ({row: value(column.cells[row]) for row in shared(one, other)} for column in (one, other))
    apart = {row: abs(left[row] - right[row]) for row in left}
    worst = max(apart, key=lambda row: apart[row])
    places = [f"{column.place} ({column.head.origin})" for column in (one, other)]
    mean = f"{fmean(map(float, apart.values())):.2f}"
    return one.metric, *places, mean, f"{apart[worst]} ({label_of(worst)})", minus(fit(left, right))


def _uncheckable(references: Iterable[Reference], findings: Iterable[Finding]) -> Iterator[str]:
    seen = {cell for finding in findings for cell in finding.cells}
    left = [cell for cell in references if cell.comment and cell not in seen]
    places = (
        f"{cell.printed_name} in {TABLES[cell.table].title}, {label_of(cell.category) or cell.metric}: {cell.comment}."
        for cell in left
    )
    yield bullets(places) if left else "None."


def criteria() -> Iterator[str]:
    yield (
        f"Shuffled columns: two papers' columns of one method and metric, with {LEAST_ROWS} rows or more in common, "
        f"that correlate below {DOUBTFUL} are read in {', '.join(ORDERS)}. One of these is believed if fewer than "
        f"{RARE:.0%} of {DRAWS} random orders correlate as well in ranks. Which of the two columns is shuffled is told "
        "by the other methods: a category that is hard for them is hard for this one. That alone would be no proof, "
        "for methods do differ; it stands alone only for the order of a method's own paper, must be reached by fewer "
        f"than {PROBABLE:.0%} of the random orders, and is called probable."
    )
    yield (
        "Papers against papers: columns of which two thirds of the shared values agree are copies of one source; what "
        "then differs is a contradiction. A value that is printed to fewer digits agrees within its rounding."
    )
    yield (
        "Means: recomputed from the printed rows. Half of the mean's last digit is allowed, and for the rounding of n "
        f"rows {SIGMAS} standard deviations, {SIGMAS} · d / √(12 n), where d is the rows' last digit. Zeros that all "
        "rows of a column end in do not count as digits."
    )
    yield "Bold type is not compared: the package computes it."


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the header, in columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])
