"""Our methods against public implementations with the same weights and inputs: `make parity`.

It runs in a separate environment with the installable peers. Weights are copied by order and shape, networks are
small, numbers are float64 where both sides support it; nothing is downloaded or trained. The table is written to
results/parity.json; the exit status is 1 if a difference exceeds its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

warnings.filterwarnings("ignore")  # from the peers' imports
os.environ["TQDM_DISABLE"] = "1"  # the peers' progress bars

import distillation  # noqa: E402
import feature_methods  # noqa: E402
import flow_methods  # noqa: E402
import reconstruction  # noqa: E402
import shared  # noqa: E402
from measure import Comparison  # noqa: E402

OUT = Path(__file__).parents[2] / "results" / "parity.json"
PEERS = ("anomalib", "FrEIA", "kornia", "pytorch-msssim", "scikit-image", "scikit-learn", "scipy", "timm", "torch")
PARTS: tuple[Callable[[], Iterator[Comparison]], ...] = (
    feature_methods.comparisons,
    distillation.comparisons,
    flow_methods.comparisons,
    reconstruction.comparisons,
    shared.comparisons,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="our methods against public implementations")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows: list[Comparison] = []
    for part in PARTS:
        torch.manual_seed(0)
        for row in part():
            print(f"{row.difference:9.1e}  {row.method}: {row.part}, {row.quantity}  [{row.peer}]", flush=True)
            rows.append(row)
    table = {"versions": {name: version(name) for name in PEERS}, "comparisons": [written(row) for row in rows]}
    arguments.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    failed = [row for row in rows if not row.difference <= row.bound]
    if failed:
        raise SystemExit("\n".join(f"{row.method}: {row.part}, {row.quantity}: above {row.bound:g}" for row in failed))


def written(row: Comparison) -> dict[str, object]:
    """A row of the table, with two digits: more would vary between machines."""
    return {**asdict(row), "difference": float(f"{row.difference:.1e}")}


if __name__ == "__main__":
    main()
