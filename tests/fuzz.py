"""Fuzzing: random mutations of a small dataset and of the command line.

    python tests/fuzz.py --minutes 2 [--seed 7]

Each case has its own seed: it copies a healthy tree with finished records, corrupts it, and runs a corrupted command
line, usually in this process, every tenth time in a separate one. There must be no traceback, unknown exit status or
hang, and no earlier record may be lost, changed or damaged. Each violation is printed once, with the command line that
reproduces it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
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
from PIL import Image

from anomaly_bench import records
from anomaly_bench.cli.main import command
from anomaly_bench.config import compose
from anomaly_bench.hardware import timing

SECONDS = 600  # after which a case counts as hanging, even on a busy machine
EVERY = 10  # case runs in a separate process
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


TREE: list[Callable[[Rng, Path, Path], None]] = [
    *(delete, truncate, truncate, flip, flip, rename, move, swap, duplicate, become_file, become_folder, become_link),
    *(become_pipe, forbid, another_mode, another_mode, huge_header, another_mask),
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
            found.setdefault(re.sub(r"\d|/tmp\S+|[0-9a-z_]{8}\.log|'[^']*'", "", wrong.partition("\n  case")[0]), wrong)
        number += 1
    print(f"seed {chosen.seed}: {number} cases, exit statuses {dict(sorted(fuzz.statuses.items()))}")
    print(", ".join(f"{name} {count}" for name, count in fuzz.done.most_common()))
    for wrong in found.values():
        print(f"\n{wrong}")
    shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
