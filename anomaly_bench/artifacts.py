"""What a run keeps beside its record when asked: anomaly maps and the fitted model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.jobs import Job, construct, find_weights
from anomaly_bench.records import write_atomically


def save_maps(folder: Path, maps: NDArray[np.float32]) -> None:
    """`maps.npy`: raw float32 anomaly maps (N, H, W) in the order of the record's images."""
    buffer = io.BytesIO()
    np.save(buffer, maps)
    write_atomically(folder / "maps.npy", buffer.getvalue())


def save_model(folder: Path, method: nn.Module, job: Job) -> None:
    """`model.safetensors` (parameters and stored statistics) and `model.yaml` (what `load_model` needs besides)."""
    state = {name: value.contiguous().cpu() for name, value in method.state_dict().items()}
    about = {
        "method": job.config["method"],
        "backbone": job.config["backbone"],
        "weights_sha256": None if job.weights is None else job.weights.sha256,
        "precision": job.settings.precision,
        "input": job.settings.input,
    }
    write_atomically(folder / "model.safetensors", safetensors.torch.save(state))
    write_atomically(folder / "model.yaml", OmegaConf.to_yaml(OmegaConf.create(about)))


def load_model(folder: Path, device: str = "cpu") -> Any:
    """A fitted method as `save_model` left it, ready to score images of `input`'s size.

    Raises:
        UsageError: files are missing, or the backbone's weights are others than those it was fitted with.
    """
    if not (folder / "model.yaml").is_file():
        raise UsageError(f"{folder}: no model.yaml; expected a folder that save_model=true has written")
    about: Any = OmegaConf.to_container(OmegaConf.load(folder / "model.yaml"))
    network: dict[str, Any] = {}
    shapes: list[tuple[int, int, int]] = []
    weights = find_weights(about)
    if weights is not None:
        if weights.sha256 != about["weights_sha256"]:
            raise UsageError(f"{folder}: fitted on weights {about['weights_sha256'][:12]}, found {weights.sha256[:12]}")
        levels = about["method"]["levels"]
        backbone = construct(
            about["backbone"], "backbone", levels=levels, weights=weights.file, precision=about["precision"]
        ).to(device)
        network, shapes = {"backbone": backbone}, backbone.shapes(about["input"]["crop"] or about["input"]["resize"])
    method = construct(about["method"], "method", **network)
    method.build(shapes)
    method.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return method.to(device).eval()
