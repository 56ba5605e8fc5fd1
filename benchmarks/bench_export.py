"""Exported graphs against their models: `python benchmarks/bench_export.py --data DIR [METHOD ...]`.

Each method is fitted on one category (with its smallest budget, as weights change neither the check nor the time),
exported to every format whose packages are installed, and checked on all test images. Then the model itself and its
graphs score one image in turn, so that noise of the machine falls on all: latency is the median over such calls.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_bench.cli.main import command
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.errors import UsageError
from anomaly_bench.export import formats, images
from anomaly_bench.export.check import eager
from anomaly_bench.export.graph import Graph
from anomaly_bench.hardware import devices, timing
from anomaly_bench.runs import saved_model

SUFFIXES = {name: formats.importlib.import_module(f"anomaly_bench.export.{module}").SUFFIX
            for name, module in formats.FORMATS.items()}  # fmt: skip
HEADS = ("method", "runtime", "map error", "score error", "image AUROC, model / graph", "verdicts", "latency, ms")


def told(words: Sequence[str]) -> str:
    """What a command complains about; '': it is done."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command(list(words))
    return "" if status == 0 else (err.getvalue() or out.getvalue()).strip().splitlines()[-1]


def installed() -> list[str]:
    found = []
    for name in formats.FORMATS:
        with contextlib.suppress(UsageError):
            formats.format_module(name)
            found.append(name)
    return found


def latencies(calls: dict[str, Callable[[Any], Any]], pixels: Any, seconds: float) -> dict[str, float]:
    """Median milliseconds of each."""
    timed = {f"{name}_": call for name, call in calls.items()}
    entry = timing.measure(timed, torch.from_numpy(pixels[:1]), torch.device("cpu"), seconds)
    return {name: float(np.median(entry[f"{name}_latency_samples_ms"])) for name in calls}


def show(method: str, given: argparse.Namespace, folder: Path) -> None:
    """The rows of one method."""
    keys = [f"data_root={given.data}", f"category={given.category}", "dataset=mvtec", f"input.resize={given.side}"]
    keys += [f"results={folder}", "holdout=0.2", "save_model=true", "speed=false", "gallery=0", f"method={method}"]
    if why := told([*keys, "budget=smoke", "threads=1"]):
        return print(f"| {method} | - | not fitted: {why} | | | | |", flush=True)
    (about,) = folder.rglob("model.yaml")
    model, proofs, times = about.parent, {}, {}
    for name in installed():
        out = folder / f"graph{SUFFIXES[name]}"
        why = told(["export", f"model={model}", f"format={name}", f"out={out}", f"data_root={given.data}", "threads=1"])
        proofs[name] = why or json.loads(out.with_name(f"{out.name}.check.json").read_text("utf-8"))
    known, node = saved_model.load_model(model), saved_model.read_about(model)
    found = images.of_record(model, {"data_root": given.data, "weights": None, "folder": None}, [])
    pixels = np.stack(list(itertools.islice(found.fitted(node["input"]), 4)))
    exported = [name for name, proof in proofs.items() if not isinstance(proof, str)]
    for threads in (1, 2) if exported else ():
        torch.set_num_threads(threads)
        graph = eager(Graph(known, node, None))
        calls = {"model": lambda batch, run=graph: run(batch.numpy())}
        for name in exported:
            run = formats.format_module(name).load(folder / f"graph{SUFFIXES[name]}", proofs[name]["outputs"], threads)
            calls[name] = lambda batch, run=run: run(batch.numpy())
        times[threads] = latencies(calls, pixels, given.seconds)
    for name, proof in proofs.items():
        if isinstance(proof, str):
            print(f"| {method} | {name} | refused: {proof.removeprefix('error: ')} | | | | |", flush=True)
            continue
        auroc, verdicts = proof["image_auroc"], proof.get("verdicts", {}).get("differ", "-")
        shown = "; ".join(
            f"{threads}: {each[name]:.1f} (model {each['model']:.1f}, {each['model'] / each[name]:.2f}x)"
            for threads, each in times.items()
        )
        errors = [f"{proof[key]:.1e}" if key in proof else "-" for key in ("map_error", "score_error")]
        both = f"{auroc['model']:.6f} / {auroc['graph']:.6f}"
        print(f"| {' | '.join((method, name, *errors, both, str(verdicts), shown))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all")
    parser.add_argument("--data", required=True, help="the folder of MVTec AD's categories")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--side", type=int, default=256, help="pixels of the input")
    parser.add_argument("--seconds", type=float, default=4, help="for timing, per method and number of threads, twice")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            return show(given.methods[0], given, Path(folder))
    print(f"{devices.device_name('cpu')}, torch {torch.__version__}; latency by number of threads, in turn\n")
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    for method in given.methods or choices("method", [conf_folder()]):  # each in a process of its own: memory
        words = [f"--data={given.data}", f"--category={given.category}", f"--side={given.side}", "--one"]
        subprocess.run([sys.executable, __file__, method, *words, f"--seconds={given.seconds}"], check=False)


if __name__ == "__main__":
    main()
