"""`anomaly-bench leaderboard`: a static site of records, for others to read and to check. Does not import torch.

index.html             all rankings, methods and records, to search
rankings/DATASET.html  the rankings of one dataset and regime
methods/NAME.html      what a method's numbers rest on, and its records
records/.../X.html     one record: its numbers, its environment, and the command that verifies it
records/.../X.json     the record itself, so that the site is a results folder too
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.settings import new_folder
from anomaly_bench.documents import read_json
from anomaly_bench.records.record import load
from anomaly_bench.records.setups import dataset_title
from anomaly_bench.report.evidence import Evidence
from anomaly_bench.report.page import chosen_records, printed, text_columns
from anomaly_bench.report.rankings import Ranking, method_page, rankings, record_page
from anomaly_bench.report.record_facts import RecordFacts, name_of
from anomaly_bench.report.templating import environment, script
from anomaly_bench.tables import query

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

COLUMNS = {  # of the list of records: no numbers, which would rank what may not be compared
    **{"category": "Category", "method": "Method", "backbone": "Backbone", "seed": "Seed"},
    **{"dataset": "Dataset", "ranking": "Ranking", "record": "Record"},
}


def write_site(config: Any) -> None:
    """Write the site into the folder `out`.

    Raises:
        UsageError: a results folder without records, a selected name without records, or a folder that is not empty.
    """
    known, files = chosen_records(config)
    out = new_folder(config, "out")
    site, size = Site(known, files, query.results_folders(config)), 0
    for name, text in site.pages():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_bytes(text.encode())
    methods = len({record.method for record in known})
    print(f"{out}: {len(known)} records of {methods} methods in {len(site.rankings)} rankings, {size / 1e6:.1f} MB")
    if site.faulty:
        print(f"{len(site.faulty)} records contradict themselves, as their pages say: see records check")


class Site:
    """The pages of some records.

    Args:
        records: as outlines; files: where each is kept, by its identity.
        results: folders that may hold a parity.json.
    """

    def __init__(self, records: Sequence[Record], files: Mapping[tuple[Any, ...], Path], results: Sequence[Path]):
        self.records, self.files, self.results = records, files, results
        self.rankings = rankings(records)
        self.place = {record.identity: ranking for ranking in self.rankings for record in ranking.records}
        self.faulty: list[str] = []
        self.environment = environment()

    def pages(self) -> Iterator[tuple[str, str]]:
        """The name and the content of each file, the index last."""
        for name, part in self.by_page().items():
            content = {"title": part[0].page_title, "rankings": part, "root": "../"}
            yield f"rankings/{name}.html", self.render("ranking", ["panels"], content)
        for name, titled in self.methods().items():
            yield method_page(name), self.render("method", [], {**self.method(name), "title": titled, "root": "../"})
        for record in self.records:
            file = self.files[record.identity]
            yield record_page(record), self.render("record", [], {**self.record(load(file)), "root": "../../../"})
            yield record.path.as_posix(), json.dumps(read_json(file), separators=(",", ":"))
        yield "index.html", self.render("index", ["records"], {**self.index(), "root": ""})

    def render(self, template: str, scripts: Sequence[str], content: Mapping[str, Any]) -> str:
        ran = script(self.environment, *scripts)
        return self.environment.get_template(f"leaderboard/{template}.html").render(**ran, **content)

    def by_page(self) -> dict[str, list[Ranking]]:
        found: dict[str, list[Ranking]] = defaultdict(list)
        for ranking in self.rankings:
            found[ranking.page].append(ranking)
        return found

    def methods(self) -> dict[str, str]:
        """Name -> title, by title."""
        titles = {record.method: record.titles.get("method") or record.method for record in self.records}
        return dict(sorted(titles.items(), key=lambda pair: (pair[1].casefold(), pair[0])))

    def index(self) -> dict[str, Any]:
        rows = [self.row(record) for record in self.records]
        methods = [
            {"name": name, "title": title, "page": method_page(name), "evidence": Evidence(name, self.of(name))}
            for name, title in self.methods().items()
        ]
        pages = self.by_page()
        return {"pages": pages, "methods": methods, "rows": rows, "columns": list(text_columns(rows, COLUMNS))}

    def of(self, method: str) -> list[Record]:
        return [record for record in self.records if record.method == method]

    def row(self, record: Record) -> dict[str, str]:
        """In the list of records."""
        return {
            "category": record.category,
            "method": record.titles.get("method") or record.method,
            "backbone": record.titles.get("backbone") or record.backbone,
            "seed": str(record.seed),
            "dataset": dataset_title(record),
            "ranking": self.place[record.identity].title,
            "record": record.fingerprint[:8],
            "path": record.path.as_posix(),
            "page": record_page(record),
        }

    def method(self, name: str) -> dict[str, Any]:
        """What its page shows: evidence, and the groups of its records with their anchors."""
        groups = [
            (ranking, ranking.anchor(number), group)
            for ranking in self.rankings
            for number, group in enumerate(ranking.groups)
            if group.sample.method == name
        ]
        evidence = Evidence(name, self.of(name), self.results)
        return {"evidence": evidence, "groups": groups, "record_page": record_page, "printed": printed}

    def record(self, whole: Record) -> dict[str, Any]:
        facts = RecordFacts(whole)
        self.faulty += [whole.path.as_posix()] if facts.faults else []
        shown = {"title": name_of(whole), "record": whole, "facts": facts}
        return {**shown, "ranking": self.place[whole.identity], "method_page": method_page}
