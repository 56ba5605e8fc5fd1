"""Fuzzing: random mutations of a small dataset and of the command line.

    python tests/fuzz.py --minutes 2 [--seed 7]

Each case has its own seed: it copies a healthy tree with finished records, corrupts it, and runs a corrupted command
line, usually in this process, every tenth time in a separate one. There must be no traceback, unknown exit status or
hang, and no earlier record may be lost, changed or damaged. Every third case changes the tree in a way whose meaning is
known (`fuzz_kinds`): metrics must stay as they were, or what was noticed must be said, or the category refused. Each
violation is printed once, with the command line that reproduces it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import faulthandler
import io
import json
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import make_category, save
from fuzz_kinds import (
    AS_BEFORE,
    NOTICED,
    REFUSED,
    SCORED,
    Expected,
    Kind,
    Tree,
    dialect,
    replace,
    same_size,
    values,
    write_table,
)
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomaly_bench import records
from anomaly_bench.cli.main import command
from anomaly_bench.config import compose
from anomaly_bench.hardware import timing

SECONDS = 600  # after which a case counts as hanging, even on a busy machine
EVERY = 10  # case runs in a separate process
MEANT = 3  # every third case has a known meaning
QUICK = ["dataset=folder", "input.resize=32", "speed=false", "gallery=0", "threads=1", "method.dimensions=5"]


QUICK += ["method.levels=[1,2]"]


LETTERS = "abz019 _-.,:;=+~@#$%&*?!|/\\'\"`()[]{}<>\t\n\x00\x1b\x7füß齿🦀\u202e\udcff"
VALUES = (
    *("", "null", "true", "-1", "0", "1", "2", "7", "1e3", "1.5", "nan", "inf", "-inf", "x", "[]", "[1]", "[1,2]"),
    *("{}", "{a:1}", "[[1]]", "99999999999999999999", "0x10", "1_0", "${seed}", "${nope}", "${", "'", '"', "a,b"),
    *("a b", "../..", "/", ".", "[32,33]", "[32,-1]", "all", "cog", "[cog,mat]", "none", "~", "*", "random"),
    *("pretrained", "auto", "cpu", "cuda:9", "é"),
)
WORDS = (
    *(
        "run",
        "tables",
        "list",
        "data",
        "cache",
        "check",
        "methods",
        "job",
        "data check",
        "list backbones",
        "cache list",
    ),
    *("--help", "--version", "-m", "--multirun", "--cfg", "--info", "--resolve", "--package", "--config-dir"),
    *("--config-name", "--config-path", "--hydra-help", "--shell-completion", "--experimental-rerun", "-x", "--", "-"),
)
CHOICES = ("padim", "spade", "patchcore", "mahalanobis_ad", "lite0", "r18", "mvtec", "folder", "paper", "unified")
PLACES = {"results", "data_root", "out", "model", "images", "maps"}
Rng = random.Random


def text(rng: Rng) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 8)))


def file_name(rng: Rng) -> str:
    """Characters allowed in Linux file names, sometimes with an image suffix."""
    name = text(rng).replace("/", "").replace("\x00", "").strip(".") or "x"
    return name + rng.choice(["", ".png", ".PNG", ".jpg", ".txt", "_mask.png"])


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())


def delete(rng: Rng, root: Path, path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(rng: Rng, root: Path, path: Path) -> None:
    if path.is_file():
        os.truncate(path, rng.randint(0, path.stat().st_size))


def flip(rng: Rng, root: Path, path: Path) -> None:
    """Change some bytes."""
    if path.is_file() and path.stat().st_size:
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)


def rename(rng: Rng, root: Path, path: Path) -> None:
    path.rename(path.with_name(file_name(rng)))


def move(rng: Rng, root: Path, path: Path) -> None:
    path.rename(rng.choice([root, *folders(root)]) / path.name)


def swap(rng: Rng, root: Path, path: Path) -> None:
    other = rng.choice(files(root))
    if path.is_file():
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)


def duplicate(rng: Rng, root: Path, path: Path) -> None:
    names = [file_name(rng), path.stem + path.suffix * 2, path.stem.removesuffix("_mask") + ".bmp"]
    target = path.with_name(rng.choice(names))
    shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def become_file(rng: Rng, root: Path, path: Path) -> None:
    delete(rng, root, path)
    path.write_text(text(rng).encode("utf-8", "replace").decode())


def become_folder(rng: Rng, root: Path, path: Path) -> None:
    delete(rng, root, path)
    path.mkdir()


def become_link(rng: Rng, root: Path, path: Path) -> None:
    """A link into the tree, to its parent (a loop), or to nowhere."""
    delete(rng, root, path)
    path.symlink_to(rng.choice([root, path.parent, Path("nowhere"), path, *files(root)]))


def become_pipe(rng: Rng, root: Path, path: Path) -> None:
    delete(rng, root, path)
    os.mkfifo(path)


def forbid(rng: Rng, root: Path, path: Path) -> None:
    path.chmod(rng.choice([0, 0o111, 0o444, 0o222]))


def another_mode(rng: Rng, root: Path, path: Path) -> None:
    """Save as grey, palette, alpha or 16 bits, or in another size or format, under the same name."""
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "HSV", "LAB"])
    size = (rng.choice([1, 2, 31, 32, 33, 200]), rng.choice([1, 32, 77]))
    kind = rng.choice(["PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
    with contextlib.suppress(OSError, KeyError, ValueError):
        Image.new(mode, size, 1).save(path if path.is_file() else path / file_name(rng), kind)


def huge_header(rng: Rng, root: Path, path: Path) -> None:
    """A PNG whose header claims a huge number of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    sides = [rng.choice([0, 1, 32, 5000, 60_000, 2**31 - 1]) for _ in range(2)]
    size = struct.pack(">II5B", *sides, rng.choice([1, 8, 16, 99]), rng.choice([0, 2, 3, 6, 9]), 0, 0, 0)
    if path.is_file():
        pieces = chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))


def another_mask(rng: Rng, root: Path, path: Path) -> None:
    masks = [each for each in files(root) if "ground_truth" in each.parts]
    if masks:
        sides = rng.choice([(32, 32), (32, 32), (1, 1), (64, 32)])
        save(np.full(sides, rng.choice([0, 1, 255]), np.uint8), rng.choice(masks).with_suffix(".png"))


def another_kind(rng: Rng, root: Path, path: Path) -> None:
    """A kind of file that others have, in whatever state the tree is in."""
    with contextlib.suppress(Exception):
        rng.choice([*AS_BEFORE, *NOTICED, *REFUSED])(Tree(rng, root / rng.choice(["cog", "mat"])))


TREE: list[Callable[[Rng, Path, Path], None]] = [
    *(delete, truncate, truncate, flip, flip, rename, move, swap, duplicate, become_file, become_folder, become_link),
    *(become_pipe, forbid, another_mode, another_mode, huge_header, another_mask, another_kind, another_kind),
]


def corrupt_tree(rng: Rng, root: Path, done: Counter[str]) -> None:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8])):
        paths = files(root) + folders(root)
        if paths:
            mutation = rng.choice(TREE)
            with contextlib.suppress(OSError, ValueError, IndexError):  # the name is taken, or no file is left
                mutation(rng, root, rng.choice(paths))
                done[mutation.__name__] += 1


def corrupt_results(rng: Rng, results: Path, done: Counter[str]) -> None:
    """Sometimes damage a record before the run; the others must survive."""
    found = sorted(results.rglob("*.json"))
    if rng.random() < 0.1 and found:
        rng.choice([truncate, flip])(rng, results, rng.choice(found))
        done["a damaged record"] += 1


def corrupt_words(rng: Rng, words: list[str], keys: list[str], done: Counter[str]) -> list[str]:
    words = list(words)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        kind = rng.randrange(9)
        place = rng.randrange(len(words) + 1)
        done["command line"] += 1
        if kind in (0, 1, 2):
            words.insert(place, f"{rng.choice(['', '', '', '+', '++', '~'])}{rng.choice(keys)}={rng.choice(VALUES)}")
        elif kind == 3:
            words.insert(place, f"{rng.choice(keys)}={text(rng)}")
        elif kind == 4:
            words[place:place] = rng.choice(WORDS).split()
        elif kind == 5 and words:
            del words[place % len(words)]
        elif kind == 6 and words:  # insert, delete or replace a character
            word = words[place % len(words)]
            if word.partition("=")[0] not in PLACES:
                at = rng.randrange(len(word) + 1)
                words[place % len(words)] = word[:at] + rng.choice(LETTERS) + word[at + rng.randint(0, 1) :]
        elif kind == 7:
            words.insert(place, text(rng))
        else:
            group = rng.choice(["method", "backbone", "dataset", "protocol"])
            words.insert(place, f"{group}={rng.choice(CHOICES)}")
    return words


class Fuzz:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        for name in ("cog", "mat"):
            make_category(folder / "whole" / "data" / name, train=4, good=2, defects=2, side=32)
        for path in files(folder / "whole"):  # all images of one size in bytes
            replace(path, values(path), compress_level=0)
        self.cases, self.done, self.statuses = 0, Counter[str](), Counter[int]()
        words = [*QUICK, f"data_root={folder / 'whole/data'}", f"results={folder / 'whole/results'}"]
        assert self.in_process([*words, "save_maps=true", "save_model=true"])[0] == 0
        primaries = ("config", "tables", "report", "score", "data")
        known = (compose.known_keys(primary, []) for primary in primaries)
        keys = {"hydra.run.dir", "hydra.job.name"}.union(*known)
        self.keys = sorted(keys - PLACES)  # a case stays in its own folder
        timing.measure.__defaults__ = (0.01, *timing.measure.__defaults__[1:])  # type: ignore[index]
        timing.LEAST_CALLS, timing.WARM_UP = 1, 0

    def case(self, number: int) -> str | None:
        """Run one case; return what went wrong, or None."""
        rng = Rng(f"{self.seed}/{number}")
        here = self.folder / "case"
        shutil.copytree(self.folder / "whole", here)
        if number % MEANT == MEANT - 1:
            found, words = self.meant(rng, here)
            return self.told(number, found, words, here)
        corrupt_tree(rng, here / "data", self.done)
        corrupt_results(rng, here / "results", self.done)
        before = outlines(here / "results")
        words = corrupt_words(rng, self.start(rng, here), self.keys, self.done)
        words = [word for word in words if "\x00" not in word]  # not possible in an argument
        alone = number % EVERY == EVERY - 1
        os.chdir(here)
        found: str | None = None
        try:
            status, screen = self.alone(words) if alone else self.in_process(words)
            self.statuses[status] += 1
            found = judge(status, screen)
        except subprocess.TimeoutExpired:
            found = f"hangs for more than {SECONDS} s"
        finally:
            os.chdir(self.folder)
        after = outlines(here / "results")
        lost = [name for name, outline in before.items() if after.get(name) != outline]
        found = f"lost or changed records: {lost}" if lost and found is None else found
        return self.told(number, found, words, here)

    def told(self, number: int, found: str | None, words: list[str], here: Path) -> str | None:
        """What went wrong, with the command lines that show it again."""
        free(here)
        if found is None:
            return None
        again = f"python tests/fuzz.py --seed {self.seed} --case {number}"
        return f"{found}\n  case {number}: anomaly-bench {shlex.join(words)}\n  again: {again}"

    def start(self, rng: Rng, here: Path) -> list[str]:
        """A command line that works with the healthy tree."""
        data, results = f"data_root={here / 'data'}", f"results={here / 'results'}"
        model = sorted(path.parent for path in (here / "results").rglob("model.yaml"))
        uses = [
            *3 * [[*QUICK, data, results]],
            [*QUICK, data, results, "overwrite=true", f"seed={rng.randint(0, 9)}"],
            ["data", "check", "dataset=folder", data],
            ["tables", results],
            ["report", results, f"out={here / 'report.html'}"],
            ["score", f"maps={here / 'results'}", "dataset=folder", data],
            ["score", f"model={model[0]}", f"images={here / 'data' / 'cog'}", f"out={here / 'scored'}", "threads=1"],
        ]
        return rng.choice(uses)

    def meant(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        """A case of known meaning: what went wrong or None, and its command line."""
        uses = [(self.as_before, 4), (self.noticed, 4), (self.refused, 3), (self.changed, 1), (self.scored, 2)]
        uses += [(self.listed, 1), (self.tabled, 2)]
        return rng.choices([use for use, _ in uses], [weight for _, weight in uses])[0](rng, here)

    def as_before(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        chosen = sorted(rng.sample(range(len(AS_BEFORE)), rng.choice([1, 2, 3, 5])))
        return self.kinds(rng, here, [AS_BEFORE[index] for index in chosen])

    def noticed(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        return self.kinds(rng, here, [rng.choice(NOTICED)])

    def refused(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        return self.kinds(rng, here, [rng.choice(REFUSED)])

    def kinds(self, rng: Rng, here: Path, kinds: list[Kind]) -> tuple[str | None, list[str]]:
        """Change one category in these ways and run it."""
        expected = self.apply(kinds, Tree(rng, here / "data" / "cog"))
        words = [*QUICK, f"data_root={here / 'data'}", f"results={here / 'results'}"]
        before = cogs(here / "results")
        wrong, screen = self.judged(words)
        new = [record for name, record in cogs(here / "results").items() if name not in before]
        wrong = wrong or unsaid(expected, screen)
        if wrong is None and any(each.refused for each in expected) and new:
            wrong = "not refused"
        if wrong is None and all(each.same for each in expected):
            if not new and "cog: already done" not in screen:
                wrong = "no record"
            wrong = next(filter(None, (unlike(record, next(iter(before.values()))) for record in new)), wrong)
        names = [kind.__name__ for kind in kinds]
        return wrong and f"{wrong} after {', '.join(names)}:\n{screen}", words

    def apply(self, kinds: list[Kind], tree: Tree) -> list[Expected]:
        expected = []
        for kind in kinds:
            with contextlib.suppress(IndexError, StopIteration):  # no file is left to change
                expected.append(kind(tree))
                self.done[kind.__name__] += 1
        return expected

    def judged(self, words: list[str]) -> tuple[str | None, str]:
        status, screen = self.in_process(words)
        self.statuses[status] += 1
        return judge(status, screen), screen

    def changed(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        """A file gets other pixels, and keeps size and modification time."""
        words = [*QUICK, f"data_root={here / 'data'}", f"results={here / 'results'}"]
        wrong, screen = self.judged(words)
        same_size(rng, here / "data" / "cog")
        before = cogs(here / "results")
        wrong, screen = (wrong, screen) if wrong else self.judged(words)
        self.done["same size and time"] += 1
        if wrong is None and len(cogs(here / "results")) != len(before) + 1:
            wrong = f"the old hash was taken:\n{screen}"
        return wrong, words

    def scored(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        """A folder of images for a saved model: it says what a run says, and gives the same scores."""
        shutil.copytree(here / "data" / "cog" / "test", here / "other" / "test")
        kinds = [rng.choice(SCORED)]
        expected = self.apply(kinds, Tree(rng, here / "other"))
        (record,) = cogs(here / "results").values()
        model = (here / "results" / record.path).with_suffix("")
        words = ["score", f"model={model}", f"images={here / 'other'}", f"out={here / 'scored'}", "threads=1"]
        wrong, screen = self.judged([*words, "device=cpu"])
        wrong = wrong or unsaid(expected, screen)
        if wrong is None and all(each.same for each in expected):
            with (here / "scored" / "scores.csv").open(newline="", encoding="utf-8") as file:
                found = {row["file"].rpartition(".")[0]: float(row["score"]) for row in csv.DictReader(file)}
            right = {image["file"].rpartition(".")[0]: image["score"] for image in record.images}
            if found.keys() != right.keys() or not np.allclose([found[name] for name in right], [*right.values()]):
                wrong = f"other scores: {found}, in the run {right}"
        return wrong and f"{wrong} after {kinds[0].__name__}:\n{screen}", words

    def listed(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        """A list of images in any dialect is read as the layout is, or refused in one line."""
        how, rows = dialect(rng), []
        for path in files(here / "data"):
            category, split, kind, name = path.relative_to(here / "data").parts
            if split != "ground_truth":
                mask = f"{category}/ground_truth/{kind}/{path.stem}_mask.png" if kind == "spot" else ""
                rows.append([f"{category}/{split}/{kind}/{name}", kind, mask, split, category])
        write_table(here / "data" / "list.csv", how, ["file", "label", "mask", "split", "category"], rows)
        results = here / "again"
        words = [*QUICK, f"data_root={here / 'data'}", f"results={results}", "dataset.csv=list.csv"]
        wrong, screen = self.judged(words)
        self.done["dataset.csv"] += 1
        found, right = list(cogs(results).values()), list(cogs(here / "results").values())
        if wrong is None and not found and "list.csv" not in screen:
            wrong = "neither read nor refused"
        wrong = wrong or (unlike(found[0], right[0]) if found else None)
        return wrong and f"{wrong}, written as {how}:\n{screen}", words

    def tabled(self, rng: Rng, here: Path) -> tuple[str | None, list[str]]:
        """Scores of another program, in any dialect."""
        how, truth, scores, rows = dialect(rng), [], [], []
        top = rng.choice([1.0, 1.0, 90.0, 5000.0])
        for path in files(here / "data"):
            name = path.relative_to(here / "data")
            if name.parts[1] == "test":
                score = round(rng.uniform(0, top) + top * (name.parts[2] == "spot") / 2, how.places)
                save_map(here / "maps" / name.with_suffix(".npy"), rng)
                rows.append([name.as_posix(), score])
                truth.append((name.parts[0], name.parts[2] == "spot"))
                scores.append(score)
        write_table(here / "scores.csv", how, ["file", "score"], rows)
        words = ["score", f"maps={here / 'maps'}", "dataset=folder", f"data_root={here / 'data'}"]
        words += [f"scores={here / 'scores.csv'}", f"out={here / 'measured'}"]
        wrong, screen = self.judged(words)
        self.done["scores="] += 1
        file = here / "measured" / "metrics.json"
        if wrong is None and not file.is_file():
            wrong = "refused" if how.plain else None if "scores=" in screen else "neither read nor refused"
        for each in json.loads(file.read_text("utf-8"))["results"] if wrong is None and file.is_file() else ():
            own = [
                (label, score) for (name, label), score in zip(truth, scores, strict=True) if name == each["category"]
            ]
            right = roc_auc_score(*zip(*own, strict=True))
            if abs(each["image_auroc"] - right) > 1e-9:
                wrong = f"image AUROC {each['image_auroc']}, right {right}"
        return wrong and f"{wrong}, written as {how}:\n{screen}", words

    def in_process(self, words: list[str]) -> tuple[int, str]:
        screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                status = command(words)
        finally:
            faulthandler.cancel_dump_traceback_later()
        return status, screen.buffer.getvalue().decode()  # type: ignore[attr-defined]

    def alone(self, words: list[str]) -> tuple[int, str]:
        code = "from anomaly_bench.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
        self.done["as a process of its own"] += 1
        return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def judge(status: int, screen: str) -> str | None:
    if "Traceback (most recent call last)" in screen or "is a bug of" in screen:
        return "a bug:\n" + screen
    if status not in (0, 1, 2):
        return f"exit status {status}:\n{screen}"
    if (
        status
        and "error: " not in screen
        and "warning: " not in screen
        and "official" not in screen
        and "│" not in screen
    ):
        return f"exit status {status} without a reason:\n{screen}"
    return None


def unsaid(expected: list[Expected], screen: str) -> str | None:
    lacking = [each.said for each in expected if each.said not in screen]
    return f"not said: {lacking}" if lacking else None


def cogs(results: Path) -> dict[str, records.Record]:
    """The records of the first category, by file name."""
    return {each.path.name: each for each in records.load_all(results)[0] if each.task == "cog"}


def unlike(record: records.Record, right: records.Record) -> str | None:
    """How a record's numbers differ from those of another, whatever the order of the images."""
    for name, entry in right.metrics.items():
        if not np.isclose(record.metrics[name]["value"], entry["value"], atol=1e-6):
            return f"{name} is {record.metrics[name]['value']}, was {entry['value']}"
    scores = [sorted(image["score"] for image in each.images) for each in (record, right)]
    same = len(scores[0]) == len(scores[1]) and np.allclose(*scores, rtol=1e-4)
    return None if same else f"scores are {scores[0]}, were {scores[1]}"


def save_map(path: Path, rng: Rng) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(rng.randrange(10**6)).random((32, 32), np.float32))


def outlines(results: Path) -> dict[str, list[dict[str, object]]]:
    """Undamaged record -> images and scores."""
    found = {}
    for path in results.rglob("*.json"):
        with contextlib.suppress(records.DamagedRecord, OSError):
            found[path.name] = records.load(path).images
    return found


def free(folder: Path) -> None:
    """Delete a folder whose permissions were removed."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", type=int, help="only this one")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["ANOMALY_BENCH_CACHE"] = str(folder / "cache")
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    fuzz, found = Fuzz(folder, chosen.seed), {}
    number, end = chosen.case or 0, time.monotonic() + 60 * chosen.minutes
    while number == chosen.case or (chosen.case is None and time.monotonic() < end):
        wrong = fuzz.case(number)
        if wrong:
            kind = re.sub(r"\d|/tmp\S+|[0-9a-z_]{8}\.log|'[^']*'", "", wrong.partition("\n  case")[0])
            if kind not in found:
                print(f"\n{wrong}", flush=True)
            found.setdefault(kind, wrong)
        number += 1
    print(f"seed {chosen.seed}: {number} cases, exit statuses {dict(sorted(fuzz.statuses.items()))}")
    print(", ".join(f"{name} {count}" for name, count in fuzz.done.most_common()))
    shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
