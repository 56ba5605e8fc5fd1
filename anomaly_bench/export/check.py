"""Whether an exported graph scores like the model: both see the same images, in batches of several sizes.

The marks: the map's largest error at most 1e-4 of the range of all maps, the score's at most 1e-4 of the range of all
scores, no verdict that differs unless its score is that close to the threshold, an image AUROC within 1e-4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_bench.export.formats import Run
from anomaly_bench.metrics.metrics import evaluate
from anomaly_bench.metrics.registry import metric_set
from anomaly_bench.protocol import Outcome

MARK = 1e-4  # see above
BATCHES = (1, 2, 5)  # images, in turn


@dataclass
class Comparison:
    """Two ways to score the same images.

    Attributes:
        pairs: (score of the model, of the graph) of each image.
        verdicts: the graph's; empty without a threshold.
        map_error: largest absolute difference of a map's value; None: no maps.
        lowest, highest: value of the model's maps.
    """

    threshold: float | None
    pairs: list[tuple[float, float]] = field(default_factory=list)
    verdicts: list[bool] = field(default_factory=list)
    map_error: float | None = None
    lowest: float = np.inf
    highest: float = -np.inf

    def add(self, ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> None:
        """The outputs of one batch."""
        self.pairs += zip(ours["score"].tolist(), theirs["score"].tolist(), strict=True)
        self.verdicts += theirs["verdict"].tolist() if "verdict" in theirs else []
        if "map" in ours:
            error = float(np.abs(ours["map"].astype(np.float64) - theirs["map"]).max())
            self.map_error = max(self.map_error or 0.0, error)
            self.lowest, self.highest = min(self.lowest, ours["map"].min()), max(self.highest, ours["map"].max())

    @property
    def range(self) -> float:
        """Highest minus lowest score of the model."""
        scores = [ours for ours, _ in self.pairs]
        return max(scores) - min(scores) or abs(scores[0])

    def facts(self, labels: Sequence[bool] | None) -> dict[str, Any]:
        """What is reported; errors are shares of the range.

        Args:
            labels: of the images, True: defective; None: not known.
        """
        ours, theirs = (np.array(scores) for scores in zip(*self.pairs, strict=True))
        found: dict[str, Any] = {
            "images": len(ours),
            "score_error": share(float(np.abs(ours - theirs).max()), self.range),
        }
        if self.map_error is not None:
            found["map_error"] = share(self.map_error, float(self.highest - self.lowest))
        if self.threshold is not None:
            differ = (ours > self.threshold) != np.array(self.verdicts)
            near = np.abs(ours - self.threshold) <= MARK * self.range
            found["verdicts"] = {"differ": int(differ.sum()), "not_near_the_threshold": int((differ & ~near).sum())}
        if labels is not None and len(set(labels)) == 2:
            found["image_auroc"] = {"model": auroc(labels, ours), "graph": auroc(labels, theirs)}
        return found


def share(error: float, span: float) -> float:
    return error / span if span else error


def auroc(labels: Sequence[bool], scores: NDArray[Any]) -> float:
    metrics = {"image_auroc": metric_set("standard")["image_auroc"]}
    value = evaluate(Outcome(np.array(labels), scores, None, None), metrics).values["image_auroc"]
    assert value is not None, "there are images of both kinds"
    return value


def failures(facts: dict[str, Any]) -> Iterator[str]:
    """The marks that are missed."""
    for name in ("map_error", "score_error"):
        if not facts.get(name, 0.0) <= MARK:
            yield f"{name} {facts[name]:.2g} of the range (at most {MARK:g})"
    if wrong := facts.get("verdicts", {}).get("not_near_the_threshold"):
        yield f"{wrong} verdicts differ"
    if both := facts.get("image_auroc"):
        gap = abs(both["model"] - both["graph"])
        if gap > MARK:
            yield f"image AUROC differs by {gap:.2g} (at most {MARK:g})"


def compare(
    ours: Run, theirs: Run, images: Iterable[NDArray[np.uint8]], threshold: float | None, advance: Any
) -> Comparison:
    """Both ways on all (H, W, 3) images; images of different sizes are not put into one batch."""
    comparison, sizes = Comparison(threshold), itertools.cycle(BATCHES)
    for batch in batches(images, sizes):
        comparison.add(ours(batch), theirs(batch))
        advance(len(batch))
    return comparison


def batches(images: Iterable[NDArray[np.uint8]], sizes: Iterator[int]) -> Iterator[NDArray[np.uint8]]:
    """(B, H, W, 3) of neighbouring images of one size."""
    for _, group in itertools.groupby(images, key=lambda image: image.shape):
        while part := list(itertools.islice(group, next(sizes))):
            yield np.stack(part)


def eager(module: torch.nn.Module) -> Run:
    """The model itself, not traced."""

    def run(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            return {name: value.detach().numpy() for name, value in module(torch.from_numpy(images)).items()}

    return run
