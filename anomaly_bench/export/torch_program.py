"""format=torch: an exported program, for `torch.export.load`, which needs no code of anomaly-bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from anomaly_bench.export.formats import Run

SUFFIX = ".pt2"
PACKAGES = ("torch",)


def write(program: torch.export.ExportedProgram, names: Sequence[str], file: Path) -> None:
    """Save it."""
    torch.export.save(program, file)


def load(file: Path, names: Sequence[str], threads: int) -> Run:
    """Run it from the file."""
    module: Any = torch.export.load(file).module()
    torch.set_num_threads(threads)

    def run(images: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in module(torch.from_numpy(images)).items()}

    return run
