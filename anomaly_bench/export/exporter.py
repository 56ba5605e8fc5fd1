"""Trace, write, check: a graph's file appears only once it scores like the model, with the proof beside it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import DataError
from anomaly_bench.export import formats
from anomaly_bench.export.check import MARK, compare, eager, failures
from anomaly_bench.export.graph import Graph, trace
from anomaly_bench.export.images import Images, as_fitted
from anomaly_bench.files import write_atomically
from anomaly_bench.version import __version__

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter


@dataclass(frozen=True)
class Wanted:
    """The keys of `export`, checked."""

    format: str
    out: Path
    resize: bool
    threads: int


def export(wanted: Wanted, method: Any, about: Mapping[str, Any], images: Images, reporter: Reporter) -> dict[str, Any]:
    """Write the graph of a loaded method and its proof, `FILE.check.json`; return the proof.

    Raises:
        UsageError: the method, or one of its operations, cannot be exported, or the runtime cannot run it.
        DataError: the graph does not score like the model; nothing is written.
    """
    title, threshold = about["method"]["about"]["title"], (about.get("thresholds") or {}).get("image")
    module = formats.format_module(wanted.format)
    graph = Graph(method, about, threshold, wanted.resize)
    with reporter.stage("tracing", None):
        program, names = trace(graph, title)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=wanted.out.parent) as folder:
        file = Path(folder, wanted.out.name)
        with reporter.stage(f"writing {wanted.format}", None):
            module.write(program, names, file)
        run = module.load(file, names, wanted.threads)
        proof = check(graph, run, about, images, reporter)
        if missed := list(failures(proof)):
            raise DataError(
                f"{title}: the {wanted.format} graph does not score like the model: {'; '.join(missed)}; not written"
            )
        written = sorted(os.listdir(folder))
        for name in written:
            os.replace(Path(folder, name), wanted.out.parent / name)
    backbone = about["backbone"]
    proof = {
        "anomaly_bench": __version__,
        "format": wanted.format,
        "files": written,
        "method": about["method"]["name"],
        "backbone": "none" if backbone is None else backbone["name"],
        "input": {**about["input"], "in_graph": wanted.resize},
        "outputs": names,
        "threshold": threshold,
        "threads": wanted.threads,
        "versions": formats.versions(module),
        "mark": MARK,
        **proof,
    }
    write_atomically(wanted.out.with_name(f"{wanted.out.name}.check.json"), json.dumps(proof, indent=1) + "\n")
    return proof


def check(
    graph: Graph, run: formats.Run, about: Mapping[str, Any], images: Images, reporter: Reporter
) -> dict[str, Any]:
    """The facts of a graph against its model and, where it resizes, apart from them against Pillow's resizing."""
    node, count = about["input"], len(images.sources)
    with reporter.stage("checking", count) as advance:
        seen = images.whole() if graph.resizes else images.fitted(node)
        facts = compare(eager(graph), run, seen, graph.threshold, advance).facts(images.labels)
    if graph.resizes:
        plain = eager(Graph(graph.method, about, graph.threshold))
        with reporter.stage("comparing with Pillow", count) as advance:
            pillow = compare(lambda each: plain(as_fitted(each, node)), run, images.whole(), graph.threshold, advance)
        facts["against_pillow"] = pillow.facts(images.labels)
    return facts


def described(proof: Mapping[str, Any]) -> Sequence[str]:
    """The facts of a check, in words."""
    parts = [f"{proof['images']} images"]
    if "map_error" in proof:
        parts.append(f"largest error of a map {proof['map_error']:.1e} of the range")
    parts.append(f"of a score {proof['score_error']:.1e}")
    if "verdicts" in proof:
        parts.append(f"{proof['verdicts']['differ']} verdicts differ")
    if "image_auroc" in proof:
        model, graph = proof["image_auroc"]["model"], proof["image_auroc"]["graph"]
        parts.append(f"image AUROC {graph:.6f} (model: {model:.6f})")
    return parts
