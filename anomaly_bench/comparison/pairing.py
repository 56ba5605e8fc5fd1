"""Pair up the records to compare."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_bench.comparison.significance import Pair, Side
from anomaly_bench.config.settings import truth
from anomaly_bench.errors import UsageError, shorten
from anomaly_bench.records import outlines
from anomaly_bench.records.same_images import SETS, selection
from anomaly_bench.records.setups import setup_name, setup_title, setups
from anomaly_bench.tables import query
from anomaly_bench.tables.entries import as_typed, group_records, settings_of

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.entries import ResultGroup

COUNTS = {"test images": "test", "defective test images": "defects"}
_MIX = "; allow_mixed=true compares them anyway"


@dataclass(frozen=True)
class Comparison:
    """The pairs to compare in one setup.

    Attributes:
        name: the setup's; title: dataset and setup, above a table.
        records: of all sides; mixed: of several setups.
        notes: printed below the tables; missing: what a has and b lacks, for the gate.
    """

    name: str
    title: str
    records: Sequence[Record]
    mixed: bool
    pairs: Sequence[Pair]
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def sides(self) -> list[Side]:
        return list({side.name: side for pair in self.pairs for side in (pair.first, pair.second)}.values())


def chosen_parts(config: Any, key: str, mixed: bool) -> dict[str, list[Record]]:
    """Setup (or dataset, if mixed) -> the selected records of a key's folders."""
    known = query.read_records(config, outlines.outlines, key)
    try:
        parts = setups(query.choose(known, [], config)[0], mixed)
    except UsageError as error:
        raise UsageError(f"{key}={config[key]}: {error}") from error
    return {part[0].dataset if mixed else setup_name(part[0]): part for part in parts}


def compare_methods(config: Any, metrics: Set[str]) -> Iterator[Comparison]:
    """All pairs of methods in each setup; setups with one method are skipped.

    Raises:
        UsageError: no setup has two methods, or their test images differ.
    """
    mixed = truth(config, "allow_mixed")
    parts = chosen_parts(config, "results", mixed)
    found = {name: group_records(part, with_speed=False) for name, part in parts.items()}
    if all(len(each) < 2 for each in found.values()):
        listed = "; ".join(f"{name}: {', '.join(entry.name for entry in each)}" for name, each in found.items())
        raise UsageError(
            f"results={config['results']}: nothing to compare; expected two methods, backbones or settings in one "
            f"setup, found {listed}{_MIX if not mixed and len(found) > 1 else ''}"
        )
    for name, part in parts.items():
        sides = [Side(entry.name, entry) for entry in found[name]]
        pairs = [Pair(f"{two.name} − {one.name}", one, two) for one, two in itertools.combinations(sides, 2)]
        if pairs:
            notes = [*trained_for(sides), *unlike_training(pairs), *incomparable(pairs, metrics, mixed)]
            yield Comparison(name, setup_title(part, mixed), part, mixed, pairs, notes)


def compare_folders(config: Any, metrics: Set[str]) -> Iterator[Comparison]:
    """Compare the methods of `a` with those of `b`, setup by setup.

    Raises:
        UsageError: they share no setup or no method, or their test images differ.
    """
    for key in ("a", "b"):
        if config[key] is None:
            raise UsageError(
                f"{key}=DIR is missing: expected two results folders, or results=DIR for the methods in one"
            )
    mixed = truth(config, "allow_mixed")
    ours, theirs = (chosen_parts(config, key, mixed) for key in ("a", "b"))
    shared = [name for name in ours if name in theirs]
    if not shared:
        have = f"a has {', '.join(ours)}; b has {', '.join(theirs)}"
        raise UsageError(f"no {'dataset' if mixed else 'setup'} in both: {have}{'' if mixed else _MIX}")
    lost = [f"{name}: no record in b" for name in ours if name not in theirs]
    extra = [f"{name}: in b only" for name in theirs if name not in ours]
    for name in shared:
        one, two = group_records(ours[name], with_speed=False), group_records(theirs[name], with_speed=False)
        pairs, missing, remarks = matched(one, two, name)
        said = [
            f"a: {config['a']}, b: {config['b']}",
            *lost,
            *missing,
            *extra,
            *remarks,
            *trained_for([side for pair in pairs for side in (pair.first, pair.second)]),
            *unlike_training(pairs),
            *incomparable(pairs, metrics, mixed),
        ]
        both = [*ours[name], *theirs[name]]
        yield Comparison(name, setup_title(both, mixed), both, mixed, pairs, said, [*lost, *missing])


def matched(
    ours: Sequence[ResultGroup], theirs: Sequence[ResultGroup], where: str
) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs of equal method, backbone and settings; what only a has; and other remarks.

    Then, if one entry of a method is left on both sides, these two, despite different settings; and if a and b have
    just one entry each, these two, whatever the method.

    Raises:
        UsageError: nothing matches.
    """
    left, right = list(ours), list(theirs)
    found: list[tuple[ResultGroup, ResultGroup]] = []
    single = len(ours) == len(theirs) == 1
    rules: list[Callable[[ResultGroup, ResultGroup], bool]] = [
        lambda one, two: same_settings(one, two) and hashes_of(one, *SETS) == hashes_of(two, *SETS),
        same_settings,
        same_method,
        lambda one, two: single,
    ]
    for rule in rules:
        for one in list(left):
            fits = [two for two in right if rule(one, two)]
            if len(fits) == 1 and sum(rule(other, fits[0]) for other in left) == 1:
                found.append((one, fits[0]))
                left.remove(one)
                right.remove(fits[0])
    if not found:
        have = [", ".join(entry.name for entry in part) for part in (ours, theirs)]
        raise UsageError(
            f"{where}: a has {have[0]}; b has {have[1]}: no two match; choose one with method= and backbone="
        )
    found.sort(key=lambda pair: ours.index(pair[0]))
    remarks = [f"{two.name}: in b only" for two in right]
    remarks += [said for one, two in found if (said := changed_settings(one, two))]
    return [paired(one, two) for one, two in found], [f"{one.name}: no record in b" for one in left], remarks


def same_method(one: ResultGroup, two: ResultGroup) -> bool:
    return (one.sample.method, one.sample.backbone) == (two.sample.method, two.sample.backbone)


def same_settings(one: ResultGroup, two: ResultGroup) -> bool:
    return same_method(one, two) and settings_of(one.sample) == settings_of(two.sample)


def hashes_of(group: ResultGroup, *kinds: str) -> dict[str, dict[str, set[str]]]:
    """Category -> `selection` of images -> their hashes, of these kinds among `SETS`."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for category, part in group.records.items():
        for each in part:
            found[category][selection(each)] |= {(each.hashes or {}).get(kind, "") for kind in kinds} - {""}
    return found


def paired(one: ResultGroup, two: ResultGroup) -> Pair:
    name = f"{one.name}: b − a" if one.name == two.name else f"{two.name} in b − {one.name} in a"
    return Pair(name, Side(f"{one.name} in a", one), Side(f"{two.name} in b", two))


def changed_settings(one: ResultGroup, two: ResultGroup) -> str:
    """'PaDiM on R18: dimensions 100 in a, 50 in b' for one method with different settings; else ''."""
    ours, theirs = settings_of(one.sample), settings_of(two.sample)
    if not same_method(one, two) or ours == theirs:
        return ""
    paths = [path for path in dict.fromkeys((*ours, *theirs)) if ours.get(path, ...) != theirs.get(path, ...)]
    said = (f"{path} {as_typed(ours.get(path, ...))} in a, {as_typed(theirs.get(path, ...))} in b" for path in paths)
    return f"{one.name}: {'; '.join(said)}"


def trained_for(sides: Sequence[Side]) -> list[str]:
    """'FastFlow on Lite0: trained for 40 of 500 epochs, 8 %' of those that were trained for less than published."""
    return [f"{side.name}: {side.entry.budget}" for side in sides if side.entry.budget]


def unlike_training(pairs: Sequence[Pair]) -> list[str]:
    """'other training images in PaDiM on R18 in b than in PaDiM on R18 in a: bottle', for each such pair."""
    said = []
    for pair in pairs:
        ours, theirs = (hashes_of(side.entry, "fit") for side in (pair.first, pair.second))
        unlike = [
            category
            for category in ours
            if any(one and (two := theirs[category][which]) and one != two for which, one in ours[category].items())
        ]
        if unlike:
            said.append(f"other training images in {pair.second.name} than in {pair.first.name}: {shorten(unlike)}")
    return said


def incomparable(pairs: Sequence[Pair], metrics: Set[str], mixed: bool) -> list[str]:
    """Why two sides are not comparable: different test images or revisions of a metric.

    Raises:
        UsageError: there is a reason, and `mixed` is false.
    """
    found: dict[str, None] = {}
    for pair in pairs:
        first, second = pair.first.entry.records, pair.second.entry.records
        for category in (name for name in first if name in second):
            for what, ours, theirs in unequal(first[category], second[category], metrics):
                found[f"{category}: {what} {ours} of {pair.first.name}, {theirs} of {pair.second.name}"] = None
    if found and not mixed:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        raise UsageError(f"numbers are not comparable: {next(iter(found))}{more}; rerun the older one{_MIX}")
    return list(found)


def unequal(ours: Sequence[Record], theirs: Sequence[Record], metrics: Set[str]) -> Iterator[tuple[str, str, str]]:
    """What differs in counts or metric revisions between two sets of records of one category: (name, ours, theirs)."""
    facts: list[dict[str, set[Any]]] = []
    for part in (ours, theirs):
        facts.append({name: {each.counts[key] for each in part} for name, key in COUNTS.items()})
        for each in part:
            if each.hashes:
                name = " ".join(["content of the test images", *filter(None, [selection(each)])])
                facts[-1].setdefault(name, set()).add(each.hashes["test"][:8])
        for name in sorted(metrics):
            facts[-1][f"revision of {name}"] = {each.metrics[name]["revision"] for each in part if name in each.metrics}
    for name in facts[0]:
        if facts[0][name] and facts[1].get(name) and facts[0][name] != facts[1][name]:
            ours_said, theirs_said = (" and ".join(map(str, sorted(part[name]))) for part in facts)
            yield name, ours_said, theirs_said
