"""Untrusted files, folders and servers: their content is data, and is never run, followed or waited for."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import make_category
from PIL import Image
from rich.console import Console

from anomaly_bench import load_results, records
from anomaly_bench.backbones import weights
from anomaly_bench.cli.main import command as call
from anomaly_bench.console import Reporter
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.decoding import decode_image
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import digest, image_files, plain_cell, safe_cell
from anomaly_bench.records.results_csv import write_csv
from anomaly_bench.runs.saved_model import read_about
from anomaly_bench.runs.verification import with_folder

SCRIPT = "from anomaly_bench.cli.main import main; main()"
SMALL = (
    *("dataset=folder", "input.resize=64", "speed=false", "gallery=0", "threads=1", "category=cog", "batch_size=4"),
    *("method.dimensions=20", "save_model=true"),
)
EVIL = "import pathlib; pathlib.Path(__file__).with_name('was-run').touch()\nclass Evil:\n    pass\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `data` and the `results` of one run with its model; do not modify."""
    folder = tmp_path_factory.mktemp("made")
    make_category(folder / "data" / "cog")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert call([*SMALL, f"data_root={folder / 'data'}", f"results={folder / 'results'}"]) == 0
    return folder


@pytest.fixture
def stranger(made, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of the results, and a module that writes a file when imported."""
    shutil.copytree(made / "results", tmp_path / "results")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(stranger) -> Path:
    return next((stranger / "results").rglob("model.yaml"))


@pytest.fixture
def record(stranger) -> Path:
    return next((stranger / "results" / "records").rglob("*.json"))


def change(file: Path, key: str, value: object) -> None:
    """Set a dotted key of a model.yaml or a record, and update the record's checksum."""
    text = file.read_text()
    content = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    content.pop("checksum", None)
    *path, last = key.split(".")
    node = content
    for part in path:
        node = node[part]
    node[last] = value
    if file.suffix == ".json":
        file.write_text(json.dumps({**content, "checksum": digest(content)}))
    else:
        file.write_text(yaml.safe_dump(content))


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """One usage error, and nothing was imported from the current folder."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert all(part in err for part in parts), err
    assert not Path("was-run").exists()
    assert "evil" not in sys.modules


@pytest.fixture
def score(command, model, made):
    """Scores the test images with the model."""

    def call(*words: str) -> tuple[int, str, str]:
        images = made / "data" / "cog" / "test" / "spot"
        return command("score", f"model={model.parent}", f"images={images}", "out=out", *words)

    return call


@pytest.fixture
def verify(command, record, made):
    return lambda *words: command("verify", f"record={record}", f"data_root={made / 'data'}", *words)


TARGETS = ("evil.Evil", "os.system", "subprocess.run", "anomaly_bench.cache.clear", "anomaly_bench.files.tree")


@pytest.mark.parametrize("part", ["method", "backbone"])
@pytest.mark.parametrize("target", TARGETS)
def test_saved_model_may_only_name_built_in_parts(part, target, model, score):
    change(model, f"{part}._target_", target)
    refused(score(), f"made by {target}, which is not a part of anomaly-bench", "--config-dir")


@pytest.mark.parametrize("part", ["method", "backbone"])
@pytest.mark.parametrize("target", TARGETS)
def test_record_may_only_name_built_in_parts(part, target, record, verify):
    change(record, f"config.{part}._target_", target)
    refused(verify(), f"made by {target}, which is not a part of anomaly-bench", "--config-dir")


@pytest.mark.parametrize("named", ["padim", "other"])
def test_record_cannot_choose_a_folder_that_is_read(named, record, verify, tmp_path):
    """Whatever the record calls its method, and whether or not it says that the key is a folder."""
    change(record, "config.method.anomaly_source", str(tmp_path))
    if named == "other":
        change(record, "config.method.name", named)
        change(record, "config.method._target_", "anomaly_bench.methods.padim.PaDiM")
    refused(verify(), f"method={named} was run with anomaly_source={tmp_path}; give folder=DIR")


def test_folder_of_a_record_is_the_users(record, verify, tmp_path):
    refused(verify("folder=mine"), "method=padim was run with no folder; remove folder=mine")
    node = {"name": "draem", "about": {}, "anomaly_source": "/theirs"}
    assert with_folder(node, tmp_path, ())["anomaly_source"] == str(tmp_path)


def test_saved_model_names_no_folder(model):
    change(model, "method.anomaly_source", "/")
    assert read_about(model.parent)["method"]["anomaly_source"] is None


def test_user_part_is_built_if_its_yaml_is_given(model, score):
    """Even from the current folder, as the user's own configuration names it."""
    change(model, "method._target_", "evil.Evil")
    change(model, "method.name", "mine")
    own = Path("own/method")
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("name: mine\n_target_: evil.Evil\n")
    status, _, err = score("--config-dir", "own")
    assert status == 2
    assert "method=mine: evil.Evil: " in err, "it is called, and takes no arguments"
    assert Path("was-run").exists()
    del sys.modules["evil"]
    sys.path.remove(str(Path.cwd()))


@pytest.mark.parametrize(
    "source",
    [
        {"url": "http://127.0.0.1:9/x.pth", "sha256": ""},
        {"package": "evil.weights", "file": "x.pth"},
        {"package": "torch", "file": "../../../../evil.pth"},
        {"repo": "x/y", "file": "../../evil.pth"},
    ],
    ids=str,
)
def test_saved_model_cannot_choose_the_source_of_weights(source, model, score):
    """Nor which file: the weights it was fitted on are found through the current YAML."""
    change(model, "backbone.about.pretrained", source)
    change(model, "backbone.weights", str(Path("evil.pth").resolve()))
    status, _, err = score()
    assert status == 0, err
    assert not Path("was-run").exists()


@pytest.mark.parametrize("name", ["../../../evil", "no_such", "/etc/passwd"])
def test_unknown_backbone_name_has_no_weights(name, model, score):
    change(model, "backbone.name", name)
    change(model, "backbone._target_", "anomaly_bench.backbones.Backbone")
    refused(score(), f"backbone={name}: unknown; pass --config-dir DIR")


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "cache_dir", "weights_backbone"])
def test_architecture_options_cannot_load_weights(key, model, score):
    change(model, "backbone.options", {key: "evil.pth"})
    refused(score(), f"backbone.options.{key}: loads weights")


@pytest.mark.parametrize("words", [("tables",), ("status", "category=cog"), ("list", "methods")], ids=" ".join)
def test_plugins_and_modules_in_the_current_folder_are_not_imported(words, stranger):
    """In a separate process, as Hydra looks for plug-ins once, with the console script's path."""
    for name in ("hydra_plugins/evil/__init__.py", "hydra/__init__.py", "numpy.py"):
        (stranger / name).parent.mkdir(parents=True, exist_ok=True)
        (stranger / name).write_text(EVIL)
    script = f"import sys; sys.path.remove(''); {SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr
    assert not list(stranger.rglob("was-run"))


SOURCES = [
    (
        {"url": "http://example.org/x.pth", "sha256": "a" * 64},
        "url=http://example.org/x.pth: expected an address of https",
    ),
    ({"url": "file:///etc/passwd", "sha256": "a" * 64}, "url=file:///etc/passwd: expected an address of https"),
    ({"url": "https://example.org/x.pth", "sha256": ""}, "sha256=: expected all 64 hex digits"),
    ({"url": "https://example.org/x.pth", "sha256": "7be5be79"}, "sha256=7be5be79: expected all 64 hex digits"),
    ({"package": "evil.weights", "file": "x.pth"}, "package=evil.weights: expected the name of a package"),
    ({"package": "torch", "file": "../evil.pth"}, "file=../evil.pth: expected a path below it"),
    ({"repo": "x/y", "file": "/etc/passwd"}, "file=/etc/passwd: expected a path below it"),
]


@pytest.mark.parametrize(("source", "says"), SOURCES, ids=[says for _, says in SOURCES])
def test_weights_need_https_a_full_hash_and_a_safe_path(source, says, stranger):
    with pytest.raises(UsageError, match=re.escape(f"about.pretrained.{says}")):
        weights.resolve("mine", "pretrained", source)
    assert not Path("was-run").exists()


@pytest.mark.parametrize("name", ["../../evil", "/evil", "..", "a" * 300])
def test_weights_stay_in_their_folder(name, tmp_path, monkeypatch):
    """Whatever the name of the backbone."""
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.pth").write_bytes(b"content")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        source = {
            "url": f"http://127.0.0.1:{server.server_port}/x.pth",
            "sha256": hashlib.sha256(b"content").hexdigest(),
        }
        found = weights.resolve(name, "pretrained", source).file
        server.shutdown()
    assert found.parent == tmp_path / "cache" / "weights"
    assert found.read_bytes() == b"content"


def link_to(target: str):
    return lambda path: (path.unlink(), path.symlink_to(target))


def written(content: str | bytes):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


DEEP = "[" * 100_000 + "]" * 100_000
WRONG_FILES = {
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "link to nowhere": link_to("no-such-file"),
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "link to a device": link_to("/dev/zero"),
    "link to a secret": link_to("/etc/passwd"),
    "nested deeply": written(DEEP),
    "nested deeply in a key": written('{"checksum":' * 900 + "1" + "}" * 900),
    "larger than any record": lambda path: os.truncate(path, 10**9),
    "a number of many digits": written('{"schema": 1' + "0" * 10_000 + "}"),
    "no text": written(bytes(range(256))),
    "another thing": written('"text"'),
}


@pytest.mark.skipif(sys.platform == "win32", reason="makes pipes and links")
@pytest.mark.parametrize("kind", WRONG_FILES)
def test_invalid_file_among_records_is_one_damaged_record(kind, record, command):
    """It is reported, the other records are shown, and nothing blocks."""
    other = record.with_name("cog-s1-00000000.json")
    shutil.copy(record, other)
    WRONG_FILES[kind](other)
    status, out, err = command("tables", "table=summary")
    assert status == 0, err
    assert "PaDiM" in out
    assert [line for line in err.splitlines() if line.startswith("warning: ") and other.name in line]
    found, damaged = records.load_all(Path("results"))
    assert (len(found), len(damaged)) == (1, 1)
    with pytest.warns(UserWarning, match=other.name):
        assert len(load_results("results")) == 1
    assert command("records", "convert", f"data_root={Path('data').resolve()}")[0] == 1


WRONG_VALUES = {
    "fingerprint": ["../../../../x", "", 5, None],
    "task": [None, 5, ["cog"], "x" * 20_000],
    "seed": [-1, "0", 1.5, True, None],
    "titles": [None, {"method": 5}, "PaDiM"],
    "input": [{"resize": [64]}, {"resize": [0, 0], "crop": None}, {"resize": "64", "crop": None}, []],
    "input.filter": [5, None, ["area"], "x" * 20_000],
    "counts": [{}, {"fit": -1, "test": 1, "defects": 1}, None],
    "metrics.pro": [5, {}, {"value": "high", "revision": 1}, {"value": 1.0, "revision": "1"}],
    "metrics.own": [{"value": 1.0, "revision": 1, "level": "evil"}, {"value": 1.0, "revision": 1, "digits": 10**6}],
    "curves.roc": [{"x": [0], "y": []}, {"x": ["a"], "y": ["b"]}, 7],
    "images": [[5], [{"file": None, "defect": None, "score": 1.0}], [{"file": "a", "defect": "b", "score": "c"}], {}],
    "speed": [[{}], [{"device": "x", "fps": "fast"}], None],
    "categories": [[{}], ["cog"], {}],
    "config.method": [5, {}, {"name": None}, {"name": "own", "about": 5}],
    "config.method.about.footnotes": ["x", [5], [{"setting": "size", "note": "large"}]],
    "regime": [5, {}, {"name": "few_shot", "shots": -1}],
    "cost.fit_s": ["long", None, []],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values])
def test_record_with_an_invalid_value_is_damaged(key, value, record):
    """The checksum is valid, as anybody can compute it."""
    change(record, key, value)
    with pytest.raises(records.DamagedRecord, match=r"not a record \(.*(at `?\$|curves)"):
        records.load(record)


def test_record_cannot_name_a_metric_function(record, command):
    change(record, "metrics.mine", {"value": 0.5, "revision": 1, "target": "evil.Evil", "settings": {}})
    status, out, err = command("tables", "cells=[mine]", "table=per_class")
    assert status == 0, err
    assert "mine" in out
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [1]\nb: [*a]\n", "has aliases, expected plain values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested"),
        ("a: " + "x" * 200_000, "expected at most"),
        ("!!python/object/apply:os.system [touch was-run]", "could not determine a constructor"),
        ("method: {name: padim}", "lacks backbone"),
        ("- 1", "lacks method"),
        ("\x00", "cannot be read"),
    ],
    ids=lambda text: text[:40],
)
def test_model_yaml_is_plain_and_small(text, says, model, score):
    model.write_text(text)
    refused(score(), says, "model.yaml: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("method.name", value) for value in (None, 5, ["padim"])),
        *(("input", value) for value in ({"resize": [10**9, 10**9], "crop": None}, {"resize": 64}, None)),
        *(("precision", value) for value in ("fp8", None)),
        *(("weights_sha256", value) for value in (None, {"lite0": 5})),
        *(("channels", value) for value in (-1, "3")),
        ("method.about", {"title": "x"}),
    ],
)
def test_model_yaml_has_the_expected_types(key, value, model, score):
    change(model, key, value)
    refused(score(), "model.yaml: ", "fit and save the model again")


EVIL_NAME = "\x1b[31m\u202egnp.exe\x07"


def unseen(*texts: str) -> None:
    """Nothing that a terminal would obey."""
    for text in texts:
        assert not [letter for letter in text if not letter.isprintable() and letter != "\n"], ascii(text)


def test_names_in_records_and_models_do_not_reach_a_terminal(record, model, verify, score, command):
    for key in ("titles.method", "titles.dataset", "titles.backbone", "task", "group", "dataset", "provenance.torch"):
        change(record, key, EVIL_NAME)
    change(record, "categories", [{"name": EVIL_NAME, "group": EVIL_NAME}])
    for words in (("tables",), ("tables", "format=md"), ("tables", "format=csv"), ("compare", "results=results")):
        status, out, err = command(*words)
        assert status in (0, 2), err
        unseen(out, err)
    status, _, err = verify()
    assert status == 2
    unseen(err)
    change(model, "method.about.title", EVIL_NAME)
    unseen(*score()[1:])


def test_a_files_name_does_not_reach_a_terminal(made, command, tmp_path, model):
    (tmp_path / "images").mkdir()
    for name in (EVIL_NAME, f"{EVIL_NAME}.png", "good\u2066.png"):
        shutil.copy(made / "data/cog/test/spot/000.png", tmp_path / "images" / name)
    (tmp_path / "images" / f"bad{EVIL_NAME}.png").write_text("no image")
    status, out, err = command("score", f"model={model.parent}", f"images={tmp_path / 'images'}", "out=out")
    assert status == 1
    assert r"\u202egnp.exe" in out
    unseen(out, err)
    unseen(command("score", f"model={tmp_path / EVIL_NAME}", f"images={tmp_path / 'images'}", "out=o")[2])
    unseen(command("tables", f"results={tmp_path / EVIL_NAME}")[2])


def test_bars_show_no_control_characters(capsys, monkeypatch):
    reporter = Reporter()
    reporter.console = Console(force_terminal=True, file=io.StringIO(), width=200)
    with reporter.stage(f"{EVIL_NAME}: scoring", 2) as advance:
        advance(1, EVIL_NAME)
        reporter.bars.refresh()
    drawn = reporter.console.file.getvalue()
    assert r"\x1b[31m\u202egnp.exe\x07: scoring" in drawn
    assert not {"\u202e", "\x07"} & set(drawn)
    assert "\x1b[31m" not in drawn


FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "'=1")
NUMBERS = ("-1.5", "+0.6", "1e-07", "", "plain", "a=b", 5, None)


def test_cells_of_a_csv_are_no_formulas():
    for text in FORMULAS:
        assert safe_cell(text) == f"'{text}"
        assert plain_cell(safe_cell(text)) == text
    for value in NUMBERS:
        assert safe_cell(value) == value


def test_every_csv_is_safe_in_a_spreadsheet(made, model, record, command, tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("=1+1.png", "@x.png", "plain.png")):
        shutil.copy(made / f"data/cog/test/spot/{number:03}.png", tmp_path / "images" / name)
    assert command("score", f"model={model.parent}", f"images={tmp_path / 'images'}", "out=out")[0] == 0
    change(record, "dataset", "=2+2")
    change(record, "titles.method", "@evil")
    records_found = records.load_all(Path("results"))[0]
    write_csv(records_found, tmp_path)
    text = command("tables", "format=csv")[1]
    for content in ((tmp_path / "out/scores.csv").read_text(), (tmp_path / "results.csv").read_text(), text):
        rows = list(csv.reader(io.StringIO(content)))
        cells = [cell for row in rows for cell in row if cell[:1] and cell[0] in "=+-@"]
        assert all(is_number(cell) for cell in cells), cells
        assert any(cell.startswith("'") for row in rows for cell in row)


def is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(float(text)) or True
    return False


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\n(x) (w) file\nshowpage\n%%EOF\n"
WMF = bytes.fromhex("d7cdc69a0000000000003000300060000000000000000100") + bytes(40)


@pytest.mark.parametrize(("content", "suffix"), [(POSTSCRIPT, ".eps"), (WMF, ".wmf")], ids=["eps", "wmf"])
def test_no_picture_is_drawn_by_another_program(content, suffix, tmp_path):
    """Neither by its suffix, nor under the name of another format."""
    for name in (f"a{suffix}", "b.png"):
        (tmp_path / name).write_bytes(content)
    assert [path.name for path in image_files(tmp_path)] == ["b.png"]
    with pytest.raises(DataError, match=r"b\.png: cannot be decoded \(not a format"):
        decode_image(Source(tmp_path / "b.png"), (32, 32))


def test_every_format_of_the_list_is_read(tmp_path):
    pixels = Image.new("RGB", (40, 30), (200, 30, 30))
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".gif", ".webp", ".ppm", ".tga", ".pcx", ".jp2", ".sgi"):
        pixels.save(tmp_path / f"a{suffix}")
        assert decode_image(Source(tmp_path / f"a{suffix}"), (32, 32)).values.shape == (32, 32, 3)
    assert len(image_files(tmp_path)) == 11


def test_links_to_folders_are_not_followed_when_a_folder_is_scored(made, model, command, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(made / "data/cog/test/spot/000.png", tmp_path / "images")
    (tmp_path / "images" / "secret").symlink_to(made / "data/cog/train", target_is_directory=True)
    status, _, err = command("score", f"model={model.parent}", f"images={tmp_path / 'images'}", "out=out")
    assert status == 0
    assert "1 links to folders are not followed: " in err
    assert len((tmp_path / "out/scores.csv").read_text().splitlines()) == 2


def test_a_long_name_is_cut_off_before_the_work(made, model, command, tmp_path):
    (tmp_path / "images").mkdir()
    for suffix in (".png", ".bmp"):  # two of one stem: the suffix stays in the names of their maps
        Image.new("RGB", (48, 48)).save(tmp_path / "images" / f"{'n' * 251}{suffix}")
    assert command("score", f"model={model.parent}", f"images={tmp_path / 'images'}", "out=out")[0] == 0
    assert len(list((tmp_path / "out/maps").glob("n*.npy"))) == 2


def test_a_long_category_has_a_record(made, command, tmp_path):
    name = "c" * 250
    shutil.copytree(made / "data/cog", tmp_path / "data" / name)
    words = [word for word in SMALL if not word.startswith("category=")]
    run = [*words, f"data_root={tmp_path / 'data'}", f"results={tmp_path / 'r'}", f"dataset.name={'d' * 250}"]
    assert command(*run)[0] == 0
    (record,) = records.load_all(tmp_path / "r")[0]
    assert record.task == name
    assert "already done" in command(*run)[2]


SHELLS = {
    "stdout closed": "{} >&-",
    "stderr closed": "{} 2>&-",
    "all closed": "{} <&- >&- 2>&-",
    "stdout read by nobody": "{} | true; exit ${{PIPESTATUS[0]}}",
    "stderr read by nobody": "{{ {} 2>&1 >&3 | true; exit ${{PIPESTATUS[0]}}; }} 3>/dev/null",
}


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_closed_stream_is_no_failure(shell, made, tmp_path):
    """Of a run, and of another that only prints the tables and writes them again."""
    words = [*SMALL, f"data_root={made / 'data'}", f"results={tmp_path / 'r'}"]
    if shell != "all closed":
        shutil.copytree(made / "results" / "records", tmp_path / "r" / "records")
    line = SHELLS[shell].format(shlex.join([sys.executable, "-c", SCRIPT, *words]))
    assert subprocess.run(["bash", "-c", line], timeout=300).returncode == 0
    assert len(records.load_all(tmp_path / "r")[0]) == 1
    assert (tmp_path / "r" / "results.csv").is_file()
