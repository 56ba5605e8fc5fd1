"""False alarms on unseen normal images: `python benchmarks/bench_false_alarms.py`.

For each seed and category of the generated dataset, 600 normal images are divided at random: 300 to learn from, of
which `holdout=0.2` gives the thresholds, and 300 unseen ones, scored as a run scores any. Given the images that are not
fitted on, which of them are held out is chance alone. So false alarms are beta-binomial, independently for all seeds
and categories, and their sum must lie within the central 95 % of the convolution.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import betabinom

from anomaly_bench import evaluate
from anomaly_bench.data.synthetic import CATEGORIES, render
from anomaly_bench.metrics.thresholds import rank_of

SIDE, HOLDOUT, RATE = 64, 0.2, 0.05
SMALL = (f"input.resize={SIDE}", "method=padim", "backbone=lite0", "method.levels=[1,2]", "method.dimensions=20")
Alarms = tuple[int, int, int]  # false alarms, unseen images, held-out images


def draw(folder: Path, categories: Sequence[str], count: int) -> None:
    """`count` normal images of each category, as <category>/<number>.png."""

    def save(category: str, number: int) -> None:
        image = Image.fromarray(render(category, "train", number)[0]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        image.save(folder / category / f"{number:03}.png")

    with ThreadPoolExecutor(2) as pool:
        for category in categories:
            (folder / category).mkdir(parents=True)
        jobs = [pool.submit(save, category, number) for category in categories for number in range(count)]
        for job in jobs:
            job.result()


def divide(images: Path, folder: Path, seed: int) -> None:
    """A dataset of links: a random half of each category's images to learn from, the other half as its test images."""
    for category in images.iterdir():
        files = sorted(category.iterdir())
        order = np.random.default_rng(zlib.crc32(f"{seed}/{category.name}".encode())).permutation(len(files))
        for place, index in enumerate(order):
            part = "train" if place < len(files) // 2 else "test"
            link = folder / category.name / part / "good" / files[index].name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(files[index])


def false_alarms(images: Path, seed: int, *words: str) -> dict[str, Alarms]:
    """Category -> what a run counted on one division."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANOMALY_BENCH_CACHE"] = str(Path(folder, "cache"))
        divide(images, Path(folder, "data"), seed)
        made = evaluate(
            *words, dataset="folder", data_root=Path(folder, "data"), results=Path(folder, "results"), seed=seed,
            holdout=HOLDOUT, max_false_alarms=RATE, speed=False, gallery=0, cache="off",
        )  # fmt: skip
    return {
        record.task: (
            round(record.metrics["image_false_alarms"]["value"] * record.counts["test"]),
            record.counts["test"],
            record.thresholds["images"],
        )
        for record in made
        if record.thresholds is not None
    }


def interval(runs: Sequence[Alarms], share: float = 0.95) -> tuple[int, int]:
    """The central share of the sum of independent beta-binomial numbers of false alarms."""
    total = np.ones(1)
    for _, unseen, held_out in runs:
        rank = rank_of(held_out, RATE)
        total = np.convolve(total, betabinom(unseen, held_out + 1 - rank, rank).pmf(np.arange(unseen + 1)))
    low, high = np.searchsorted(np.cumsum(total), ((1 - share) / 2, (1 + share) / 2))
    return int(low), int(high)


def report(name: str, runs: Sequence[Alarms]) -> bool:
    """One line; whether the sum is within its interval."""
    alarms, unseen = sum(run[0] for run in runs), sum(run[1] for run in runs)
    low, high = interval(runs)
    inside = sum(interval([run])[0] <= run[0] <= interval([run])[1] for run in runs)
    print(
        f"{name:10} {100 * alarms / unseen:5.2f} % of {unseen} unseen normal images; 95 % interval "
        f"{100 * low / unseen:.2f} to {100 * high / unseen:.2f} %; single runs in theirs: {inside} of {len(runs)}"
    )
    return low <= alarms <= high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--normals", type=int, default=300, help="to learn from, and as many unseen ones")
    parser.add_argument("words", nargs="*", help="keys of a run; default: a small PaDiM")
    given = parser.parse_args()
    found: dict[str, list[Alarms]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), list(CATEGORIES), 2 * given.normals)
        for seed in range(given.seeds):
            for category, run in false_alarms(Path(folder), seed, *(given.words or SMALL)).items():
                found[category].append(run)
    for category, runs in found.items():
        report(category, runs)
    everything = [run for runs in found.values() for run in runs]
    raise SystemExit(not report("all", everything))


if __name__ == "__main__":
    main()
