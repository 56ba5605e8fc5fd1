"""`anomaly-bench references evidence`: why a method's numbers can be trusted, one row per method."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import STATUSES, choices, conf_folder, describe_input
from anomaly_bench.errors import DataError
from anomaly_bench.published import ORIGINS, TABLES, load_references, publications
from anomaly_bench.published.audit.page import bullets, markdown_table, publish
from anomaly_bench.records.outlines import outlines
from anomaly_bench.tables.schedule import UNKNOWN, has_schedule, length

if TYPE_CHECKING:
    from anomaly_bench.published import Reference
    from anomaly_bench.records.record import Record

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}
SHARED_PARTS = {"metrics": "Metrics", "backbones": "Backbones"}  # shared by all methods; keys of parity.json


@dataclass(frozen=True)
class Measurement:
    """Records of a method that differ only in category and seed."""

    records: Sequence[Record]

    @property
    def categories(self) -> list[str]:
        return sorted({record.category for record in self.records})

    @property
    def seeds(self) -> str:
        counts = sorted(Counter(record.category for record in self.records).values())
        return f"{' to '.join(dict.fromkeys(map(str, (counts[0], counts[-1]))))} seed{'s' * (counts[-1] > 1)}"

    @property
    def setup(self) -> str:
        one = self.records[0]
        parts = [one.titles.get("backbone") or one.backbone, describe_input(one.input)]
        parts += [f"holdout {one.holdout:g}"] if one.holdout else []
        return ", ".join([*parts, *(["oracle"] if one.oracle else [])])

    @property
    def budget(self) -> str:
        """The training budget compared with the published one."""
        known = [record.training for record in self.records if record.training]
        if not known:
            return UNKNOWN if any(map(has_schedule, self.records)) else "one pass"
        return length(known)

    def value(self, metric: str) -> float | None:
        """In %, the mean over categories of the mean over seeds."""
        values: dict[str, list[float]] = defaultdict(list)
        for record in self.records:
            if (value := record.value(metric)) is not None:
                values[record.category].append(100 * value)
        return fmean(map(fmean, values.values())) if values else None


def print_evidence(config: Any) -> None:
    """Print the page, or write it into `out`.

    Raises:
        UsageError: no such format, or records, published numbers or parity.json that cannot be read.
    """
    results = Path(str(config["results"])).expanduser()
    publish(config, lambda: evidence_page(results))


def evidence_page(results: Path) -> str:
    """The whole page in Markdown, from the methods' YAML, results/ and the published numbers.

    Raises:
        DataError: parity.json is missing or not JSON; a damaged record.
    """
    table = read_parity(results / "parity.json")
    records, damaged = outlines(results)
    if damaged:
        raise DataError("\n".join(damaged))
    references = load_references()
    names = choices("method", [conf_folder()])
    measured = {name: measurements(each for each in records if each.method == name) for name in names}
    compared = {
        name: [row for row in table["comparisons"] if row["method"] == name] for name in (*names, *SHARED_PARTS)
    }
    rows: list[tuple[str, ...]]
    rows = [("method", "status", "compared with", "largest difference", "identity tests", *MEASURED)]
    rows += [overview(name, compared[name], measured[name], references) for name in names]
    parts = ["# Why the numbers can be trusted", _preface(table["versions"]), markdown_table(rows), "## In detail"]
    for name in names:
        parts += details(name, compared[name], measured[name], references)
    parts.append("## What all methods share")
    for name, title in SHARED_PARTS.items():
        parts += [f"### {title}", comparisons(compared[name])]
    return "\n\n".join(parts) + "\n"


MEASURED = ("measured: " + " / ".join(METRICS.values()), "published", "on", "budget")


def read_parity(path: Path) -> Mapping[str, Any]:
    """The output of `make parity`.

    Raises:
        DataError: no such file, or not JSON.
    """
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected what `make parity` writes") from error
    return table


def _preface(versions: Mapping[str, str]) -> str:
    known = "\n".join(f"- **{title}**: {meaning}." for title, meaning in STATUSES.values())
    return (
        "Made by `anomaly-bench references evidence format=md`; do not edit. A method's status is set in its YAML "
        "(`about.evidence`), and a test checks it against the existing tests and comparisons.\n\n"
        f"{known}\n\n"
        "A difference is the largest |ours - theirs| over the largest |theirs| of an array, in float64, from equal "
        "weights and inputs; `make parity` recomputes it (results/parity.json; versions "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}). Measurements are the records of "
        "`results/`, in %, the mean over categories of the mean over seeds; the published numbers next to them are "
        "means over the same categories. They are comparable only where backbone, input and budget agree."
    )


def overview(
    name: str, compared: Sequence[Mapping[str, Any]], measured: Sequence[Measurement], references: Sequence[Reference]
) -> tuple[str, ...]:
    """A method's row in the first table, with its measurement that has the most records."""
    evidence = packaged_node("method", name)["about"]["evidence"]
    tests = evidence["tests"]
    row = (
        f"[{title(name)}](#{name})",
        STATUSES[evidence["status"]][0],
        "; ".join(dict.fromkeys(package(row["peer"]) for row in compared)) or "-",
        small(max(row["difference"] for row in compared)) if compared else "-",
        f"{len(tests)}, such as `{tests[0].partition('::')[2]}`",
    )
    if not measured:
        return *row, "-", "-", "-", "-"
    largest = max(measured, key=lambda each: len(each.records))
    return *row, *measured_cells(largest, name, references)


def small(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def package(peer: str) -> str:
    """'anomalib' of 'anomalib cflow_head'."""
    known = ("anomalib", "FrEIA", "scikit-learn", "scikit-image", "pytorch-msssim", "kornia", "torch")
    return next((each for each in known if peer.startswith(each)), "an independent version")


def measured_cells(measured: Measurement, name: str, references: Sequence[Reference]) -> tuple[str, str, str, str]:
    """The columns measured, published, on, and budget."""
    published = [published_value(name, metric, measured.categories, references) for metric in METRICS]
    backbones = sorted({cell.backbone or "backbone not stated" for _, cell in published if cell})
    return (
        " / ".join(points(measured.value(metric)) for metric in METRICS),
        " / ".join(points(value) for value, _ in published) + (f" ({', '.join(backbones)})" if backbones else ""),
        f"{measured.setup}; {', '.join(measured.categories)}; {measured.seeds}",
        measured.budget,
    )


def points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def published_value(
    name: str, metric: str, categories: Sequence[str], references: Iterable[Reference]
) -> tuple[float | None, Reference | None]:
    """The mean over the categories in the first table that has them all, and one of its cells.

    A paper's own results come before quoted or re-run ones.
    """
    tables: dict[tuple[str, str], dict[str, Reference]] = defaultdict(dict)
    for cell in references:
        if (cell.method, cell.metric, cell.dataset) == (name, metric, "mvtec") and cell.value is not None:
            tables[cell.table, cell.printed_name][cell.category] = cell
    whole = [[cells[each] for each in categories] for cells in tables.values() if cells.keys() >= set(categories)]
    if not whole:
        return None, None
    chosen = min(whole, key=lambda cells: list(ORIGINS).index(cells[0].origin))
    return fmean(cell.value or 0.0 for cell in chosen), chosen[0]


def measurements(records: Iterable[Record]) -> list[Measurement]:
    """By backbone, input and settings."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        settings = {**record.config["method"], "about": record.config["method"]["about"]["revision"], "seed": None}
        key = [record.dataset, record.backbone, record.input, record.oracle, record.precision, record.holdout, settings]
        groups[json.dumps(key, sort_keys=True, default=str)].append(record)
    return [Measurement(groups[key]) for key in sorted(groups)]


def details(
    name: str, compared: Sequence[Mapping[str, Any]], measured: Sequence[Measurement], references: Sequence[Reference]
) -> Iterator[str]:
    about = packaged_node("method", name)["about"]
    evidence = about["evidence"]
    status, meaning = STATUSES[evidence["status"]]
    if name not in (papers := publications()):
        wanted = "its name, title, arXiv number, paper and date"
        raise DataError(f"published/methods.csv has no line for {name}: add {wanted}")
    paper, arxiv = papers[name].paper, papers[name].arxiv
    yield f'<a id="{name}"></a>'
    yield f"### {title(name)}"
    yield f"{status}: {meaning}. Paper: {paper}, {f'arXiv {arxiv}' if arxiv else 'not on arXiv'}."
    if evidence.get("choices"):
        yield "Choices of ours:\n\n" + bullets(evidence["choices"])
    if "out_of_reach" in evidence:
        yield f"Out of reach here: {evidence['out_of_reach']}."
    if compared:
        yield comparisons(compared)
    yield "Identity tests:\n\n" + bullets(f"`{test}`" for test in evidence["tests"])
    if not measured:
        yield "No measurement is kept in results/."
        return
    yield markdown_table([MEASURED, *(measured_cells(each, name, references) for each in measured)])
    every = [published_value(name, metric, measured[0].categories, references) for metric in METRICS]
    sources = [
        f"{shown}: {TABLES[cell.table].title} ({ORIGINS[cell.origin]})"
        for shown, (_, cell) in zip(METRICS.values(), every, strict=True)
        if cell
    ]
    yield f"Published: {'; '.join(sources)}." if sources else "None of the tables here prints this method."


def comparisons(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of comparisons."""
    keys = ("part", "quantity", "peer", "difference", "remark")
    cells = [tuple(small(row[key]) if key == "difference" else str(row[key]) for key in keys) for row in rows]
    return markdown_table([("part", "quantity", "compared with", "largest difference", "remark"), *cells])


def title(name: str) -> str:
    printed: str = packaged_node("method", name)["about"]["title"]
    return printed
