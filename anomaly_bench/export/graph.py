"""A fitted method as one traced graph: from pixels to score, map and verdict.

    input   images   (B, H, W, 3) uint8 of the fitted size, or with `resize` of any size; B is free
    output  score    (B,) float32, the raw image score
            map      (B, H, W) float32, the raw anomaly map; not of methods that do not localise
            verdict  (B,) bool, score above the threshold; not of models without an image threshold

Resizing in the graph is Pillow's bilinear filter with antialiasing: two matrix products made from the image's size,
each rounded to whole grey levels. As Pillow's weights are fixed-point numbers, a pixel may differ by one level.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_bench.backbones.backbone import Backbone, Networks
from anomaly_bench.components.small_images import triangles
from anomaly_bench.config.settings import FILTER, input_size, resize_filter
from anomaly_bench.data.decoding import margins
from anomaly_bench.errors import UsageError, one_line

MOST = 1024  # images in a batch
LONGEST = 8192  # side of an image that the graph resizes
EXAMPLES = 3  # images in the traced batch: not 1, which torch would take for a constant


class Graph(nn.Module):
    """What is exported.

    Args:
        method: fitted or loaded, on the CPU.
        about: the model's `model.yaml`.
        threshold: of the image score; None: no verdict.
        resize: whether the graph resizes and crops.

    Raises:
        UsageError: the model's precision, channels or filter are not those of a graph.
    """

    def __init__(self, method: Any, about: Mapping[str, Any], threshold: float | None, resize: bool = False) -> None:
        super().__init__()
        if about["precision"] != "fp32":
            raise UsageError(f"the model has precision={about['precision']}; a graph has fp32: fit it with that")
        if about.get("channels", 3) != 3:
            raise UsageError(f"the model reads {about['channels']} channels; a graph takes 8-bit RGB images")
        if resize and (used := resize_filter(about["input"])) != FILTER:
            raise UsageError(f"resize=true: the graph resizes by {FILTER}, the model's input.filter is {used}")
        self.method, self.threshold, self.resizes = method, threshold, resize
        self.networks = nn.ModuleList(networks_of(method))  # registered, or their weights would not be traced
        self.size, self.crop = input_size(about["input"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See above."""
        pixels = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        if self.resizes:
            pixels = resized(resized(pixels, self.size[1]).mT, self.size[0]).mT  # rows first, as Pillow
            if self.crop is not None:
                top, left = margins(self.size, self.crop)
                pixels = pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        scores = self.method.score(pixels / 255)
        outputs = {"score": scores.image}
        if scores.map is not None:
            outputs["map"] = scores.map
        if self.threshold is not None:
            outputs["verdict"] = scores.image > self.threshold
        return outputs


def networks_of(method: Any) -> list[nn.Module]:
    """The networks of its backbone, if it has one."""
    backbone = getattr(method, "backbone", None)
    parts = backbone.networks if isinstance(backbone, Networks) else [backbone]
    return [part.network for part in parts if isinstance(part, Backbone)]


def resized(pixels: Tensor, side: int) -> Tensor:
    """(..., W) -> (..., side) whole grey levels, rounded half up as by Pillow."""
    return (pixels @ triangles(pixels.shape[-1], side).T + 0.5).floor().clamp(0, 255)


def trace(graph: Graph, title: str) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The graph of a method for any number of images, and the names of its outputs.

    Raises:
        UsageError: the method cannot be traced; with torch's reason and the line.
    """
    sides = graph.size if graph.resizes or graph.crop is None else graph.crop
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (EXAMPLES, *sides, 3), generator=generator, dtype=torch.uint8)
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MOST)}
    if graph.resizes:
        images = images.repeat(1, 2, 2, 1)
        free |= {1: torch.export.Dim("height", min=2, max=LONGEST), 2: torch.export.Dim("width", min=2, max=LONGEST)}
    with torch.no_grad(), unchanged(graph):
        names = list(graph(images))  # and what methods keep from call to call must not come from a trace
        try:
            return torch.export.export(graph.eval(), (images,), dynamic_shapes={"images": free}, strict=False), names
        except Exception as error:  # torch raises dozens of types
            why = one_line(str(error)).split(". ")[0][:200]
            raise UsageError(f"{title} cannot be exported: {why}{where(error)}; use score model=DIR") from error


@contextlib.contextmanager
def unchanged(graph: Graph) -> Iterator[None]:
    """Put back the attributes that tracing replaces by copies: a hook's dict of outputs must stay the hook's."""
    before = [(module, dict(vars(module))) for module in graph.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).update({name: value for name, value in attributes.items() if not name.startswith("_")})


def where(error: Exception) -> str:
    """' (methods/spade.py, line 152)': the innermost of our lines."""
    package = Path(__file__).parents[1]
    ours = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)]
    found = [
        (file, line)
        for file, line in zip(ours, lines, strict=True)
        if file.is_relative_to(package) and package / "export" not in file.parents
    ]
    return f" ({found[-1][0].relative_to(package).as_posix()}, line {found[-1][1]})" if found else ""
