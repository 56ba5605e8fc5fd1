"""Floors of the methods that train: their own network after a single step, and the mean training image.

`python benchmarks/floors.py WORDS` runs the command `anomaly-bench -m WORDS` with a budget of one step, and with the
mean image as the method, into build/floors; `make floors` does so for all committed records of methods that train.
`python benchmarks/floors.py` without words prints these floors beside the records in results/.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomaly_bench import load_results
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

HERE = Path(__file__).parent
FLOORS = HERE.parent / "build" / "floors"
REPLACED = ("budget=", "method.epochs=", "results=", "gallery=", "speed=")  # words
METRICS = ("image_auroc", "pixel_auroc", "pro")


class MeanImage(nn.Module):
    """Squared difference from the mean of the training images, averaged over channels; the mean of this map."""

    mean: Tensor  # (C, H, W)

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        self.register_buffer("mean", torch.zeros(shapes[0]))

    def fit(self, normals: TrainingSet) -> None:
        for images in normals.images(32):
            self.mean += images.sum(dim=0) / len(normals)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        maps = (images - self.mean).square().mean(dim=1)
        return Scores(maps.mean(dim=(1, 2)), maps)


def run(words: Sequence[str]) -> None:
    """Run the command with these words into FLOORS, for one step and with the mean image; records are not repeated."""
    kept = [word for word in words if not word.startswith(REPLACED)]
    sweep(*kept, "budget=1")
    sweep(*(word for word in kept if not word.startswith(("method", "backbone"))), "method=mean_image")


def sweep(*words: str) -> None:
    """`anomaly-bench -m` into FLOORS, with the mean image among the methods."""
    program = Path(sys.executable).with_name("anomaly-bench")
    command = [program, "-m", "--config-dir", HERE / "floors", *words, f"results={FLOORS}", "gallery=0", "speed=false"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HERE)})


def table() -> str:
    """Markdown, in %: each record of a method that trains, then after one step, then the mean image."""
    records, floors = load_results("results"), load_results(FLOORS)
    trained = records[records["train_steps"].notna()]
    means = floors[floors["method"] == "mean_image"]
    first = floors[floors["method"] != "mean_image"]
    keys = ["dataset", "category", "seed", "resize", "crop"]
    found = trained.merge(first, on=[*keys, "method", "backbone"], suffixes=("", " 1 step"))
    found = found.merge(means, on=keys, suffixes=("", " mean image"))
    columns = [metric + suffix for metric in METRICS for suffix in ("", " 1 step", " mean image")]
    found[columns] *= 100
    shown: str = found[["dataset", "category", "seed", "method", *columns]].to_markdown(index=False, floatfmt=".1f")
    return shown


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1:])
    else:
        print(table())
