"""Cell contents: measured means over categories and seeds, published numbers, and which is best."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import fsum
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import SUPERVISIONS
from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.metrics.thresholds import shortage
from anomaly_bench.published import PRINTED_DASH
from anomaly_bench.records.setups import describe
from anomaly_bench.tables import papers
from anomaly_bench.tables.entries import place
from anomaly_bench.tables.layout import CORRECTED, COSTS, SPEEDS, TEXTS, TIMES, TOTALS
from anomaly_bench.tables.table import BEST, DASH, SECOND, CellValue

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.axes import AxisItem
    from anomaly_bench.tables.entries import ResultGroup
    from anomaly_bench.tables.layout import Column

RECONSTRUCTION = "a reconstruction: without the authors' code, with choices of ours (docs/evidence.md)"
BySeed = dict[tuple[int, int], float]  # (seed, draw of the dataset) -> a number
EXTRACTION = "fit: the backbone's share was timed when the features were cached"


def measured(measure: Column, item: AxisItem, wanted: Sequence[str], averaged: bool) -> CellValue:
    """The measured mean over categories of the mean over seeds."""
    made = CellValue(title=measure.title, best=measure.best)
    entry = item.entry
    if entry is None:
        return made
    if measure.value in TEXTS:
        made.text = entry.text(measure.value)
        return made
    values, used = by_seed(entry, measure.value, wanted)
    if used:
        joined = fsum if measure.value in TOTALS else fmean
        mean = joined(fmean(seeds.values()) for seeds in values.values()) * measure.scale
        text = f"{mean:.{measure.digits}f}"
        made.text, made.number, made.covered = text + _deviation(measure, values), float(text), frozenset(values)
        made.facts = {"count": _count_fact(values, wanted, averaged), "seeds": seeds_fact(values)}
        made.facts |= _source_facts(measure.value, used, item)
    return made


def by_seed(entry: ResultGroup, name: str, wanted: Iterable[str]) -> tuple[dict[str, BySeed], list[Record]]:
    """Category -> seed and draw -> one number of an entry's records, and the records that have it."""
    values: dict[str, BySeed] = {}
    used: list[Record] = []
    for category in wanted:
        for record in entry.records.get(category, ()):
            number = entry.read(record, name)
            if number is not None:
                values.setdefault(category, {})[record.repetition] = number
                used.append(record)
    return values, used


def _deviation(measure: Column, values: Mapping[str, BySeed]) -> str:
    """' ± 0.3': the sample standard deviation over seeds of the mean over categories, if all share the same seeds."""
    seeds = set.intersection(*(set(each) for each in values.values()))
    if not measure.deviation or len(seeds) < 2 or any(len(each) != len(seeds) for each in values.values()):
        return ""
    means = [fmean(each[seed] for each in values.values()) for seed in seeds]
    return f" ± {stdev(means) * measure.scale:.{measure.digits}f}"


def _count_fact(covered: Iterable[str], wanted: Sequence[str], averaged: bool) -> str:
    """'mean of 2 of 15 categories', with names if no row shows them; '' for a complete mean among rows."""
    names, missing = list(covered), [name for name in wanted if name not in covered]
    mean = "mean of " if len(names) > 1 else ""
    if not missing:
        return f"{mean}{len(names)} categories" if averaged and mean else ""
    which = f" ({', '.join(names)})" if len(names) <= 3 else ""
    which = f" (without {', '.join(missing)})" if len(missing) <= 2 < len(names) else which
    return f"{mean}{len(names)} of {len(wanted)} categories{which if averaged else ''}"


def seeds_fact(values: Mapping[str, BySeed]) -> str:
    """'mean of 3 seeds (0, 1, 2)', with 'mean of 5 draws (0, ...)' of the dataset, or that seeds vary by category."""
    draws = sorted({draw for each in values.values() for _, draw in each})
    seeds = _seeds_fact({name: {seed for seed, _ in each} for name, each in values.items()})
    if draws == [0]:
        return seeds
    listed = ", ".join(map(str, draws))
    told = f"mean of {len(draws)} draws of the dataset ({listed})" if draws[1:] else f"draw {listed} of the dataset"
    return f"{told}, {seeds}"


def _seeds_fact(values: Mapping[str, Collection[int]]) -> str:
    kinds = {tuple(sorted(seeds)) for seeds in values.values()}
    least, most = min(map(len, kinds)), max(map(len, kinds))
    if len(kinds) == 1:
        listed = ", ".join(map(str, *kinds))
        return f"seed {listed}" if most == 1 else f"mean of {most} seeds ({listed})"
    if least == most:
        return "seeds vary by category" + (f" ({most} each)" if most > 1 else "")
    return f"mean over {least}-{most} seeds; the number varies by category"


def _source_facts(name: str, records: Sequence[Record], item: AxisItem) -> dict[str, str]:
    """The setup, status and settings with a footnote, where speed or cost was measured, if a metric is outdated."""
    facts = {"setup": describe(records[0]), "status": _status_fact(records[0].method)}
    facts |= {"images": item.entry.images if item.entry else ""}
    facts |= {"revision": revision_fact(records[0]), "settings": _settings_fact(records[0])}
    facts["supervision"] = supervision_fact(records[0])
    if name in SPEEDS:
        shared = any(item.entry and item.entry.timing(each).get("alone") is False for each in records)
        facts |= {"alone": "timed while other jobs were running on the machine" if shared else ""}
        return facts if item.section else {**facts, "speed": f"speed: {item.entry.setting}" if item.entry else ""}
    if name in COSTS:
        places = {place(str(each.cost.get("device")), each.cost.get("threads")) for each in records}
        facts["cost"] = f"fit and memory: {'; '.join(sorted(places))}"
        cached = any(each.cost.get("extraction", {}).get("cached") for each in records)
        facts |= {"budget": item.entry.budget} if name == "fit_s" and item.entry else {}
        return {**facts, "extraction": EXTRACTION if cached else ""} if name in TIMES else facts
    if name in TOTALS or name.startswith(CORRECTED):
        files = sorted({record.corrected["labels"][:8] for record in records if record.corrected})
        told = f"labels corrected by the file{'s' if files[1:] else ''} {', '.join(files)}"
        return {**facts, "corrected": told, "budget": item.entry.budget if item.entry else ""}
    metric = find_metric(name, (record.metrics for record in records))
    if metric is None:
        return facts
    oldest = min(record.metrics[name]["revision"] for record in records)
    outdated = f"outdated (revision {oldest}, now {metric.revision})" if oldest < metric.revision else ""
    held_out = {"held_out": _held_out_fact(records)} if metric.needs_threshold else {}
    facts |= {"lost": _lost_fact(records) if metric.needs_maps else ""}
    return {**facts, "metric": outdated, "budget": item.entry.budget if item.entry else "", **held_out}


def _held_out_fact(records: Sequence[Record]) -> str:
    """'thresholds from 42 to 43 held-out normal images a category'."""
    limits = [record.thresholds for record in records if record.thresholds]
    least, most = (choose(each["images"] for each in limits) for choose in (min, max))
    few = any(shortage(each["images"], each["max_false_alarms"]) for each in limits)
    images = f"{least}" if least == most else f"{least} to {most}"
    fewer = ", fewer than 1 / max_false_alarms" if few else ""
    return f"thresholds from {images} held-out normal images a category{fewer}"


def _lost_fact(records: Sequence[Record]) -> str:
    """'2 of 41 defect regions have no pixel left after resizing', over categories."""
    counts = {record.category: record.counts for record in records}.values()
    lost, every = (sum(each.get(name, 0) for each in counts) for name in ("lost_regions", "regions"))
    return f"{lost} of {every} defect regions have no pixel left after resizing and cropping the masks" if lost else ""


def _status_fact(method: str) -> str:
    """Whether what changes a method's numbers is partly our choice; '' also for methods that are not ours."""
    evidence = packaged_node("method", method).get("about", {}).get("evidence", {})
    return RECONSTRUCTION if evidence.get("status") == "reconstruction" else ""


def supervision_fact(record: Record) -> str:
    """What the method is fitted on besides normal images; '' if nothing else."""
    method: Mapping[str, Any] = record.config.get("method") or {}
    about = packaged_node("method", record.method).get("about") or method.get("about") or {}
    kind = about.get("supervision", SUPERVISIONS[0])
    return "" if kind == SUPERVISIONS[0] else f"fitted on normal images and {kind}"


def revision_fact(record: Record) -> str:
    """Whether a built-in method has other scores today."""
    method: Mapping[str, Any] = record.config.get("method") or {}
    then = (method.get("about") or {}).get("revision")
    now = packaged_node("method", record.method).get("about", {}).get("revision")
    if "_target_" in method or then is None or now is None or then >= now:
        return ""
    return f"revision {then} of the method; now {now}, with other scores: run it again"


def _settings_fact(record: Record) -> str:
    """The footnotes of `about.footnotes` in the method's YAML whose setting has their value in this record."""
    method: Mapping[str, Any] = record.config.get("method") or {}
    about = (packaged_node("method", record.method) or method).get("about") or {}
    told = about.get("footnotes") or []
    return "; ".join(each["note"] for each in told if method.get(each["setting"], ...) == each["value"])


def reported(measure: Column, item: AxisItem, key: str, repaired: bool = False) -> CellValue:
    """The paper's value as printed, or repaired."""
    made = CellValue(title=measure.title, best=measure.best)
    cell = item.printed.find(key, measure) if item.printed else None
    if cell is None or item.printed is None:
        return made
    made.covered = frozenset((key,))
    if cell.printed != PRINTED_DASH:
        made.number = papers.number_of(cell, measure, repaired)
        made.text = papers.text_of(cell, measure, repaired)
        made.facts = papers.facts_of(item.printed, cell, repaired)
    return made


def beside(
    measure: Column, item: AxisItem, key: str, wanted: Sequence[str], averaged: bool, repaired: bool
) -> CellValue:
    """A published value of a method of the paper, which covers all categories, or a measured one of ours."""
    if item.printed is None:
        return measured(measure, item, wanted, averaged)
    made = reported(measure, item, key, repaired)
    made.covered = frozenset(wanted) or made.covered
    return made


def measured_and_reported(
    measure: Column, item: AxisItem, key: str, wanted: Sequence[str], averaged: bool
) -> CellValue:
    """The measured value, the published one (repaired), and the gap."""
    made, cell = measured(measure, item, wanted, averaged), item.printed.find(key, measure) if item.printed else None
    if cell is None or item.printed is None:
        return made
    theirs = reported(measure, item, key, repaired=True)
    number = theirs.number
    made.published = theirs.text.replace(DASH, "")
    made.facts |= theirs.facts
    if made.number is not None and number is not None and item.entry is not None:
        unlike = papers.disagreements(item.printed, cell, item.entry.sample, measure)
        made.facts |= {kind: unlike.get(kind, "") for kind in papers.DISAGREEMENTS}
        gap = round(made.number - number, measure.digits)
        made.gap = f"{gap:+.{measure.digits}f}".replace("-", "−") if gap else f"±{0:.{measure.digits}f}"
        alike = not unlike and not made.facts.get("budget") and not set(wanted) - made.covered
        made.grade = "unlike" if not alike else _grade(gap, measure.best)
    return made


def _grade(gap: float, best: str) -> str:
    if not gap or not best:
        return "even"
    return "better" if (gap > 0) == (best == "highest") else "worse"


def rank(methods: Sequence[AxisItem], across: Sequence[Sequence[list[CellValue]]], best: str) -> None:
    """Rank values across the methods of a section; `best`: one of `layout.MARKS`."""
    if best == "none":
        return
    for cells in across:
        for section in {item.section for item in methods}:
            compared = [cell for item, cell in zip(methods, cells, strict=True) if item.section == section]
            for values in zip(*compared, strict=True):
                _rank([value for value in values if value.number is not None], best == "bold+underline")


def mark_places(measures: Sequence[Column], across: Sequence[Sequence[list[CellValue]]]) -> None:
    """Add to values under corrected labels the method's place before and after: '98.2 (3 → 1)'; see `rank`."""
    found = {measure.value: [cell[0] for cell in cells] for measure, cells in zip(measures, across, strict=True)}
    for name, values in found.items():
        before = found.get(name.removeprefix(CORRECTED))
        if before is None or before is values or len(values) < 2:
            continue
        for value, old, new in zip(values, _places(before), _places(values), strict=True):
            if old and new:
                value.text += f" ({old})" if old == new else f" ({old} → {new})"


def _places(values: Sequence[CellValue]) -> list[int]:
    """1 for the best printed number; equal ones share a place; 0: no number."""
    sign = -1 if values[0].best == "lowest" else 1
    numbers = [None if value.number is None else sign * value.number for value in values]
    return [0 if one is None else 1 + sum(other is not None and other > one for other in numbers) for one in numbers]


def _rank(values: Sequence[CellValue], second: bool) -> None:
    """Rank shown values, so equal prints tie; only those with the most, and the same, categories on one machine.

    Where some methods were trained as published, those that were trained for less are not ranked; beside published
    speeds and costs, our own are not.
    """
    values = [value for value in values if not value.facts.get("budget")] or values
    if any("origin" in value.facts for value in values):
        values = [value for value in values if not {"speed", "cost"} & set(value.facts)]
    widest = max((len(value.covered) for value in values), default=0)
    compared = [value for value in values if len(value.covered) == widest]
    conditions = [value for value in compared if "origin" not in value.facts] or compared
    alike = len({tuple(map(value.facts.get, ("cost", "speed", "setup", "images"))) for value in conditions}) == 1
    if len(compared) < 2 or not alike or len({value.covered for value in compared}) > 1 or not compared[0].best:
        return
    numbers = [value.number for value in compared if value.number is not None]
    order = sorted(set(numbers), reverse=compared[0].best == "highest")
    marked = order[: SECOND if second and len(numbers) > 2 else BEST]
    for value in compared:
        value.rank = marked.index(value.number) + 1 if value.number in marked else 0
