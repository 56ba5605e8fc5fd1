"""Bad input: one clear line with the file or key, what was expected and what to do; the rest still runs."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import make_category, picture, save
from PIL import Image

from anomaly_bench import records
from anomaly_bench.cli import main as main_module

SMALL = (
    *("dataset=folder", "input.resize=32", "speed=false", "gallery=0", "threads=1"),
    *("method.dimensions=5", "method.levels=[1,2]"),
)
IMAGE, DEFECT, MASK = "train/good/002.png", "test/spot/001.png", "ground_truth/spot/001_mask.png"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with healthy `data` (categories "cog" and "mat") and their `results`; do not modify."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("cog", "mat"):
        make_category(folder / "data" / name, side=32)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main_module.command([*SMALL, f"data_root={folder / 'data'}", f"results={folder / 'results'}"]) == 0
    return folder


@pytest.fixture
def data(whole, tmp_path) -> Path:
    """A copy of the healthy categories, to be corrupted."""
    return shutil.copytree(whole / "data", tmp_path / "data")


def scores(results: Path) -> dict[str, list]:
    """Category -> images and scores of its undamaged record."""
    found, damaged = records.load_all(results)
    assert damaged == []
    return {record.task: record.images for record in found}


def check(result: tuple[int, str, str], status: int, *lines: tuple[str, ...], noticed: bool = False) -> None:
    """The exit status; no traceback; one error line per fault, each with its parts; else nothing, or what is odd."""
    found, out, err = result
    assert found == status, err
    assert "Traceback" not in out + err
    assert "bug" not in err
    others = ("[1/", "[2/", "about ", *(("cog: read ", "warning: cog: ") if noticed else ()))
    errors = [line for line in err.splitlines() if not line.startswith(others)]
    assert len(errors) == len(lines), err
    for line, parts in zip(errors, lines, strict=True):
        assert line.startswith("error: ")
        assert len(line) < 600
        for part in parts:
            assert part in line


def run(command, data: Path, results: Path, *words: str) -> tuple[int, str, str]:
    return command(*SMALL, f"data_root={data}", f"results={results}", *words)


class Fault(NamedTuple):
    name: str
    corrupt: Callable[[Path], object]  # the folder of the category "cog"
    expected: tuple[str, ...]  # parts of the message: the file, what was expected, what to do


def header(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with only a few pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def dead_link(path: Path) -> None:
    path.unlink()
    try:
        path.symlink_to("nowhere.png")
    except OSError:
        pytest.skip("this user may not make links here")


def rename(path: Path, name: str) -> None:
    try:
        path.rename(path.with_name(name))
    except OSError:
        pytest.skip("this file system refuses the name")


def keep_one(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


FAULTS = [
    Fault("empty category", empty, ("no folder", "good", "expected MVTec AD's layout; add it")),
    Fault("no train folder", lambda cog: shutil.rmtree(cog / "train"), ("no folder", "train", "expected", "add it")),
    Fault("train/bad", lambda cog: (cog / "train/good").rename(cog / "train/bad"), ("no folder", "good", "add it")),
    Fault("empty train/good", lambda cog: empty(cog / "train/good"), ("no image in", "good", "add the normal images")),
    Fault("no test folder", lambda cog: shutil.rmtree(cog / "test"), ("no folder", "test", "expected", "add it")),
    Fault("empty test", lambda cog: empty(cog / "test"), ("no image in the folders of", "expected good and", "add")),
    Fault("one training image", lambda cog: keep_one(cog / "train/good"), ("1 training image", "at least 2", "add")),
    Fault("truncated PNG", lambda cog: cut_off(cog / IMAGE), ("002.png: cannot be decoded", "truncated", "replace")),
    Fault("truncated test PNG", lambda cog: cut_off(cog / DEFECT), ("001.png: cannot be decoded", "replace")),
    Fault("truncated mask", lambda cog: cut_off(cog / MASK), ("001_mask.png: cannot be decoded", "replace")),
    Fault("text named .png", lambda cog: (cog / IMAGE).write_text("hello"), ("002.png:", "not a format", "replace")),
    Fault(
        "text named _mask.png", lambda cog: (cog / MASK).write_text("hi"), ("001_mask.png:", "not a format", "replace")
    ),
    Fault("zero-byte file", lambda cog: (cog / IMAGE).write_bytes(b""), ("002.png:", "expected an image", "replace")),
    Fault(
        "decompression bomb",
        lambda cog: (cog / IMAGE).write_bytes(header(100_000, 100_000)),
        ("002.png:", "10000000000 pixels", "replace"),
    ),
    Fault(
        "pixels that are not there",
        lambda cog: (cog / IMAGE).write_bytes(header(3000, 3000)),
        ("002.png: cannot be decoded", "replace"),
    ),
    Fault(
        "32-bit float TIFF",
        lambda cog: Image.fromarray(np.zeros((32, 32), np.float32)).save(cog / "train/good/x.tif"),
        ("x.tif: 32-bit float pixels", "expected 8 or 16 bits", "convert"),
    ),
    Fault("a link to nowhere", lambda cog: dead_link(cog / IMAGE), ("002.png: cannot be read", "check the file")),
    Fault(
        "mask of another size",
        lambda cog: save(np.zeros((40, 32), np.uint8), cog / MASK),
        ("001_mask.png: 32x40 pixels", "test/spot/001.png has 32x32", "expected the same size: replace the mask"),
    ),
    Fault(
        "mask without image",
        lambda cog: (cog / DEFECT).unlink(),
        ("1 masks without an image: ground_truth/spot/001_mask.png", "remove or rename"),
    ),
    Fault(
        "masks of a defect that is not tested",
        lambda cog: shutil.copytree(cog / "ground_truth/spot", cog / "ground_truth/scratch"),
        ("3 masks without an image: ground_truth/scratch/000_mask.png", "remove or rename"),
    ),
    Fault(
        "masks in a folder of another name",
        lambda cog: (cog / "ground_truth/spot").rename(cog / "ground_truth/stop"),
        ("3 defective images have no mask", "test/spot/000.png", "expected <defect>/<stem>_mask.*", "add them"),
    ),
    Fault(
        "defect image without mask",
        lambda cog: (cog / MASK).unlink(),
        ("1 defective images have no mask", "test/spot/001.png", "expected", "add them, or remove all"),
    ),
    Fault(
        "two masks for one image",
        lambda cog: shutil.copy(cog / MASK, cog / "ground_truth/spot/001.png"),
        ("2 masks for image 001", "001.png", "001_mask.png", "keep one"),
    ),
    Fault(
        "a line break in a file name",
        lambda cog: rename(cog / IMAGE, "a\nb.png"),
        (r"'a\nb.png'", "expected a name of printable", "rename"),
    ),
    Fault(
        "a file name that is not Unicode",
        lambda cog: rename(cog / IMAGE, "\udcff.png"),
        (r"'\udcff.png'", "expected a name of printable", "rename"),
    ),
    Fault(
        "a control character in a defect's name",
        lambda cog: rename(cog / "test/spot", "\x1b[31m"),
        (r"'\x1b[31m'", "expected a name of printable", "rename"),
    ),
    Fault("a line break in a category's name", lambda cog: rename(cog, "c\nog"), (r"'c\nog'", "rename")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_faulty_category_fails_in_one_line(fault, command, data, tmp_path, whole):
    fault.corrupt(data / "cog")
    result = run(command, data, tmp_path / "results")
    check(result, 1, ("cog" if fault.name != "a line break in a category's name" else r"c\nog", *fault.expected))
    assert scores(tmp_path / "results") == {"mat": scores(whole / "results")["mat"]}
    assert "1 of 2" in result[1]
    (log,) = (tmp_path / "results" / "logs").iterdir()
    assert "Traceback" in log.read_text()


ODDITIES = {
    "mixed sizes": lambda cog: save(picture(1, 77), cog / IMAGE),
    "one pixel": lambda cog: save(np.zeros((1, 1, 3), np.uint8), cog / IMAGE),
    "all images alike": lambda cog: [save(picture(1, 32), path) for path in (cog / "train/good").iterdir()],
    "no normal test image": lambda cog: shutil.rmtree(cog / "test/good"),
    "no masks at all": lambda cog: shutil.rmtree(cog / "ground_truth"),
    "a folder named .png": lambda cog: (cog / "train/good/x.png").mkdir(),
    "every pixel a defect": lambda cog: [
        save(np.full((32, 32), 255, np.uint8), path) for path in (cog / "ground_truth/spot").iterdir()
    ],
    "a category without defects": lambda cog: (shutil.rmtree(cog / "test/spot"), shutil.rmtree(cog / "ground_truth")),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_odd_category_is_evaluated(oddity, command, data, tmp_path):
    ODDITIES[oddity](data / "cog")
    check(run(command, data, tmp_path / "results", "category=cog"), 0, noticed=True)
    (record,) = records.load_all(tmp_path / "results")[0]
    assert set(record.metrics) >= {"image_auroc", "pixel_auroc", "pro"}
    main = ["image_auroc", "pixel_auroc", "pro"]
    lacking = {"no normal test image": main[:1], "no masks at all": main[1:], "a category without defects": main}
    assert [name for name in main if record.value(name) is None] == lacking.get(oddity, [])


@pytest.mark.parametrize(
    "name", ["two words", "it's", 'a "quote"', "Gehäuse", "齿轮", "a=b", "(c)", "50%", "[red]", "x & y_z $ {1}"]
)
def test_folder_with_any_name(name, command, whole, tmp_path):
    place = tmp_path / name
    try:
        shutil.copytree(whole / "data" / "cog", place / name)
    except OSError:
        pytest.skip("this file system refuses the name")
    root = place / ".." / name
    check(command(*SMALL, f"data_root={root}", f"results={place / 'results'}"), 0)
    assert scores(place / "results") == {name: scores(whole / "results")["cog"]}
    assert name in command("data", "check", "dataset=folder", f"data_root={root}")[1]


ROOTS = {
    "no such root": (shutil.rmtree, ("data_root=", "no such folder; give a folder of categories")),
    "a file as root": (lambda root: (shutil.rmtree(root), root.write_text("")), ("data_root=", "no such folder; give")),
    "an empty root": (empty, ("data_root=", "no category found; expected", "folders there: none")),
    "another layout": (
        lambda root: (
            [(root / name).rename(root / f"{name}-images") for name in ("cog", "mat")]
            and [
                shutil.move(root / f"{name}-images" / "train", root / f"{name}-images" / "ok")
                for name in ("cog", "mat")
            ]
            and [shutil.rmtree(root / f"{name}-images" / "test") for name in ("cog", "mat")]
        ),
        ("no category found; expected <category>", "folders there: cog-images, mat-images"),
    ),
}


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("words", [(), ("data", "check")], ids=["run", "check"])
def test_root_without_categories_is_a_usage_error(name, words, command, data, tmp_path):
    corrupt, expected = ROOTS[name]
    corrupt(data)
    result = command(*words, "dataset=folder", f"data_root={data}", f"results={tmp_path / 'results'}")
    check(result, 2, expected)
    assert result[1] == ""


def test_missing_categories_are_named_once(command, whole, tmp_path):
    shutil.copytree(whole / "data" / "cog", tmp_path / "mvtec" / "bottle")
    words = (*SMALL[1:], "dataset=mvtec", f"data_root={tmp_path / 'mvtec'}", f"results={tmp_path / 'r'}")
    status, out, err = command(*words, "category=objects")
    assert status == 1
    assert err.count("categories have no folder") == 1
    assert "cable, capsule" in err
    assert "1 of 15" in out
    assert list(scores(tmp_path / "r")) == ["bottle"]


USAGE = [
    ("method=padimm", "method=padimm: no such method; did you mean padim"),
    ("method=", "expected method=NAME"),
    ("method=null", "expected method=NAME"),
    ("method=padim,spade", "several values; expected one, or -m for a run with each"),
    ("backbone=lite", "backbone=lite: no such backbone; did you mean lite"),
    ("dataset=mvtce", "dataset=mvtce: no such dataset; did you mean mvtec"),
    ("protocol=papre", "protocol=papre: no such protocol; did you mean paper"),
    ("dataset=mvtec", "dataset=mvtec needs data_root=DIR"),
    ("dataset=mvtec data_root=/no/such/folder", "data_root=/no/such/folder: no such folder; give"),
    ("seeed=1", "seeed: no such key; did you mean seed"),
    ("no.such.key=1", "no.such.key: no such key; see anomaly-bench --help"),
    ("method.dimension=3", "method.dimension: no such key; did you mean method.dimensions"),
    ("method=spade method.neighbour=3", "method.neighbour: no such key; did you mean method.neighbours"),
    ("+method.dims=3", "unexpected keyword argument 'dims'"),
    ("~seed", "method.seed: Interpolation key 'seed' not found"),
    ("~batch_size", "batch_size: no value; expected batch_size=VALUE"),
    ("~dataset", "dataset: no choice; expected dataset=NAME"),
    ("method.name=null", "method.name=None: expected a name or text in the YAML"),
    ("category=cogg", "category=cogg: data has no such category or group; did you mean cog?"),
    ("results=a,b", "several values; expected one, or -m for a run with each, or results=[a,b] for a list"),
    ("category=[]", "category=[]: expected NAME or [NAME,NAME]"),
    ("seed=-1", "seed=-1: expected a whole number from 0"),
    ("seed=x", "seed=x: expected a whole number"),
    ("seed=1e3", "seed=1000.0: expected a whole number"),
    ("seed=99999999999999999999", "seed=99999999999999999999: expected a whole number from 0 to"),
    ("seed=[1", "seed=[1: expected a whole number"),
    ("seed=${nope}", "method.seed: Interpolation key 'nope' not found"),
    ("batch_size=0", "batch_size=0: expected a whole number of at least 1"),
    ("threads=0", "threads=0: expected a whole number from 1"),
    ("threads=1000000", "threads=1000000: expected a whole number from 1 to 1024"),
    ("gallery=-1", "gallery=-1: expected a whole number of at least 0"),
    ("speed=perhaps", "speed=perhaps: expected true or false"),
    ("input.resize=7", "input.resize=7: expected at least 32 pixels"),
    ("input.resize=[256]", "expected at least 32 pixels, such as 256 or [H,W]"),
    ("input.resize=64 input.crop=65", "larger than input.resize=[64, 64]; make it smaller"),
    ("input=5", "input=5: expected input.resize=PIXELS"),
    ("precision=fp8", "precision=fp8: expected one of fp32, bf16, fp16"),
    ("device=gpu", "device=gpu: expected auto, cpu, cuda"),
    ("cache=maybe", "cache=maybe: expected auto, on, read or off"),
    ("cache_gb=0", "cache_gb=0: expected a number of GB above 0, such as 20; cache=off keeps nothing"),
    ("cache_gb=-1", "cache_gb=-1: expected a number of GB above 0"),
    ("cache_gb=nan", "cache_gb=nan: expected a number of GB above 0"),
    ("oracle=true", "oracle=true"),
    ("results=", "results=: expected a folder"),
    ("results=${x}", "results: Interpolation key 'x' not found"),
    ("method.eps=x", "method.eps=x: expected a number from 0"),
    ("method.batch=0", "method.batch=0: expected a whole number from 1"),
    ("method.sigma=1e9", "method.sigma=1000000000.0: expected a number from 0 to 1000"),
    ("method.levels=[]", "method.levels=[]: expected a list, such as [1,2,3], or all"),
    ("method.levels=[9]", "no level 9 in EfficientNet; it has stem, 0, 1"),
    ("method.dimensions=5000", "channels; expected 1 to"),
    ("backbone.mean=[1]", "backbone.mean=[1]: expected three numbers"),
    ("backbone.network=nope", "backbone.network=nope: the installed timm has no such network"),
    ("backbone.weights=/no/file", "no such file; expected pretrained, random or a weights file"),
    (f"backbone.weights={Path(__file__).name}", "no such file; expected pretrained, random or a weights file"),
    ("method._target_=nope.Nope", "method._target_=nope.Nope: cannot be imported"),
    ("tabels", "tabels: no such command; did you mean tables"),
    ("list", "list: expected one of datasets, methods, backbones, metrics, tables"),
    ("list method", "did you mean methods?"),
    ("list methods seed=1", "list methods: takes --config-dir DIR only, found seed=1"),
    ("cache clear all=true", "takes no keys"),
    ("tables results=/no/such", "no records there"),
    ("tables only.method=x results=/no/such", "no records there"),
    ("tables table=per_clas", "table=per_clas: no such table; did you mean per_class"),
    ("tables table=null", "expected table=NAME"),
    ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
    ("--mutirun", "did you mean --multirun"),
    ("--config-dir", "expected one argument"),
    ("--config-dir /no/such", "--config-dir /no/such: no such folder"),
    ("--config-name nope", "Cannot find primary config 'nope'"),
    ("--resolve", "--resolve flag can only be used in conjunction with --cfg"),
    ("run extra", "extra: expected key=value"),
    ("=1", "=1: expected key=value"),
    ("-m results=a(1,b(2", "quote each, as in"),
]


@pytest.mark.parametrize(("words", "message"), USAGE, ids=[words for words, _ in USAGE])
def test_usage_error_is_one_line_and_status_two(words, message, command, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANOMALY_BENCH_DATA", raising=False)
    given = words.split()
    if "=" in given[0] or given[0].startswith("~"):
        run = {"dataset": "folder", "data_root": str(whole / "data"), "results": "r"}
        known = {word.lstrip("~+").partition("=")[0] for word in given}
        if "dataset" in known:
            run = {"results": "r"}
        given = [*(f"{key}={value}" for key, value in run.items() if key not in known), *given]
    result = command(*given)
    check(result, 2, (message,))
    assert result[1] == ""
    assert not list(tmp_path.rglob("*.json"))


def test_invalid_weights(command, data, tmp_path):
    (tmp_path / "weights.pth").write_text("hello")
    result = run(command, data, tmp_path / "r", f"backbone.weights={tmp_path / 'weights.pth'}")
    check(result, 2, ("weights.pth: not a weights file that can be read safely", "expected safetensors, or"))


def test_a_flag_between_overrides(command, data, tmp_path):
    result = command("category=cog", "-m", *SMALL, f"data_root={data}", f"results={tmp_path / 'r'}", "seed=0,1")
    assert result[0] == 0, result[2]
    assert len(records.load_all(tmp_path / "r")[0]) == 2


def test_missing_device(command, data, tmp_path):
    check(run(command, data, tmp_path / "r", "device=cuda:97"), 2, ("device=cuda:97: this machine has cpu", "auto"))


def test_results_folder_that_is_a_file(command, data, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(command, data, tmp_path / "file")
    check(result, 2, (f"results={tmp_path / 'file'}: cannot be written", "give another folder"))


def test_tables_into_an_unwritable_file(command, whole, tmp_path):
    result = command("tables", f"results={whole / 'results'}", f"out={tmp_path}")
    check(result, 2, (f"out={tmp_path}: cannot be written", "give another file"))


def test_a_damaged_record_is_reported_and_recomputed(command, data, tmp_path, whole):
    results = shutil.copytree(whole / "results", tmp_path / "results")
    path = next(results.rglob("cog-*.json"))
    path.write_text(path.read_text()[:1000])
    status, out, err = run(command, data, results)
    assert status == 0
    assert "Traceback" not in out + err
    assert err.count("will be recomputed") == 1
    assert scores(results) == scores(whole / "results")


def test_names_with_brackets_are_shown_as_they_are(command, data):
    (data / "cog").rename(data / "[red]cog")
    (data / "[red]cog" / IMAGE).write_text("")
    status, out, _ = command("data", "check", "dataset=folder", f"data_root={data}")
    assert status == 1
    assert "[red]cog" in out


@pytest.fixture
def ordinary() -> Iterator[None]:
    """Make file permissions apply to this process: root drops the Linux capabilities that override them."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such permissions")
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("the superuser may read everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    every = sets[0]
    sets[0] = every & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = every
    assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"cog/{IMAGE}", ("002.png: cannot be read (Permission denied)", "check the file")),
        ("cog/train/good", ("good: cannot be listed (Permission denied)", "check the folder's permissions")),
        ("cog", ("cog: cannot be listed (Permission denied)", "check the folder's permissions")),
    ],
    ids=["file", "folder", "category"],
)
def test_unreadable_files(path, expected, command, data, tmp_path, ordinary, whole):
    (data / path).chmod(0)
    result = run(command, data, tmp_path / "results")
    (data / path).chmod(0o755)
    check(result, 1, expected)
    assert scores(tmp_path / "results") == {"mat": scores(whole / "results")["mat"]}


def test_unreadable_root(command, data, tmp_path, ordinary):
    data.chmod(0)
    result = run(command, data, tmp_path / "results")
    data.chmod(0o755)
    check(result, 2, ("data_root=", "cannot be listed (Permission denied)", "check its permissions"))


def test_unwritable_results_folder(command, data, tmp_path, ordinary):
    (tmp_path / "results").mkdir(mode=0o555)
    result = run(command, data, tmp_path / "results")
    check(result, 2, ("results=", "cannot be written (Permission denied)", "give another folder"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts small disks; `disk("size=1m")` is a folder."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("this user may not mount a disk here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_results_on_a_read_only_disk(command, data, disk):
    folder = disk("ro,size=1m")
    result = run(command, data, folder / "results")
    check(result, 2, ("results=", "cannot be written (Read-only file system)", "give another folder"))


def test_full_results_disk(command, data, disk, whole):
    """Room for one category's record and log only; no existing file is lost."""
    results = disk("size=1m")
    check(run(command, data, results, "category=cog"), 0)
    before = {path: path.read_bytes() for path in results.rglob("*.json")}
    with contextlib.suppress(OSError), (results / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    check(
        run(command, data, results),
        1,
        ("mat-s0-", "No space left on device; free some space"),
        ("No space left on device; free some space", "run it again"),
    )
    assert {path: path.read_bytes() for path in results.rglob("*.json")} == before
    assert not list(results.rglob(".tmp-*"))
    (results / "ballast").unlink()
    check(run(command, data, results), 0)
    assert scores(results) == scores(whole / "results")


def test_full_cache_disk_only_costs_time(command, data, disk, tmp_path, whole, monkeypatch):
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(disk("size=16k")))
    check(run(command, data, tmp_path / "results"), 0)
    assert scores(tmp_path / "results") == scores(whole / "results")


def test_disk_that_fills_up_while_features_are_written(command, data, disk, tmp_path, whole, monkeypatch):
    """It has room for the decoded images, and claims to have room for features."""
    cache = disk("size=200k")
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    check(run(command, data, tmp_path / "results", "cache=on"), 0)
    assert scores(tmp_path / "results") == scores(whole / "results")
    (log,) = (tmp_path / "results" / "logs").iterdir()
    assert "No space left on device" in log.read_text("utf-8")
    assert not list(cache.rglob(".tmp-*"))
    assert list(cache.rglob("*.npy"))


def test_file_size_limit(command, data, tmp_path):
    """A quota or `ulimit -f`: like a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        result = run(command, data, tmp_path / "results")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check(result, 1, *[(f"{name}-s0-", "File too large; free some space", "run it again") for name in ("cog", "mat")])
    assert not list((tmp_path / "results").rglob("*.json"))


def test_job_that_does_not_fit_is_refused(command, data, tmp_path):
    words = ("backbone=r18", "backbone.weights=random", "input.resize=8192", "method.dimensions=100")
    result = run(command, data, tmp_path / "results", *words)
    parts = ("at 8192x8192 pixels (statistics", "MB of memory, ", "smaller input.resize")
    check(result, 1, ("cog", *parts), ("mat", *parts))


LITTLE_MEMORY = """
import resource
from pathlib import Path
import scipy.ndimage, timm, torch, torchvision
import anomaly_bench.runs.runner
from anomaly_bench.cli.main import main
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 400_000_000,) * 2)
main()
"""


def in_little_memory(*words: str) -> tuple[int, str, str]:
    """A separate process limited to 400 MB beyond its libraries, as memory freed by other tests would count too."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of a process is not known")
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_out_of_memory(data, tmp_path):
    result = run(in_little_memory, data, tmp_path / "results", "input.resize=1024")
    check(
        result, 1, *[(name, "ran out of memory", "use a smaller batch_size, input.resize") for name in ("cog", "mat")]
    )


def test_image_that_does_not_fit_into_memory(data, tmp_path, whole):
    (data / "cog" / IMAGE).write_bytes(header(13_000, 13_000))
    result = run(in_little_memory, data, tmp_path / "results")
    check(result, 1, ("002.png: does not fit into memory", "smaller", "replace"))
    assert scores(tmp_path / "results") == {"mat": scores(whole / "results")["mat"]}
