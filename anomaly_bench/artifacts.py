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
from anomaly_bench.jobs import Job, construct, find_weights, make_backbone
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
        "method": {**job.config["method"], **getattr(method, "resolved", {})},
        "backbone": job.config["backbone"],
        "weights_sha256": {name: weights.sha256 for name, weights in job.weights.items()},
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
    weights = find_weights(about)
    for name, fitted in about["weights_sha256"].items():
        if weights[name].sha256 != fitted:
            raise UsageError(f"{folder}: fitted on {name}'s weights {fitted[:12]}, found {weights[name].sha256[:12]}")
    backbone = make_backbone(about, weights, about["precision"])
    network: dict[str, Any] = {}
    size = about["input"]["crop"] or about["input"]["resize"]
    shapes: list[tuple[int, int, int]] = [(3, *size)]
    if backbone is not None:
        network, shapes = {"backbone": backbone.to(device)}, backbone.shapes(size)
    method = construct(about["method"], "method", **network)
    method.build(shapes)
    method.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return method.to(device).eval()
