"""Coreset, PatchCore and SPADE against bare matrix products and against anomalib.

The second part of `make bench`. As in benchmarks/bench.py, whose helpers it uses: ratios of medians, both sides
measured alternately in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench import THREADS, in_turn, seconds, show
from torch import Tensor

from anomaly_bench.components.coreset import k_centre
from anomaly_bench.components.neighbours import nearest, squared_lengths
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.runs.evaluator import Evaluator
from anomaly_bench.runs.job import make_job
from anomaly_bench.runs.runner import Runner
from anomaly_bench.testing.setup import Setup

if TYPE_CHECKING:
    from anomaly_bench.runs.job import Job

PEER = Path(__file__).with_name("peer_anomalib.py")
LARGE, DIMENSIONS, FIRST = 5000 * 784, 152, 500  # patches of 5,000 images, features, centres


def bottle(data: Path, method: str) -> tuple[Runner, Job]:
    words = ["dataset=mvtec", f"data_root={data}", "category=bottle", "input.crop=224", f"threads={THREADS}"]
    runner = Runner(
        compose("config", [*words, f"method={method}", "results=" + tempfile.mkdtemp()]),
        Reporter(),
    )
    return runner, make_job(runner.config, runner.settings, runner.dataset, runner.weights, "bottle")


def embedding(job: Job) -> Tensor:
    """(163856, 152) of bottle's 209 training images."""
    setup, normals = Setup("patchcore"), TrainingSet("bottle", job.pixels(job.task.fit))
    method = setup.new()
    method.build(setup.shapes(normals.size))
    return torch.cat([method.embed(levels) for levels in normals.features(method.backbone, 32)])


def peer_result(python: str, *words: str) -> Any:
    """The result of the peer's script, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "peer.json")
        command = [python, str(PEER), *words, "--threads", str(THREADS), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(out.read_text("utf-8"))


def coreset_over_peer(points: Tensor, chosen: Tensor, python: str) -> None:
    """(g) 1 % of the real embedding."""
    before = seconds(lambda: k_centre(points, len(chosen)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "points.npy")
        np.save(file, points.numpy())
        peer = peer_result(python, "--stage", "kcenter", "--array", str(file), "--ratio", "0.01")
    found = {"ours": (before + seconds(lambda: k_centre(points, len(chosen)))) / 2, "anomalib": peer["seconds"]}
    ratio = found["anomalib"] / found["ours"]
    shape = f"{len(chosen)} of {len(points)} x {points.shape[1]}"
    show(f"(g) anomalib's coreset over ours, {shape}", found, ratio, "at least 8", ratio >= 8)
    radius = float(nearest(points, points[chosen]).distances.max().sqrt())
    over = radius / peer["covering_radius"]
    reached = "reached" if over <= 1.01 else "MISSED"
    print(f"    covering radius {radius:.4f}, anomalib's {peer['covering_radius']:.4f} (at most 1 % more: {reached})")


def fit_over_peer(data: Path, python: str) -> None:
    """(h) From files to a fitted model: decoding, backbone, coreset, without imports on both sides."""
    runner, job = bottle(data, "patchcore")

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ANOMALY_BENCH_CACHE"] = folder
            Evaluator(runner.config, runner.weights, runner.settings, Reporter()).fit(job)

    before = seconds(ours)
    words = ["--root", str(data), "--category", "bottle", "--method", "patchcore", "--weights"]
    peer = peer_result(python, *words, str(runner.weights["lite0"].file), "--ratio", "0.01")
    found = {"ours": (before + seconds(ours)) / 2, "anomalib": peer["seconds"]["fit"] - peer["seconds"]["import"]}
    ratio = found["anomalib"] / found["ours"]
    show("(h) anomalib's PatchCore fit over ours, bottle, 1 %", found, ratio, "at least 6", ratio >= 6)
    print("    peer:", {key: peer[key] for key in ("image_auroc", "pixel_auroc", "pro", "seconds")})


def product(queries: Tensor, bank: Tensor, rows: int) -> Callable[[], None]:
    """The bare blocked matrix product, each block into the same buffer."""
    block = torch.empty(rows, len(queries))

    def call() -> None:
        for part in torch.split(bank, rows):
            torch.mm(part, queries.T, out=block[: len(part)])

    return call


def head_over_product(bank: Tensor, image: Tensor, share: str) -> None:
    """(i) PatchCore at batch 1 without its backbone."""
    setup = Setup("patchcore")
    method, levels = setup.new(), setup.network(image)
    method.build(setup.shapes((image.shape[2], image.shape[3])))
    method.eval()
    method.bank, method.norms, method.backbone = bank, squared_lengths(bank), lambda images: levels
    calls: dict[str, Callable[[], Any]] = {
        "head": lambda: method.score(image),
        "product": product(method.embed(levels), bank, 512),
    }
    in_turn(5, **calls)
    found = in_turn(30, **calls)
    ratio = (found["head"] - 0.004) / found["product"]
    show(f"(i) PatchCore's head, {share} bank, less 4 ms, over the product", found, ratio, "at most 1.3", ratio <= 1.3)


def spade_over_product(data: Path) -> None:
    """(j) SPADE with its backbone, one image at a time, over 3136 x 156,800 distances in 176 dimensions."""
    _, job = bottle(data, "spade")
    setup = Setup("spade")
    method = setup.fitted(TrainingSet("bottle", job.pixels(job.task.fit)))
    tests = to_tensor(job.pixels(job.task.tests["test"])[::6])
    image = iter(tests.repeat(9, 1, 1, 1).split(1))
    random = torch.Generator().manual_seed(0)
    bare = product(*(torch.randn(n, 176, generator=random) for n in (3136, 50 * 3136)), 512)
    calls: dict[str, Callable[[], Any]] = {"spade": lambda: method.score(next(image)), "product": bare}
    in_turn(1, **calls)
    found = in_turn(15, **calls)
    ratio = found["spade"] / found["product"]
    show("(j) SPADE per image over a bare product of that size", found, ratio, "at most 1.2", ratio <= 1.2)


def large_coreset() -> None:
    """(k) The first centres of 3.9 million points, in a separate process."""
    done = subprocess.run([sys.executable, __file__, "--large"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    peak = result["peak"] / 2**30
    count = LARGE // 100
    print(
        f"(k) first {FIRST} centres of {LARGE} x {DIMENSIONS}: {result['seconds']:.0f} s, peak {peak:.2f} GiB "
        f"(at most 6: {'reached' if peak <= 6 else 'MISSED'}); at the rate since centre {result['half']}, "
        f"{count} (1 %) take {(result['seconds'] + (count - FIRST) * result['rate']) / 60:.0f} min",
        flush=True,
    )


def select_large() -> None:
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, DIMENSIONS, generator=random)  # the typical intrinsic dimension of features
    points = torch.empty(LARGE, DIMENSIONS)
    for part in torch.split(points, 100_000):
        torch.mm(torch.randn(len(part), 24, generator=random), mixing, out=part)
    timing.reset_peaks(torch.device("cpu"))
    marks, begin = {0: 0.0}, time.perf_counter()  # centres: seconds

    def advance(centres: int) -> None:
        marks[max(marks) + centres] = time.perf_counter() - begin

    k_centre(points, FIRST, advance=advance)
    whole, half = max(marks), max(count for count in marks if count <= FIRST // 2)
    rate = (marks[whole] - marks[half]) / (whole - half)
    peak = (timing.peak_ram_mb() or 0) * 1e6
    print(json.dumps({"seconds": marks[whole], "peak": peak, "half": half, "rate": rate}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mvtec"), help="the MVTec categories")
    parser.add_argument("--peer", help="the Python of an environment with anomalib")
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    memory.keep_freed()
    if arguments.large:
        return select_large()
    print(f"{devices.device_name('cpu')}, {THREADS} threads, torch {torch.__version__}", flush=True)
    large_coreset()
    data = arguments.data.resolve()
    if not (data / "bottle").is_dir():
        return print(f"no bottle in {data}: (g) to (j) are skipped; pass --data DIR")
    spade_over_product(data)
    _, job = bottle(data, "patchcore")
    points, image = embedding(job), to_tensor(job.pixels(job.task.tests["test"])[:1])
    chosen = k_centre(points, len(points) // 10)
    head_over_product(points[chosen[: len(points) // 100]], image, "1 %")
    head_over_product(points[chosen], image, "10 %")
    if arguments.peer:
        coreset_over_peer(points, chosen[: len(points) // 100], arguments.peer)
        fit_over_peer(data, arguments.peer)
    return None


if __name__ == "__main__":
    main()
