"""All that wants a GPU, in one run of at most eight minutes without a network: `make gpu`.

Parts, in order of worth, each a process with a time box:

    contract    every method passes the contract there, and scores as on the CPU
    speed       Table 3 of Zheng et al. 2022 (arXiv 2205.14852) on the papers' backbones and inputs
    trainings   methods with epochs at their published schedules, on bottle and transistor with lite0
    memory      PatchCore on as many images as MVTec AD has; where a method of each family leaves the GPU idle

Each result is a file of its own, written at once, and is skipped when it is there: a run that was cut off goes on where
it stopped. `--dry` goes through everything in small, on any device; its results say so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from setups import FAMILIES, METHODS, setup  # noqa: E402

from anomaly_bench.hardware import devices, timing  # noqa: E402
from anomaly_bench.protocol import TrainingSet, to_tensor  # noqa: E402
from anomaly_bench.published import load_references  # noqa: E402
from anomaly_bench.testing.contract import CHECKS  # noqa: E402
from anomaly_bench.testing.setup import Setup, assert_close, pictures  # noqa: E402

BOXES = {"contract": 90, "speed": 150, "trainings": 150, "memory": 60}  # seconds
TABLE_3 = {  # method -> backbone, as in the paper; then methods that it does not time
    **{"fastflow": "wrn50", "patchcore": "wrn50", "spade": "wrn50", "cflow_ad": "wrn50"},
    **{"cs_flow": "effb5", "differnet": "alexnet", "padim": "wrn50"},
    **{"reverse_distillation": "wrn50", "stfpm": "r18", "draem": "lite0"},
}
TRAINED = ("fastflow", "cflow_ad", "cs_flow", "reverse_distillation", "stfpm", "ae_l2", "ae_ssim", "draem")
IMAGES = 209  # of bottle's training set: memory banks and galleries are as large as there
EVERY = 5354  # images of MVTec AD


@dataclass(frozen=True)
class Bench:
    """Where results go, and how much is done.

    Attributes:
        out: folder of results. data: of MVTec AD's categories. dry: everything in small.
        methods: names to go through; all others are left out.
    """

    out: Path
    data: Path
    device: str
    dry: bool
    methods: Sequence[str]

    def todo(self, part: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self.file(part, name).exists()]

    def file(self, part: str, name: str) -> Path:
        return self.out / part / f"{name}.json"

    def write(self, part: str, name: str, result: dict[str, Any]) -> None:
        file = self.file(part, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"device": devices.device_name(self.device), "torch": torch.__version__, "dry": self.dry}
        file.with_suffix(".new").write_text(json.dumps({**result, **about}, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".new").replace(file)
        print(f"{part}: {name}: {said(result)}", flush=True)


def said(result: dict[str, Any]) -> str:
    """A result in one line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
    )


def contract(bench: Bench) -> None:
    """Several methods at a time: their checks are small and leave most of a GPU idle."""
    workers = 1 if bench.dry else min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        work = {pool.submit(check_method, name, bench.device): name for name in bench.todo("contract", bench.methods)}
        for done in as_completed(work):
            bench.write("contract", work[done], done.result())


def check_method(name: str, device: str) -> dict[str, Any]:
    """The checks that fail, the difference of scores from the CPU's, and the peak of the GPU's memory."""
    timing.reset_peaks(torch.device(device))
    made, failed = setup(name, device=device), {}
    for check in (*CHECKS, as_on_the_cpu):
        try:
            check(made)
        except Exception as error:  # an answer too
            failed[check.__name__] = f"{type(error).__name__}: {str(error)[:300]}"
    return {"checks": len(CHECKS) + 1, "failed": failed, "peak_gpu_mb": timing.peak_gpu_mb(torch.device(device))}


def as_on_the_cpu(made: Setup) -> None:
    """Fitted on the CPU, a method scores the same on the device to 1e-4 of the map's range."""
    here = setup(made.method)
    method, images = here.fitted(), here.new_images()
    expected = method.score(images)
    here.network.to(made.device)
    try:
        found = method.to(made.device).score(images.to(made.device))
    finally:
        here.network.to("cpu")
    moved = type(expected)(found.image.cpu(), None if found.map is None else found.map.cpu())
    assert_close(moved, expected, f"scores on {made.device} are not those on the CPU")


def speed(bench: Bench) -> None:
    for name in bench.todo("speed", [name for name in TABLE_3 if name in bench.methods]):
        bench.write("speed", name, time_method(bench, name))
    speed_table(bench)


def time_method(bench: Bench, name: str) -> dict[str, Any]:
    """Images per second in batches, and milliseconds of one image: in fp32, bf16, and as a CUDA graph."""
    result: dict[str, Any] = {"backbone": "lite0" if bench.dry else TABLE_3[name]}
    for mode in ("fp32", "bf16", "graph"):
        if mode == "graph" and not bench.device.startswith("cuda"):
            continue
        try:
            result |= {
                f"{mode}_{key}": value for key, value in time_mode(bench, name, result["backbone"], mode).items()
            }
        except Exception as error:  # one way of running is not possible: the others count
            result[f"{mode}_failed"] = f"{type(error).__name__}: {str(error)[:300]}"
    return result


@functools.lru_cache(maxsize=1)  # a graph is made from what fp32 has fitted
def fitted(bench: Bench, name: str, backbone: str, precision: str) -> tuple[Any, tuple[int, int]]:
    """A method on its own input, fitted on generated images; weights are random, which no time depends on."""
    words = ["backbone.weights=random", f"precision={precision}"]
    probe = Setup(name, backbone, (*words, "protocol=paper")).config
    side = 64 if bench.dry else probe["input"]["crop"] or probe["input"]["resize"]
    height, width = (side, side) if isinstance(side, int) else side
    trains = "epochs" in probe["method"]
    words += ["method.epochs=1"] if trains else []
    made = Setup(name, backbone, tuple(words), device=bench.device)
    count = 4 if bench.dry else 32 if trains else IMAGES
    normals = TrainingSet("generated", pictures(count, side=max(height, width))[:, :height, :width], bench.device)
    return made.fit(made.new(), normals), (height, width)


def time_mode(bench: Bench, name: str, backbone: str, mode: str) -> dict[str, float]:
    method, (height, width) = fitted(bench, name, backbone, "bf16" if mode == "bf16" else "fp32")
    score = graphed(method, bench.device) if mode == "graph" else functools.partial(on_host, method.score)
    images = to_tensor(pictures(2 if bench.dry else 32, 1000, max(height, width))[:, :height, :width])
    entry = timing.measure({"": score}, images, torch.device(bench.device), 0.01 if bench.dry else 1.0)
    return {key: entry[key] for key in ("latency_ms", "fps") if entry[key] is not None}


def on_host(score: Callable[[Tensor], Any], images: Tensor) -> None:
    for part in score(images):
        if part is not None:
            part.cpu()


def graphed(method: Any, device: str) -> Callable[[Tensor], None]:
    """`method.score` as a CUDA graph for each size of batch: one launch instead of hundreds."""
    graphs: dict[int, tuple[Any, Tensor, Any]] = {}

    def capture(images: Tensor) -> tuple[Any, Tensor, Any]:
        still = images.clone()
        cuda: Any = torch.cuda  # partly untyped
        stream = cuda.Stream(device)
        with torch.cuda.stream(stream):
            for _ in range(3):
                method.score(still)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = method.score(still)
        return graph, still, result

    def score(images: Tensor) -> None:
        if len(images) not in graphs:
            graphs[len(images)] = capture(images)
        graph, still, result = graphs[len(images)]
        still.copy_(images)
        graph.replay()
        on_host(lambda _: result, images)

    return score


def speed_table(bench: Bench) -> None:
    """Images per second beside the paper's, both also relative to FastFlow's, in the order measured."""
    found = {file.stem: json.loads(file.read_text("utf-8")) for file in (bench.out / "speed").glob("*.json")}
    paper = {row.method: row.value for row in load_references("zheng2022_3") if row.metric == "fps"}
    rows = [
        {"method": name, "backbone": each["backbone"]}
        | {mode: each.get(f"{mode}_fps") for mode in ("fp32", "bf16", "graph")}
        | {"paper": paper.get(name)}
        for name, each in found.items()
    ]
    if not rows:
        return
    table = pd.DataFrame(rows).sort_values("fp32", ascending=False).set_index("method")
    for column, title in (("fp32", "over FastFlow"), ("paper", "over FastFlow, paper")):
        if "fastflow" in table.index:
            table[title] = table[column] / table.loc["fastflow", column]
    text = table.to_markdown(floatfmt=".2f", missingval="–")
    (bench.out / "speed.md").write_text(f"Images per second, {found[table.index[0]]['device']}\n\n{text}\n", "utf-8")
    print(text, flush=True)


def trainings(bench: Bench) -> None:
    """Four processes at a time; one that is cut off leaves no record."""
    categories = ("bottle", "transistor")
    jobs = [(name, category) for category in categories for name in TRAINED if name in bench.methods]
    with ThreadPoolExecutor(1 if bench.dry else 4) as pool:
        list(pool.map(lambda job: train(bench, *job), jobs))


def train(bench: Bench, name: str, category: str) -> None:
    words = [
        f"method={name}",
        "backbone=lite0",
        f"device={bench.device}",
        f"results={bench.out}",
        "gallery=0",
        "speed=false",
    ]
    if bench.dry:
        words += ["dataset=synthetic", "category=weave", "input.resize=64", "budget=smoke"]
    else:
        words += ["dataset=mvtec", f"data_root={bench.data}", f"category={category}"]
    program = "from anomaly_bench.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    print(f"trainings: {name} on {category}: exit {done.returncode}", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)


def memory(bench: Bench) -> None:
    for share in (0.01, 0.1):
        for name in bench.todo("memory", [f"patchcore_{share:g}"]):
            bench.write("memory", name, large_bank(bench, share))
    for name in bench.todo("idle", [name for name in FAMILIES if name in bench.methods]):
        bench.write("idle", name, idle(bench, name))


def large_bank(bench: Bench, share: float) -> dict[str, Any]:
    """PatchCore on EVERY images of 224 pixels: 64 different ones, moved about."""
    count, side = (8, 64) if bench.dry else (EVERY, 224)
    base = pictures(min(64, count), side=side)
    pixels = np.concatenate([np.roll(base, 3 * turn, axis=1 + turn % 2) for turn in range(-(-count // len(base)))])
    words = ("backbone.weights=random", f"method.ratio={share}")
    made, device = (
        Setup("patchcore", "lite0" if bench.dry else "wrn50", words, device=bench.device),
        torch.device(bench.device),
    )
    timing.reset_peaks(device)
    with timing.stopwatch(device) as elapsed:
        method = made.fit(made.new(), TrainingSet("generated", pixels[:count], bench.device))
    bank = max(method.buffers(), key=len)
    peak = {"peak_gpu_mb": timing.peak_gpu_mb(device), "peak_ram_mb": timing.peak_ram_mb()}
    return {"images": count, "kept": len(bank), "fit_s": elapsed(), **peak}


def idle(bench: Bench, name: str) -> dict[str, Any]:
    """The share of time without a kernel while 32 images are scored, and between which two the longest gap lies."""
    made = setup(name, device=bench.device)
    method, images = made.one, made.new_images().repeat(8, 1, 1, 1)
    cuda = bench.device.startswith("cuda")
    kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if cuda else [])
    method.score(images)
    with torch.profiler.profile(activities=kinds) as profile:
        method.score(images)
        timing.synchronise(torch.device(bench.device))
    spans = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in profile.events()
        if ("CUDA" if cuda else "CPU") in str(e.device_type)
    )
    if not spans:
        return {"idle": 1.0}
    gaps, until, last = [], spans[0][1], spans[0][2]
    for start, end, kernel in spans[1:]:
        if start > until:
            gaps.append((start - until, last, kernel))
        if end > until:
            until, last = end, kernel
    whole = until - spans[0][0]
    longest = max(gaps, default=(0.0, "", ""))
    return {
        "kernels": len(spans),
        "idle": sum(gap for gap, *_ in gaps) / max(whole, 1e-9),
        "longest_gap_ms": longest[0] / 1000,
        "after": longest[1][:120],
        "before": longest[2][:120],
    }


PARTS: dict[str, Callable[[Bench], None]] = {
    "contract": contract,
    "speed": speed,
    "trainings": trainings,
    "memory": memory,
}


def in_boxes(words: Sequence[str], factor: float) -> Iterator[str]:
    """Run each part in a process group of its own and end it when its time is up; yields those that failed."""
    for part, seconds in BOXES.items():
        begin = timing.clock()
        process = subprocess.Popen([sys.executable, __file__, *words, "--part", part], start_new_session=True)
        try:
            if process.wait(seconds * factor):
                yield part
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"{part}: its time is up: what is missing is done by the next run", flush=True)
        print(f"{part}: {timing.clock() - begin:.0f} s", flush=True)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="all that wants a GPU, in one run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", help="folder of the results")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "mvtec", help="MVTec AD's folder"
    )
    parser.add_argument("--device", default="cuda", help="where to compute; cpu only with --dry")
    parser.add_argument("--dry", action="store_true", help="everything in small, to see that it runs")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS, help="only these, with commas")
    parser.add_argument("--part", choices=PARTS, help="only this one, without a time box")
    chosen = parser.parse_args(words)
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use: `--device cpu --dry` goes through everything in small")
    if chosen.device == "cpu" and not chosen.dry:
        raise SystemExit("--device cpu: published schedules take days there; add --dry")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of what it starts
    if not chosen.part:
        if failed := list(in_boxes(words, 10 if chosen.dry else 1)):
            raise SystemExit(f"failed: {', '.join(failed)}")
        return
    try:
        PARTS[chosen.part](Bench(chosen.out.absolute(), chosen.data, chosen.device, chosen.dry, tuple(chosen.methods)))
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
