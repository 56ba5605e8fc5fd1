"""The leaderboard: what shares a ranking, where cells lead, and the site in a headless Chromium if installed."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_build import record, trained

from anomaly_bench import records
from anomaly_bench.cli.main import command as call
from anomaly_bench.records import consistency
from anomaly_bench.records.record import load_all, save
from anomaly_bench.records.setups import setup_name
from anomaly_bench.report.rankings import ranked, rankings
from anomaly_bench.tables.schedule import reduced_budget
from anomaly_bench.tables.table import CellValue

RESULTS = Path(__file__).parents[2] / "results"
HOSTILE = "a'\"><img src=x onerror=\"document.title='broken'\">../{{7*7}}"
SHOTS = {"name": "few_shot", "shots": 4}


class Page(HTMLParser):
    """Addresses, ids and tags of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.ids, self.tags, self.events = path, [], set(), set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids |= {found["id"]} if "id" in found else set()
        self.events += [name for name in found if name.startswith("on")]


def broken(site):
    """Links that lead nowhere, or out of the site."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            whole = not anchor or anchor in pages[target].ids if target in pages else target.is_file()
            if link != "data:," and not (whole and target.is_relative_to(site.resolve())):
                yield f"{path}: {link}"


def filled(folder):
    """PatchCore and PaDiM on two categories, PaDiM with two seeds on one; runs that share no ranking with them."""
    for place, task in enumerate(("bottle", "zipper")):
        lower = 2.5 * place
        save(record((95 - lower, 90, 80), task, "padim"), folder)
        save(record((99 - lower, 95, 90), task, "patchcore"), folder)
        save(record((99.9, None, None), task, "stfpm", training=trained(25)), folder)
    save(record((85, 91, 81), "bottle", "padim", seed=1), folder)
    save(record((100, 100, 100), "bottle", "spade"), folder)
    save(record((99.8, 99, 99), "bottle", "padim", oracle=True), folder)
    save(record((70, 60, 50), "bottle", "padim", regime=SHOTS), folder)
    made = record((90, 80, 70), HOSTILE, HOSTILE, categories={HOSTILE: HOSTILE}, dataset=HOSTILE)
    made.titles = dict.fromkeys(("dataset", "method", "backbone"), HOSTILE)
    save(made, folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboard")
    assert call(["leaderboard", f"results={filled(folder / 'r')}", f"out={folder / 'site'}"]) == 0
    return folder / "site"


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The site of `results/`."""
    out = tmp_path_factory.mktemp("committed") / "site"
    assert call(["leaderboard", f"results={RESULTS}", f"out={out}"]) == 0
    return out


def test_what_shares_a_ranking(site):
    found = rankings(load_all(site)[0])
    assert [each.key for each in found][1:] == [
        "mvtec-few_shot-4-unified-256x256", "mvtec-unified-256x256", "mvtec-unified-256x256-short",
        "mvtec-unified-256x256-oracle",
    ]  # fmt: skip
    for ranking in found:
        assert len({setup_name(each) for each in ranking.records}) == 1
        assert {bool(reduced_budget([each])) for each in ranking.records} == {ranking.short}
    assert sum(len(each.records) for each in found) == len(load_all(site)[0])
    assert {path.stem for path in (site / "rankings").iterdir()} >= {"mvtec", "mvtec-few_shot-4"}


def test_the_best_mean_comes_first_and_cells_lead_to_records(site):
    ranking = next(each for each in rankings(load_all(site)[0]) if each.key == "mvtec-unified-256x256")
    table = ranking.tables["image_auroc"]
    lines = [
        [row.labels[0], *(cell.values[0].text for cell in cells)]
        for row, cells in zip(table.rows, table.cells, strict=True)
    ]
    assert lines == [
        ["PatchCore", "1", "99.0", "96.5", "97.8", "97.8"],
        ["PaDiM", "2", "90.0", "92.5", "91.2", "91.2"],
        ["spade", "–", "100.0", "–", "100.0", "100.0"],
    ]
    assert table.rows[0].link == "../methods/patchcore.html"
    one, both, mean = (table.cells[place][column].link for place, column in ((0, 1), (1, 1), (0, 4)))
    assert re.fullmatch(r"\.\./records/mvtec/patchcore-wrn50/bottle-s0-\w{8}\.html", one)
    assert both == f"../methods/padim.html#{ranking.anchor(0)}"
    assert mean.startswith("../methods/patchcore.html#mvtec-unified-256x256-")
    assert all(cell.link or cell.values[0].text == "–" for cells in table.cells for cell in cells[1:])
    assert ranking.leader == "PatchCore WRN50: image AUROC 97.8"


def test_places():
    def mean(number, covered="ab"):
        return CellValue(number=number, covered=frozenset(covered))

    means = [mean(90.0), mean(95.0), mean(99.0, "a"), mean(95.0), CellValue()]
    assert ranked(means, "highest") == ([1, 3, 0, 2, 4], ["3", "1", "–", "1", "–"])
    assert ranked(means, "lowest") == ([0, 1, 3, 2, 4], ["1", "2", "–", "2", "–"])
    assert ranked(means, "")[1] == ["–"] * 5


def test_every_link_leads_to_a_page_of_the_site(site):
    assert list(broken(site)) == []
    for path in site.rglob("*.html"):
        page = Page(path)
        assert not page.events
        assert "img" not in page.tags


def test_the_site_is_a_results_folder(site, command):
    known = load_all(site.parent / "r")[0]
    assert load_all(site)[0] == known
    page = (site / known[-1].path.with_suffix(".html")).read_text(encoding="utf-8")
    assert f"anomaly-bench verify record={known[-1].path.as_posix()} data_root=DIR" in page
    assert "counts.test is 10; the list of images has 0" in page, "contradictions are told"
    assert command("tables", f"results={site}", "table=per_class")[0] == 0


def test_the_site_of_the_committed_records(committed):
    """CI builds it here: every record has its page, nothing leads nowhere, and nothing contradicts itself."""
    known = load_all(RESULTS)[0]
    assert list(broken(committed)) == []
    assert consistency.check_records(committed) == (len(known), [])
    for each in known:
        text = (committed / each.path.with_suffix(".html")).read_text(encoding="utf-8")
        assert each.provenance["torch"] in text
        assert "contradicts itself" not in text
    assert "parity" in (committed / "methods" / "padim.html").read_text(encoding="utf-8")


def test_a_site_of_500_records_stays_below_30_mb(tmp_path, command):
    """One category with the longest test set of MVTec AD: below a tenth of 30 MB for each of ten with 50 methods."""
    first = max((each for each in load_all(RESULTS)[0] if each.curves), key=lambda each: len(each.images))
    images = (first.images * 2)[:167]
    for number in range(10):
        save(dataclasses.replace(first, images=images, method=f"m{number}", seed=0), tmp_path / "r")
    assert command("leaderboard", f"results={tmp_path / 'r'}", f"out={tmp_path / 'site'}")[0] == 0
    assert 50 * sum(path.stat().st_size for path in (tmp_path / "site").rglob("*.*")) < 30e6


def test_wrong_usage(site, command, tmp_path):
    for words, why in (
        ([f"results={site}", f"out={site}"], "not empty; give a new folder, or overwrite=true"),
        ([f"results={site}", "method=padimm", f"out={tmp_path / 'a'}"], "method=padimm: no record of it; did you mean"),
        ([f"results={tmp_path}", f"out={tmp_path / 'a'}"], "no records there"),
    ):
        status, _, err = command("leaderboard", *words)
        assert (status, why in err) == (2, True), err
    assert not (tmp_path / "a").exists()


def test_search_links_and_panels_in_a_browser(chrome, site):
    """From the file system, without a request to anything else."""
    chrome.get((site / "index.html").as_uri())

    def find(css):
        return chrome.find_elements("css selector", css)

    find("#search")[0].send_keys("PATCHCORE zipper")
    assert find("#count")[0].text == "1 of 11 records"
    shown = [row for row in find("#table tbody tr") if row.is_displayed()]
    shown[0].find_element("css selector", "a").click()
    assert find("h1")[0].text == "PatchCore on WRN50: zipper, seed 0"
    assert "anomaly-bench verify record=records/mvtec/patchcore-wrn50/zipper-s0-" in find(".command")[0].text
    find("nav a")[0].click()
    assert find("h1")[0].text == "MVTec AD"
    headings = [each.text for each in find("#mvtec-unified-256x256 h3") if each.is_displayed()]
    assert headings == ["image AUROC"]
    first = find("#mvtec-unified-256x256 tbody td a")[1]
    assert (first.text, first.is_displayed()) == ("96.5", True)
    for path in site.rglob("*.html"):
        chrome.get(path.as_uri())
        assert chrome.title.endswith("anomaly-bench leaderboard"), path
    assert chrome.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert all(address.startswith((site.as_uri(), "data:")) for address in asked)


def test_the_page_of_a_record_that_others_made(tmp_path, command):
    first = load_all(RESULTS)[0][0]
    method = {**first.config["method"], "_target_": "theirs.Method"}
    save(dataclasses.replace(first, config={**first.config, "method": method}), tmp_path / "r")
    assert command("leaderboard", f"results={tmp_path / 'r'}", f"out={tmp_path / 'site'}")[0] == 0
    page = (tmp_path / "site" / first.path.with_suffix(".html")).read_text(encoding="utf-8")
    assert "Made by theirs.Method, which is not a part of anomaly-bench" in page
    assert "--config-dir MY_CONF" in page
    about = (tmp_path / "site" / "methods" / f"{first.method}.html").read_text(encoding="utf-8")
    assert "not a part of anomaly-bench" in about
    assert records.load(tmp_path / "site" / first.path).config["method"] == method
