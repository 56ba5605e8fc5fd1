"""Speed against lower bounds and peers: `make bench`. Ratios of medians, both sides measured alternately in one run.

Each part prints its measurement, its target, and whether the target was reached. `--peer PYTHON` is the interpreter of
an environment with anomalib (`python -m venv peer && peer/bin/pip install 'anomalib==2.7.*'`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm  # noqa: F401 - imported here so that its import is not timed
import torch

from anomaly_bench.backbones import backbone
from anomaly_bench.backbones.build import find_weights
from anomaly_bench.cache import CACHE_VARIABLE, PROGRAMS
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.data import decoding
from anomaly_bench.data.dataset import Source
from anomaly_bench.files import image_files
from anomaly_bench.hardware import devices, timing
from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.protocol import Outcome, TrainingSet, to_tensor
from anomaly_bench.runs.runner import Runner
from anomaly_bench.testing.setup import Setup

THREADS = 2


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def in_turn(repeats: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each call; calls alternate, so machine noise affects all."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in samples.items()}


def show(part: str, found: dict[str, float], ratio: float, target: str, reached: bool) -> None:
    times = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in found.items())
    print(f"{part}: ratio {ratio:.2f} ({target}: {'reached' if reached else 'MISSED'}); {times}", flush=True)


def run_over_floor(data: Path) -> None:
    """(a) A run of bottle, cold store, over its floor: decoding and one pass of the same truncated backbone.

    The floor uses timm's network unchanged; ours has batch normalisation folded into the convolutions, so the run is
    also compared with that faster pass. The run finds the network as recorded by an earlier one.
    """
    setup = Setup("padim")
    fold, backbone.fold_batch_norm = backbone.fold_batch_norm, lambda network: None
    plain = Setup("padim").network
    backbone.fold_batch_norm = fold
    paths = [path for kind in (data / "bottle").glob("t*/*") for path in image_files(kind)]

    words = ["dataset=mvtec", f"data_root={data}", "category=bottle", "input.crop=224", "speed=false"]
    config = compose("config", [*words, f"threads={THREADS}", "cache=read"])  # as a single run from the command line

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder, recorded(Path(folder, "cache"), kept):
            os.environ[CACHE_VARIABLE] = f"{folder}/cache"
            summary = Runner({**config, "results": f"{folder}/results"}, Reporter()).run()
            assert not summary.failed, summary.failed

    def floor(network: Callable[[torch.Tensor], Any]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            pixels = np.stack(
                list(pool.map(lambda path: decoding.decode_image(Source(path), (256, 256)).values, paths))
            )
        for start in range(0, len(pixels), 32):
            network(to_tensor(pixels[start : start + 32, 16:240, 16:240]))

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, PROGRAMS)
        run()
        floor(plain)
        found = in_turn(5, run=run, floor=lambda: floor(plain), folded=lambda: floor(setup.network))
    ratio = found["run"] / found["floor"]
    show(f"(a) run of bottle ({len(paths)} images) over its floor", found, ratio, "at most 1.2", ratio <= 1.2)
    print(f"    over the floor with folded normalisation: {found['run'] / found['folded']:.2f} (mark: at most 1.5)")


@contextlib.contextmanager
def recorded(cache: Path, kept: Path) -> Iterator[None]:
    """An empty cache with the networks that are kept; afterwards these are what is then in the cache.

    A folder `kept` named "none" stays empty.
    """
    if kept.is_dir():
        shutil.copytree(kept, cache / PROGRAMS)
    yield
    if kept.name != "none":
        shutil.copytree(cache / PROGRAMS, kept, dirs_exist_ok=True)


def process_over_peer(data: Path, peer: str, images: str, **marks: float) -> None:
    """(b) Whole processes on the same images and weights, decoding them; anomalib as users call it, and at its leanest.

    Ours finds the network that an earlier process recorded; `first` is such an earlier process. Both find their modules
    compiled, as `pip install` leaves them.

    Args:
        marks: the least ratios, of the profiles of `peer_anomalib.py`.
    """
    weights = find_weights(compose("config", []))["lite0"]
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def ours(programs: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, recorded(Path(folder, "cache"), programs):
            words = [f"data_root={data}", "dataset=mvtec", "category=bottle", "input.crop=224", "speed=false"]
            command = [str(Path(sys.executable).with_name("anomaly-bench")), *words, f"results={folder}/results"]
            environment = {**compiled, CACHE_VARIABLE: f"{folder}/cache"}
            subprocess.run([*command, f"threads={THREADS}"], check=True, capture_output=True, env=environment)

    def theirs(profile: str) -> None:
        script = Path(__file__).with_name("peer_anomalib.py")
        with tempfile.TemporaryDirectory() as folder:
            words = ["--root", str(data), "--category", "bottle", "--method", "padim", "--weights", str(weights.file)]
            words += ["--crop", "224", "--threads", str(THREADS), "--profile", profile, "--out", f"{folder}/peer.json"]
            subprocess.run([peer, str(script), *words], check=True, capture_output=True, env=compiled)

    with tempfile.TemporaryDirectory() as folder:
        none, kept = Path(folder, "none"), Path(folder, PROGRAMS)
        calls = {"first": lambda: ours(none), "ours": lambda: ours(kept)}
        ours(kept)
        found = in_turn(3, **calls, default=lambda: theirs("default"), lean=lambda: theirs("lean"))
    for profile, mark in marks.items():
        ratio = found[profile] / found["ours"]
        part = f"(b) anomalib's process ({profile}) over ours, {images}"
        times = {name: found[name] for name in ("ours", "first", profile)}
        show(part, times, ratio, f"at least {mark:g}", ratio >= mark)


def original_size(data: Path, folder: Path) -> Path:
    """bottle's 209 + 83 images at 900x900: copies of the few originals beside the 256-pixel data.

    Timings are those of the real files; scores are meaningless.
    """
    for path in sorted((data / "bottle").glob("*/*/*.png")):
        part, kind, _ = path.relative_to(data / "bottle").parts
        beside = data.parent / "original_size" / "bottle" / part
        originals = sorted((beside / kind).glob("*.png")) or sorted(beside.glob("*/*.png"))
        target = folder / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(originals[int(path.stem[:3]) % len(originals)], target)
    return folder


def head_over_sum() -> None:
    """(c) PaDiM's head at batch 1 over summing its stored statistics + 3 ms."""
    setup = Setup("padim")
    random = np.random.default_rng(0)
    method = setup.fitted(TrainingSet("bench", random.integers(0, 256, (32, 224, 224, 3), np.uint8)))
    image = to_tensor(random.integers(0, 256, (1, 224, 224, 3), np.uint8))
    levels = setup.network(image)
    method.backbone = lambda images: levels
    calls = {"head": lambda: method.score(image), "sum": lambda: [b.sum() for b in method.buffers()]}
    in_turn(20, **calls)
    found = in_turn(100, **calls)
    ratio = found["head"] / (found["sum"] + 0.003)
    show("(c) PaDiM's head over the sum of its statistics + 3 ms", found, ratio, "at most 4", ratio <= 4)


def help_in_a_second() -> None:
    """(d) `--help` from the shell."""
    command = [str(Path(sys.executable).with_name("anomaly-bench")), "--help"]
    found = in_turn(5, help=lambda: subprocess.run(command, check=True, capture_output=True))
    show("(d) --help, over one second", found, found["help"], "below 1", found["help"] < 1)


def metrics_over_sort() -> None:
    """(e) All metrics over one torch.sort of all pixel scores."""
    random = np.random.default_rng(0)
    masks = np.zeros((83, 256, 256), np.bool_)
    for index in range(20, 83):
        top, left = random.integers(0, 200, 2)
        masks[index, top : top + 40, left : left + 40] = True
    maps = random.normal(size=masks.shape).astype(np.float32) + masks
    outcome = Outcome(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)), maps, masks)
    scores = torch.from_numpy(maps).flatten()
    found = in_turn(7, metrics=lambda: evaluate(outcome), sort=lambda: torch.sort(scores))
    ratio = found["metrics"] / found["sort"]
    show("(e) all metrics of 83 maps of 256x256 over one torch.sort", found, ratio, "at most 2", ratio <= 2)


def memory_of_wrn50() -> None:
    """(f) WR50-Rd550 on 209 images at 224 px: peak memory, in a separate process."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--wrn50"], check=True, capture_output=True, text=True)
    peak = float(done.stdout) / 2**30
    print(
        f"(f) PaDiM WR50-Rd550, 209 images at 224 px: peak {peak:.2f} GiB "
        f"(at most 6: {'reached' if peak <= 6 else 'MISSED'}), {time.perf_counter() - begin:.0f} s",
        flush=True,
    )


def fit_wrn50() -> None:
    setup = Setup("padim", "wrn50", ("backbone.weights=random",))
    pixels = np.random.default_rng(0).integers(0, 256, (209, 224, 224, 3), np.uint8)
    timing.reset_peaks(torch.device("cpu"))
    method = setup.fitted(TrainingSet("memory", pixels))
    method.score(to_tensor(pixels[:8]))
    print((timing.peak_ram_mb() or 0) * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mvtec"), help="the MVTec categories")
    parser.add_argument("--peer", help="the Python of an environment with anomalib")
    parser.add_argument("--wrn50", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.wrn50:
        return fit_wrn50()
    print(f"{devices.device_name('cpu')}, {THREADS} threads, torch {torch.__version__}", flush=True)
    help_in_a_second()
    metrics_over_sort()
    head_over_sum()
    memory_of_wrn50()
    if (arguments.data / "bottle").is_dir():
        run_over_floor(arguments.data.resolve())
        if arguments.peer:
            process_over_peer(arguments.data.resolve(), arguments.peer, "256-pixel bottle", default=6, lean=4.5)
            with tempfile.TemporaryDirectory() as folder:
                large = original_size(arguments.data.resolve(), Path(folder))
                process_over_peer(large, arguments.peer, "bottle at 900x900", default=4, lean=3.5)
    else:
        print(f"no bottle in {arguments.data}: (a) and (b) are skipped; set DATA=DIR")


if __name__ == "__main__":
    main()
