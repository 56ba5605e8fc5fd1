"""`make gpu` in small, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*words):
    return subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_everything_in_small(tmp_path):
    words = ("--device", "cpu", "--dry", "--methods", "padim,stfpm", "--out", str(tmp_path))
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {file.relative_to(tmp_path): json.loads(file.read_text()) for file in tmp_path.glob("*/*.json")}
    assert all(result["dry"] for result in results.values())
    parts = {"contract": ("padim", "stfpm"), "speed": ("padim", "stfpm"), "idle": ("padim", "stfpm")}
    parts |= {"memory": ("patchcore_0.01", "patchcore_0.1")}
    assert set(results) == {Path(part, f"{name}.json") for part, names in parts.items() for name in names}
    assert [results[Path("contract", f"{name}.json")]["failed"] for name in ("padim", "stfpm")] == [{}, {}]
    assert all(results[Path("speed", f"{name}.json")]["fp32_fps"] > 0 for name in ("padim", "stfpm"))
    assert "| stfpm" in (tmp_path / "speed.md").read_text()
    assert [file.parent.name for file in tmp_path.glob("records/*/*/*.json")] == ["stfpm-lite0"]
    again = run(*words)
    assert again.returncode == 0
    assert "contract: padim" not in again.stdout, "what is there is not done again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    assert "--device cpu --dry" in run().stderr
