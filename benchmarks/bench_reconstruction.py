"""The image-space methods on a CPU: `python benchmarks/bench_reconstruction.py [METHOD ...]`.

Full training needs a GPU. This shows that the loss falls over a few hundred steps at 128 x 128 pixels, and that defects
planted in unseen images of the synthetic data raise the image score and, within the defect, the map. `--peak` instead
shows the memory of one step of DRAEM at 256 x 256 pixels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from bench import THREADS

from anomaly_bench.config.compose import compose
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.data.decoding import decode_image
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample

SIDE, STEPS = 128, 300
WORDS = {  # published sizes; batches and epochs for STEPS steps within minutes
    "ae_l2": ("method.samples=320", "method.batch=32"),
    "ae_ssim": ("method.samples=320", "method.batch=32"),
    "draem": ("method.batch=2",),
}


def show(name: str, category: str) -> None:
    task = open_dataset(compose("config", ["dataset=synthetic"])["dataset"], None).task(category)
    training = decoded(task.fit)
    batch = int(dict(word.split("=") for word in WORDS[name])["method.batch"])
    steps = 10 if name != "draem" else -(-len(training) // batch)  # per epoch
    setup = Setup(name, overrides=(*WORDS[name], f"method.epochs={STEPS // steps}"), side=SIDE)
    begin = timing.clock()
    method = setup.fitted(TrainingSet(category, training))
    taken = timing.clock() - begin
    told = method.facts["training"]["curve"]
    losses: list[float] = told["loss"]
    chosen = np.linspace(0, len(losses) - 1, 6).astype(int)
    curve = ", ".join(f"{told['steps'][point]}: {losses[point]:.4f}" for point in chosen)
    print(f"{name}, {len(training)} images of {category}, {STEPS // steps * steps} steps of {batch}, {taken:.0f} s")
    print(f"    loss by step: {curve}; {'falls' if losses[-1] < losses[0] else 'DOES NOT FALL'}")
    clean = to_tensor(decoded([image for image in next(iter(task.tests.values())) if image.label is None][:16]))
    planted, spot = clean.clone(), slice(SIDE * 3 // 8, SIDE * 5 // 8)
    planted[:, :, spot, spot] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    before, after = method.score(clean), method.score(planted)
    higher = int((after.image > before.image).sum())
    raised = int(((after.map - before.map)[:, spot, spot].mean(dim=(1, 2)) > 0).sum())
    print(
        f"    planted defects above their clean twins: image score {higher}, map {raised} of {len(clean)}", flush=True
    )


def show_peaks() -> None:
    """The published batch at once and in its smallest parts, each in a separate process."""
    for parts in (1, 8):
        command = [sys.executable, __file__, "--step", str(parts)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def step(parts: int) -> None:
    """One step of DRAEM: its memory and time."""
    setup = Setup("draem", overrides=("method.epochs=1", f"method.accumulate={parts}"), side=256)
    images = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8)
    timing.reset_peaks(torch.device("cpu"))
    begin = timing.clock()
    setup.fitted(TrainingSet("noise", images))
    taken = timing.clock() - begin
    print(f"draem, a batch of 8 at 256 px in {parts}: peak {timing.peak_ram_mb():.0f} MB, {taken:.0f} s")


def decoded(images: list[Sample]) -> np.ndarray:
    return np.stack([decode_image(image.sources[0], (SIDE, SIDE)).values for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(WORDS), help="reconstruction methods")
    parser.add_argument("--category", default="gear", help="of the synthetic data")
    parser.add_argument("--peak", action="store_true", help="measure the memory of DRAEM")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    memory.keep_freed()
    if arguments.step:
        return step(arguments.step)
    print(f"{devices.device_name('cpu')}, {THREADS} threads, torch {torch.__version__}", flush=True)
    if arguments.peak:
        return show_peaks()
    for name in arguments.methods:
        show(name, arguments.category)


if __name__ == "__main__":
    main()
