"""A backbone that runs a recorded program, and is created only for what no program does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_bench.backbones import program

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.backbones.program import Program


class RecordedBackbone:
    """A `Backbone` in fp32 for a CPU; elsewhere it is the backbone itself.

    Programs are found or recorded for the image sizes whose shapes are asked for.

    Args:
        make: creates the backbone.
        identity: all that determines it: its arguments, revision, weights and levels.
    """

    def __init__(self, make: Callable[[], Backbone], identity: Mapping[str, Any]) -> None:
        self.make, self.identity = make, identity
        self.programs: dict[tuple[int, ...], Program | None] = {}  # by channels and image size; None: not recordable
        self.device = torch.device("cpu")

    @functools.cached_property
    def created(self) -> Backbone:
        """The backbone itself, also while tensors are made without values."""
        with torch.device("cpu"):
            return self.make().to(self.device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "make" not in vars(self):  # while being copied
            raise AttributeError(name)
        return getattr(self.created, name)

    def to(self, device: torch.device | str) -> RecordedBackbone:
        """Move in place."""
        self.device = torch.device(device)
        if "created" in vars(self):
            self.created.to(self.device)
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        known = self.programs.get(tuple(images.shape[1:])) if images.device.type == "cpu" else None
        if known is None:
            return self.created(images)
        with torch.no_grad():
            return known(images)

    @property
    def paths(self) -> list[str]:
        """Paths of the modules that are read."""
        for known in filter(None, self.programs.values()):
            return list(known.about["paths"])
        return self.created.paths

    def shapes(self, size: tuple[int, int], channels: int = 3) -> list[tuple[int, int, int]]:
        """See `Backbone`."""
        return self.infer_shapes(size, channels)[0]

    def infer_shapes(self, size: tuple[int, int], channels: int = 3) -> tuple[list[tuple[int, int, int]], int]:
        """See `Backbone`."""
        known = self.program(size, channels)
        if known is None:
            return self.created.infer_shapes(size, channels)
        return list(known.about["shapes"]), known.about["most"]

    def tiles(self, size: tuple[int, int], channels: int = 3) -> bool:
        """See `Backbone`."""
        known = self.program(size, channels)
        return self.created.tiles(size, channels) if known is None else known.about["tiles"]

    def program(self, size: tuple[int, int], channels: int) -> Program | None:
        """The program for (channels, H, W) images; None: there is none."""
        image = (channels, *size)
        if image not in self.programs and self.device.type == "cpu":
            name = program.key(self.identity, image)
            with torch.device("cpu"):
                found = program.find(name)
                if found is None:
                    found = program.record(self.created, image)
                    if found is not None:
                        program.keep(found, name)
            self.programs[image] = found
        return self.programs.get(image)
