"""The HTML report: its numbers in Python, its behaviour in a headless Chromium if installed."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_build import FOUR, SPEED, record, trained

from anomaly_bench.cli.main import command as call
from anomaly_bench.config.settings import FAMILIES
from anomaly_bench.published import publications
from anomaly_bench.records import gallery
from anomaly_bench.records.outlines import outlines_by_file
from anomaly_bench.records.record import load_all, save
from anomaly_bench.records.setups import setups
from anomaly_bench.report import sections, worst_cases
from anomaly_bench.report.conclusion import conclusion
from anomaly_bench.report.figures import labels, plots, style, svg
from anomaly_bench.runs.corrected_labels import read_labels
from anomaly_bench.tables import query
from anomaly_bench.tables.formats.html import html_table

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

BREAK = "document.title='broken'"
HOSTILE = f'a\'"><img src=x onerror="{BREAK}"><script>{BREAK}</script>&amp;{{{{7*7}}}}$x^$\x07\ud800'
CURVE = {"x": [0.0, 0.0, 0.2, 1.0], "y": [0.0, 0.5, 0.9, 1.0]}
CURVES = {"image_roc": CURVE, "pixel_roc": CURVE, "pro": {"x": [0.0, 0.1, 0.3], "y": [0.0, 0.7, 0.9]}}


def pictured(results: Path, made: Record, seed: int = 0) -> Record:
    """A record with 12 images, 6 of them defective, saved with its pictures."""
    random = np.random.default_rng(seed)
    defects = [None] * 6 + [made.titles.get("defect") or "crack"] * 6
    scores = (random.normal(size=12) + np.repeat([0, 1], 6)).astype(np.float32)
    files = [f"test/{defect or 'good'}/{number:03}.png" for number, defect in enumerate(defects)]
    made.images = [
        {"file": file, "defect": defect, "score": float(score)}
        for file, defect, score in zip(files, defects, scores, strict=True)
    ]
    made.curves = CURVES
    save(made, results)
    pixels = random.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    maps = random.random((12, 32, 32), dtype=np.float32) if made.metrics["pro"]["value"] is not None else None
    masks = None if maps is None else random.random((12, 32, 32)) > 0.8
    gallery.save_pictures(results / made.path.with_suffix(""), made.images, pixels, maps, masks, 6)
    return made


def timed(milliseconds: float) -> list[dict[str, Any]]:
    return [{**SPEED, "latency_ms": milliseconds, "fps": 1000 / milliseconds}]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two setups: three methods on MVTec AD (one without maps), and one in which every name is hostile."""
    folder = tmp_path_factory.mktemp("report")
    for number, (method, points, speed) in enumerate(
        [("padim", (95, 90, 80), timed(10)), ("patchcore", (99, 95, 90), timed(100)), ("draem", (100, None, None), [])]
    ):
        for place, task in enumerate(("bottle", "zipper")):
            lower = tuple(None if point is None else point - 2.5 * place for point in points)
            pictured(folder, record(lower, task, method, speed=speed), number)
    names = {"dataset": HOSTILE, "method": HOSTILE, "backbone": HOSTILE}
    made = record((90, 80, 70), HOSTILE, HOSTILE, HOSTILE, categories={HOSTILE: HOSTILE}, dataset=HOSTILE)
    made.titles, made.protocol = {**names, "defect": HOSTILE.replace("/", "")}, HOSTILE
    pictured(folder, made)
    return folder


@pytest.fixture(scope="module")
def page(results):
    assert call(["report", f"results={results}", f"out={results}/report.html"]) == 0
    return results / "report.html"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_command_writes_a_page_and_figures(results, tmp_path, command):
    words = [f"out={tmp_path}/part.html", f"figures={tmp_path}/figures", "method=[padim,draem]"]
    status, out, err = command("report", f"results={results}", *words)
    assert (status, err) == (0, "")
    assert re.fullmatch(r".*part\.html: 4 records, 0\.\d MB\n.*figures: 11 figures, each as SVG and PDF\n", out)
    text = (tmp_path / "part.html").read_text(encoding="utf-8")
    assert "draem" in text
    assert "patchcore" not in text
    folder = tmp_path / "figures" / "mvtec-unified-256x256"
    for part in ("heat-image_auroc", "heat-pro", "timeline-pixel_auroc", "latency-pro-1", "curves-bottle"):
        drawn = (folder / f"{part}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(drawn.encode()).tag.endswith("svg")
        assert "var(--" not in drawn
        assert (folder / f"{part}.pdf").read_bytes().startswith(b"%PDF")


def test_page_is_deterministic(page, results):
    assert call(["report", f"results={results}", f"out={results}/twin.html"]) == 0
    assert (results / "twin.html").read_bytes() == page.read_bytes()


def test_figures_with_hostile_names_are_deterministic(tmp_path):
    for name in ("one", "two"):
        curve = plots.Curve(CURVE["x"], CURVE["y"], HOSTILE, 3)
        svg.save_for_print(plots.curves({"image_roc": [curve]}, legend=True), tmp_path / name)
    for kind in ("svg", "pdf"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert "$x^$" in "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["results=/no/such"], "results=/no/such: no records there; anomaly-bench results=/no/such ... makes some"),
        (["results=[{results},/no/such]"], "results=/no/such: no records there"),
        (["results={results}", "method=padimm"], "method=padimm: no record of it; did you mean padim?"),
        (
            ["results={results}", "setup=mvtec-unified-256"],
            "setup=mvtec-unified-256: no record of it; did you mean mvtec-unified-256x256?",
        ),
        (["figure=x"], "figure: no such key; did you mean figures?"),
    ],
)
def test_errors_are_one_line(command, results, tmp_path, words, message):
    words = [word.format(results=results) for word in words]
    status, out, err = command("report", *words, f"out={tmp_path}/report.html")
    assert status == 2
    assert message in err
    assert out == ""
    assert not (tmp_path / "report.html").exists()


def test_no_torch(results, tmp_path):
    code = (
        "import sys; from anomaly_bench.cli.main import command;"
        f"assert command(['report', 'results={results}', 'out={tmp_path}/report.html', 'method=padim']) == 0;"
        "assert not {'torch', 'timm', 'pandas', 'matplotlib.pyplot'} & set(sys.modules), 'a slow import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_record_in_two_folders_counts_once_with_both_speeds(tmp_path):
    here, there = timed(10), [{**SPEED, "device": "H100", "latency_ms": 1.0, "fps": 1000.0}]
    one, two = record(speed=here), record(speed=[*here, *there])
    two.fingerprint = one.fingerprint
    save(one, tmp_path / "one")
    pictured(tmp_path / "two", two)
    folders = [tmp_path / "one", tmp_path / "two"]
    known = query.read_records({"results": list(map(str, folders))}, load_all)
    assert [entry["device"] for entry in known[0].speed] == ["EPYC", "H100"]
    known[0].images = two.images
    section = sections.Section("s1", known, folders)
    assert all(doubt.image and doubt.mask for doubt in worst_cases.doubts(section, "bottle"))
    assert [(place, points[0].x) for place, points in section.latency("pro")] == [
        ("EPYC, 2 threads, batch 32, fp32", 10.0),
        ("H100, 2 threads, batch 32, fp32", 1.0),
    ]


def test_points_of_the_figures(results):
    section = sections.Section("s1", [each for each in load_all(results)[0] if each.dataset == "mvtec"], [results])
    assert section.labels == ["draem WRN50", "PaDiM WRN50", "PatchCore WRN50"]
    ((_, points),) = section.latency("image_auroc")
    assert [(point.x, point.y, point.series) for point in points] == [(10, 93.75, 1), (100, 97.75, 2)]
    published, measured = section.timeline("image_auroc")
    months = {point.label: point.x for point in measured}
    assert months["PaDiM WRN50"] == plots.month_number(2020, 11)
    stated = {point.label: (point.x, point.y) for point in published}
    assert len(stated) == 13
    assert stated["FastFlow"] == (plots.month_number(2021, 11), 99.4)
    assert stated["SPADE"] == (plots.month_number(2020, 5), 85.5)
    assert section.timeline("pro")[0] == []


def test_learning_curves_of_the_methods_that_train(tmp_path, command):
    for seed in (0, 1):
        pictured(tmp_path, record((95, 90, 80), method="stfpm", seed=seed, training=trained(25)), seed)
    pictured(tmp_path, record((99, 95, 90)))
    section = sections.Section("s1", load_all(tmp_path)[0], [tmp_path])
    panels = section.learning("bottle")
    assert list(panels) == ["stfpm WRN50 (trained for 25 of 200 epochs, 12.5 %)"]
    assert [(line.x, line.y, line.first) for lines in panels.values() for line in lines] == [
        ([70, 140], [2.0, 1.0], True),
        ([70, 140], [2.0, 1.0], False),
    ]
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    assert command("report", f"results={tmp_path}", f"out={out}", f"figures={figures}")[0] == 0
    assert "Learning curves of bottle" in out.read_text(encoding="utf-8")
    (drawn,) = figures.rglob("learning-bottle.svg")
    assert "optimiser steps" in drawn.read_text(encoding="utf-8")


def test_curves_of_many_seeds_are_left_out_and_said(tmp_path, command, monkeypatch):
    monkeypatch.setattr(sections, "MOST_LINES", 4)
    for method, seed in itertools.product(("stfpm", "draem"), range(3)):
        pictured(tmp_path, record((95, 90, 80), method=method, seed=seed, training=trained(25)), seed)
    found, _ = outlines_by_file(tmp_path)
    assert not any(each.curves or each.images for each in found.values()), "or the test shows nothing"
    files = {each.identity: path for path, each in found.items()}
    section = sections.Section("s1", list(found.values()), [tmp_path], files)
    assert [len(lines) for lines in section.curves("bottle").values()] == [4, 4, 4]
    assert list(section.curves("bottle")) == list(CURVES)
    assert [line.first for line in section.curves("bottle")["pro"]] == [True, False, True, False]
    assert sum(map(len, section.learning("bottle").values())) == 4
    assert len(worst_cases.doubts(section, "bottle")[0].views) in (1, 2), "images are read too"
    out = tmp_path / "page.html"
    assert command("report", f"results={tmp_path}", f"out={out}")[0] == 0
    assert "Of each method the 2 lowest seeds." in out.read_text(encoding="utf-8")


def test_tables_match_the_html_format(page, results):
    known = load_all(results)[0]
    for number, part in enumerate(setups(known), 1):
        shown = sections.Section(f"s{number}", part, [results]).heat["pro"]
        written = html_table(shown, plots.heat_shares(shown))
        assert written in page.read_text(encoding="utf-8")
        assert written.count("--share: ") == sum(not cell.values[0].empty for row in shown.cells for cell in row)


def test_published_values_stay_with_their_dataset(tmp_path):
    made = record(task="weave", categories=FOUR, dataset="synthetic")
    section = sections.Section("s1", [made], [tmp_path])
    published, measured = section.timeline("image_auroc")
    assert published == []
    assert [point.y for point in measured] == [90.0]


def test_arxiv_numbers_match_the_configurations():
    folder = Path(__file__).parents[2] / "conf" / "method"
    known = publications()
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        stated = re.search(r"arXiv:? ?(\d{4}\.\d{4,5})", text)
        assert known[path.stem].arxiv == (stated[1] if stated else "")
        assert known[path.stem].title == yaml.safe_load(text)["about"]["title"]
    assert known["padim"].month == (2020, 11)
    assert known["glance"].month is None


def test_dotted_line_connects_the_same_method():
    published = [labels.Point(100.0, 80.0, "SPADE", method="spade")]
    measured = [labels.Point(100.0, y, name, 0, name) for y, name in ((90.0, "spade"), (99.0, "mahalanobis_ad"))]
    lines = plots.timeline(published, measured, "AUROC").axes[0].lines
    assert [list(line.get_ydata()) for line in lines if line.get_linestyle() == ":"] == [[80.0, 90.0]]


def test_best_so_far_in_the_timeline():
    points = [labels.Point(x, y, f"m{x}") for x, y in ((300.0, 80.0), (100.0, 70.0), (200.0, 90.0))]
    line = plots.timeline(points, [], "AUROC").axes[0].lines[0]
    assert list(zip(*line.get_data(), strict=True)) == [(100, 70), (200, 90), (300, 90)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=12))
def test_worst_cases_by_brute_force(images):
    made = record(
        images=[{"file": f"{n}.png", "defect": "x" if bad else None, "score": s} for n, (bad, s) in enumerate(images)]
    )
    found = list(gallery.cases(made, Path("no such folder"), least=len(images)))
    assert len(found) == len(images)
    for case in found:
        bad = case.defect is not None
        others = [score for other, score in images if other != bad]
        assert case.kind == ("miss" if bad else "alarm")
        assert case.rank == 1 + sum(score > case.score for _, score in images)
        assert case.crossed == sum(score >= case.score if bad else score <= case.score for score in others)
        assert (case.others, case.images) == (len(others), len(images))
    for kind, sign in (("alarm", -1), ("miss", 1)):
        scores = [sign * case.score for case in found if case.kind == kind]
        assert scores == sorted(scores)


def test_pictures_are_found(tmp_path):
    made = pictured(tmp_path, record())
    found = list(gallery.cases(made, tmp_path / made.path.with_suffix("")))
    assert [case.kind for case in found] == ["alarm"] * 3 + ["miss"] * 3
    parts = [gallery.squares(case.picture) for case in found]
    assert all(list(part) == ["image", "mask", "map"] and part["map"].size == (128, 128) for part in parts)
    found[0].picture.write_bytes(b"no picture")
    assert gallery.squares(found[0].picture) == {}


def test_images_that_most_methods_get_wrong_come_first(tmp_path):
    scores = {"padim": [9, 1, 5, 8], "patchcore": [1, 9, 5, 8], "draem": [9, 1, 2, 3]}
    made = [
        record(
            method=method,
            images=[
                {"file": f"{number}.png", "defect": None if number < 2 else "crack", "score": float(score)}
                for number, score in enumerate(values)
            ],
        )
        for method, values in scores.items()
    ]
    section = sections.Section("s1", made, [tmp_path])
    alarms = [doubt for doubt in worst_cases.doubts(section, "bottle") if doubt.kind == "alarm"]
    assert [(doubt.file, doubt.wrong, len(doubt.views)) for doubt in alarms] == [("0.png", 2, 3), ("1.png", 1, 3)]


def test_the_conclusion_compares_what_is_alike(tmp_path):
    """Of four methods one covers fewer categories, and one was trained for less."""
    made = [
        *(record((95, 90, 80), task, speed=timed(10)) for task in ("bottle", "zipper")),
        *(record((95.5, 95, 90), task, "patchcore", speed=timed(100)) for task in ("bottle", "zipper")),
        *(record((99, 99, 99), task, "stfpm", training=trained(25), speed=timed(5)) for task in ("bottle", "zipper")),
        record((100, 100, 100), "bottle", "spade", speed=timed(1)),
    ]
    for each, size in zip(made, (3.0, 3.0, 20.0, 20.0, 1.0, 1.0, 1.0), strict=True):
        each.size = {"extra_params": 0, "extra_mb": 1.0, "stored_mb": size}
    section = sections.Section("s1", made, [tmp_path])
    said = dict(conclusion(section))
    basis = "(mean of 2 of 15 categories (bottle, zipper), seed 0)"
    best = said["Best by image AUROC"]
    assert best.startswith(f"PatchCore WRN50, 95.5 % {basis}, of 2 methods. Not compared")
    assert best.endswith(": spade WRN50, stfpm WRN50")
    assert said["Best by PRO"].startswith("PatchCore WRN50, 90.0 %")
    fastest = said["Fastest within 1 point of the best image AUROC"]
    assert fastest.startswith("PaDiM WRN50, 10 ms an image on EPYC, 2 threads, batch 32, fp32, image AUROC 95.0 %")
    assert said["Smallest"].startswith("PaDiM WRN50, 4 MB of parameters and statistics beside the backbone")
    ((_, points),) = section.latency("image_auroc")
    assert {point.text for point in points} >= {"spade WRN50 (1 of 15)", "PaDiM WRN50"}
    assert [point.label for point in plots.pareto_front(points)] == ["stfpm WRN50"]
    alike = [point for point in points if point.series in (0, 1)]
    assert [point.label for point in plots.pareto_front(alike)] == ["PaDiM WRN50", "PatchCore WRN50"]


def test_thresholds_tell_what_is_missed(tmp_path):
    scores = [1.0, 2.0, 9.0, 3.0, 8.0, 9.5]
    images = [
        {"file": f"{n}.png", "defect": "crack" if n > 2 else None, "score": score} for n, score in enumerate(scores)
    ]
    limits = {"image": 4.0, "pixel": None, "max_false_alarms": 0.05, "images": 20}
    counts = {"fit": 10, "test": 6, "defects": 3}
    made = record(images=images, counts=counts, holdout=0.2, thresholds=limits)
    for name, value in (("image_recall", 2 / 3), ("image_false_alarms", 1 / 3)):
        made.metrics[name] = {"value": value, "revision": 1}
    section = sections.Section("s1", [made], [tmp_path])
    assert list(worst_cases.at_thresholds(section, "bottle")) == [
        "PaDiM WRN50 misses 1 of 3 defective images at 5 % false alarms (here 1 of 3 normal ones)"
    ]
    said = {doubt.file: doubt.said for doubt in worst_cases.doubts(section, "bottle")}
    alarm = "1 of 1 method shown score it no lower than some defective image; 1 of 1 call it defective at the threshold"
    miss = "1 of 1 method shown score it no higher than some normal image; 1 of 1 miss it at the threshold"
    assert (said["2.png"], said["3.png"]) == (alarm, miss)
    assert said["5.png"] == "1 method shown: above every normal image; 0 of 1 miss it at the threshold"


def test_of_many_methods_each_has_a_row_and_traits(tmp_path):
    names = ["padim", "patchcore", "stfpm", "draem", *(f"mine{number}" for number in range(10))]
    section = sections.Section("s1", [record(method=name) for name in names], [tmp_path])
    assert len(section.heat["pro"].rows) == len(names)
    assert section.categories == ["bottle"]
    values = section.trait_values()
    assert values["supervision"] == ["normal images only", "synthetic anomalies"]
    assert values["family"] == ["density", "nearest neighbours", "other", "reconstruction", "teacher and student"]
    few = sections.Section("s1", [record(method=name) for name in names[:4]], [tmp_path])
    assert few.trait_values() == {}


def test_families_of_methods_are_known():
    folder = Path(__file__).parents[2] / "conf" / "method"
    stated = {yaml.safe_load(path.read_text(encoding="utf-8"))["about"].get("family") for path in folder.glob("*.yaml")}
    assert stated == set(FAMILIES)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    paper = luminance(getattr(style.PAPER, theme))
    for name, shade in style.VARIABLES.items():
        other = luminance(getattr(shade, theme))
        contrast = (max(paper, other) + 0.05) / (min(paper, other) + 0.05)
        assert contrast >= {"paper": 1, "line": 1, "ink": 4.5, "muted": 4.5}.get(name, 3), name


def test_every_series_has_a_distinct_style():
    looks = {(repr(plots._look(number)), number // len(style.SERIES) % 4) for number in range(40)}
    assert len(looks) == 40


def test_a_full_benchmark_stays_below_20_mb(tmp_path):
    """One category, ten methods that agree on no image, pictures of pure noise: below a fifteenth of 20 MB."""
    random = np.random.default_rng(0)
    images = [{"file": f"{n}.png", "defect": "x" if n > 30 else None} for n in range(60)]
    x = np.linspace(0, 1, 500)
    for number in range(10):
        scores = random.random(60).astype(np.float32)
        kept = [{**image, "score": float(score)} for image, score in zip(images, scores, strict=True)]
        curves = {name: {"x": list(x), "y": list(np.sort(random.random(500)))} for name in CURVES}
        made = record(task="bottle", method=f"m{number}", images=kept, curves=curves, speed=timed(10 + number))
        save(made, tmp_path)
        noise = random.integers(0, 255, (60, 128, 128, 3), dtype=np.uint8)
        maps, masks = random.random((60, 16, 16), dtype=np.float32), random.random((60, 128, 128)) > 0.5
        maps = maps.repeat(8, axis=1).repeat(8, axis=2)
        gallery.save_pictures(tmp_path / made.path.with_suffix(""), kept, noise, maps, masks, 6)
    assert call(["report", f"results={tmp_path}", f"out={tmp_path}/report.html"]) == 0
    assert 15 * (tmp_path / "report.html").stat().st_size < 20e6


def test_hostile_names_create_no_elements(page):
    text = page.read_text(encoding="utf-8")
    elements = Elements(text).found
    assert [attributes for tag, attributes in elements if tag == "script"] == [{}]
    assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in elements if tag == "img")
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert all((each.get("href") or "#").startswith(("#", "data:,")) for _, each in elements)
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "{{7*7}}" in text
    assert "\x07" not in text


@pytest.fixture(scope="module")
def browser(page, chrome):
    chrome.get(page.as_uri())
    return chrome


def find(browser, css: str) -> list[Any]:
    return browser.find_elements("css selector", css)


def column(browser, title: str) -> list[str]:
    """The visible cells of a column in the table of records, from the top."""
    script = (
        "const [heads, rows] = ['thead th', 'tbody tr'].map(css => [...document.querySelectorAll('#table ' + css)]);"
        "const place = heads.findIndex(head => head.innerText.trim() == arguments[0]);"
        "return rows.filter(row => !row.hidden).map(row => row.cells[place].innerText)"
    )
    return browser.execute_script(script, title)


def head(browser, title: str) -> Any:
    return next(each for each in find(browser, "#table thead th") if each.text.strip() == title)


def choose(browser, css: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(find(browser, css)[0]).select_by_visible_text(value)


def reset(browser) -> None:
    find(browser, "#filters button[type=reset]")[0].click()
    browser.execute_async_script("setTimeout(arguments[0])")  # behind the page's own timer


def test_sorting(browser):
    head(browser, "image AUROC").find_element("css selector", "button").click()
    assert column(browser, "image AUROC") == ["100.00", "99.00", "97.50", "96.50", "95.00", "92.50", "90.00"]
    assert head(browser, "image AUROC").get_attribute("aria-sort") == "descending"
    head(browser, "latency (ms)").find_element("css selector", "button").send_keys("\ue007")  # the enter key
    assert column(browser, "latency (ms)") == ["100.0", "100.0", "10.0", "10.0", "–", "–", "–"]
    head(browser, "latency (ms)").find_element("css selector", "button").send_keys(" ")
    assert column(browser, "latency (ms)") == ["10.0", "10.0", "100.0", "100.0", "–", "–", "–"]
    assert len(find(browser, "#table th[aria-sort]")) == 1
    head(browser, "Category").find_element("css selector", "button").click()
    assert column(browser, "Category")[-6:] == ["bottle"] * 3 + ["zipper"] * 3


def test_filtering(browser):
    search = find(browser, "#search")[0]
    search.send_keys("ZIPPER pad")
    assert column(browser, "Method") == ["padim"]
    assert find(browser, "#count")[0].text == "1 of 7 records"
    reset(browser)
    assert len(column(browser, "Method")) == 7
    choose(browser, "#filters select", "bottle")
    assert sorted(column(browser, "Method")) == ["draem", "padim", "patchcore"]
    search.send_keys("no such word")
    assert find(browser, "#count")[0].text == "0 of 7 records"
    reset(browser)


def test_metric_selection_updates_heat_map_and_figures(browser):
    shown = "#s1 h3, #s2 h3"
    mvtec = next(each for each in find(browser, "section.setup") if "MVTec AD" in each.text).get_attribute("id")
    assert "image AUROC by category" in [each.text for each in find(browser, shown)]
    choose(browser, f"[data-group={mvtec}-metric]", "PRO")
    titles = [each.text for each in find(browser, f"#{mvtec} h3") if each.is_displayed()]
    assert titles[0] == "PRO by category"
    cells = [each for each in find(browser, f"#{mvtec} .heat td") if each.is_displayed()]
    assert {each.text for each in cells} == {"80.0", "77.5", "78.8", "90.0", "87.5", "88.8", "–"}
    shades = {each.text: each.value_of_css_property("background-color") for each in cells}
    assert len(set(shades.values())) == len(shades)


def test_gallery(browser):
    mvtec = next(each for each in find(browser, "section.setup") if "MVTec AD" in each.text).get_attribute("id")
    choose(browser, f"[data-group={mvtec}-category]", "zipper")
    titles = [each.text for each in find(browser, f"#{mvtec} h3") if each.is_displayed()]
    assert titles[1:] == ["Curves of zipper", "Worst cases of zipper"]
    cases = [each for each in find(browser, f"#{mvtec} .case") if each.is_displayed()]
    assert {each.get_attribute("data-kind") for each in cases} == {"alarm", "miss"}
    assert sum(len(each.find_elements("css selector", "[class^=series]")) for each in cases) == 3 * 6
    assert all(re.search(r"score -?[\d.]+\nrank \d+ of 12\n", each.text) for each in cases)
    broken = (
        "return [...document.images].filter(i => i.checkVisibility() && !(i.complete && i.naturalWidth == 128)).length"
    )
    assert browser.execute_script(broken) == 0
    box = find(browser, f"#{mvtec} [data-legend] input")[1]
    lines = [each for each in find(browser, f"#{mvtec} .plot .series-1") if each.is_displayed()]
    assert len(lines) >= 3
    box.send_keys(" ")
    assert not any(
        each.is_displayed() for each in find(browser, f"#{mvtec} .plot .series-1, #{mvtec} .views .series-1")
    )
    box.click()


def test_ticked_cases_become_a_file_of_labels(browser, tmp_path):
    mvtec = next(each for each in find(browser, "section.setup") if "MVTec AD" in each.text).get_attribute("id")
    button = find(browser, f"#{mvtec} [data-labels]")[0]
    assert not button.is_enabled()
    choose(browser, f"[data-group={mvtec}-category]", "zipper")
    boxes = [each for each in find(browser, f"#{mvtec} .tick input") if each.is_displayed()]
    chosen = [boxes[0], boxes[-1]]
    for box in chosen:
        box.click()
    browser.execute_script(
        "URL.createObjectURL = (blob) => { blob.text().then((t) => { window.saved = t; }); return '#'; }"
    )
    button.click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    text = browser.execute_script("return window.saved")
    alarm, miss = csv.DictReader(text.splitlines())
    assert list(alarm) == ["file", "label", "mask", "reason", "old_label"]
    assert alarm["old_label"] == "good" != miss["old_label"]
    assert [row["file"] for row in (alarm, miss)] == [box.get_attribute("value") for box in chosen]
    assert alarm["file"].startswith("zipper/test/good/")
    (tmp_path / "labels.csv").write_text(text.replace('"","",""', '"scratch","","seen in the picture"'))
    assert read_labels(tmp_path / "labels.csv").rows.keys() == {alarm["file"], miss["file"]}
    for box in chosen:
        box.click()
    assert not button.is_enabled()


def test_keyboard_reaches_everything(browser):
    browser.execute_script("window.scrollTo(0, 0); document.activeElement.blur()")
    for css, holds in (
        ("button, select, input, summary, a", "tabIndex >= 0"),
        (".scroll", "tabIndex == 0 && each.ariaLabel"),
    ):
        script = f"return [...document.querySelectorAll(arguments[0])].every(each => each.{holds})"
        assert browser.execute_script(script, css)
    browser.refresh()
    find(browser, "body")[0].send_keys("\ue004")  # the tab key
    focused = browser.switch_to.active_element
    assert focused.text == "Skip to the records"
    assert focused.is_displayed()


def test_dark_and_light(browser):
    colours = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        line = "getComputedStyle(document.querySelector('.legend .series-0 path')).stroke"
        colours.add(tuple(browser.execute_script(f"return [getComputedStyle(document.body).backgroundColor, {line}]")))
    assert len({background for background, _ in colours}) == len({line for _, line in colours}) == 2


CUT = """
document.querySelectorAll("[data-panel]").forEach((panel) => { panel.hidden = false; });
const cut = [], wide = document.documentElement.clientWidth;
let shown = 0;
for (const svg of document.querySelectorAll("figure svg")) {
  if (!svg.checkVisibility()) continue;
  const outer = svg.getBoundingClientRect(), name = svg.getAttribute("aria-label");
  shown += 1;
  if (outer.left < 0 || outer.right > wide + 0.5) cut.push(name);
  for (const part of svg.querySelectorAll("text, use")) {
    const box = part.getBoundingClientRect();
    const across = box.left >= outer.left - 1 && box.right <= outer.right + 1;
    const down = box.top >= outer.top - 1 && box.bottom <= outer.bottom + 1;
    if (box.width && !(across && down)) cut.push(`${name}: ${part.textContent || "a mark"}`);
  }
  for (let around = svg.parentElement; around; around = around.parentElement)
    if (around.matches("figure *") && around.scrollWidth > around.clientWidth + 1) cut.push(`${name} scrolls`);
}
return [shown, cut];
"""


def show(browser, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.refresh()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1400])
def test_no_figure_is_cut(browser, width, scheme):
    show(browser, width, scheme)
    try:
        shown, cut = browser.execute_script(CUT)
        assert shown >= 16
        assert cut == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.refresh()


def test_no_horizontal_scrolling_on_a_phone(browser):
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") == 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_names_stay_text(browser):
    assert browser.title == "anomaly-bench report"
    shown = HOSTILE.replace("\ud800", "\ufffd").replace("\x07", "\ufffd")
    texts = browser.execute_script("return [...document.querySelectorAll('h2, h5, td')].map(e => e.textContent)")
    assert any(shown in text for text in texts)


def test_no_requests_and_no_console_errors(browser, page):
    """The last test of this page: covers everything the others did."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(address.startswith("data:") or address.partition("#")[0] == page.as_uri() for address in asked)


@pytest.mark.slow
def test_no_figure_of_a_full_page_is_cut(tmp_path, chrome):
    """Ten categories, fifty methods with speeds, some of them with long names."""
    random = np.random.default_rng(0)
    for number, category in itertools.product(range(50), range(10)):
        points = tuple(random.uniform(50, 100, 3))
        name = f"m{number}" + "_of_a_long_name" * (number % 3)
        save(record(points, f"category{category}", name, speed=timed(5 + number)), tmp_path)
    assert call(["report", f"results={tmp_path}", f"out={tmp_path}/report.html"]) == 0
    chrome.get((tmp_path / "report.html").as_uri())
    for width, scheme in itertools.product((400, 900, 1400), ("light", "dark")):
        show(chrome, width, scheme)
        shown, cut = chrome.execute_script(CUT)
        assert shown >= 5
        assert cut == []
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_matplotlibrc_does_not_change_figures(monkeypatch):
    """matplotlib reads the one in the current folder, which may be someone else's."""
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 77.0)
    with style.styled({"axes.grid": False}):
        assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["lines.linewidth"] == matplotlib.rcParamsDefault["lines.linewidth"]
        assert matplotlib.rcParams["svg.hashsalt"] == "anomaly-bench"
        assert not matplotlib.rcParams["axes.grid"]
    assert matplotlib.rcParams["lines.linewidth"] == 77.0
