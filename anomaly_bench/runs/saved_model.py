"""What a run saves with its record on request: anomaly maps and the fitted model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import nn

from anomaly_bench.backbones.build import make_backbone, make_method, recorded_weights
from anomaly_bench.config.compose import backbone_node
from anomaly_bench.config.parts import foreign_folders, with_target, without_target
from anomaly_bench.documents import read_yaml
from anomaly_bench.errors import UsageError, one_line, shorten
from anomaly_bench.files import new_file, write_atomically
from anomaly_bench.mapped import stretches
from anomaly_bench.records import SCHEMA
from anomaly_bench.records.content import Input, Scored, Side, Text, Thresholds, convert

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.job import Job


class Titled(TypedDict):
    title: Text
    revision: int


class Part(TypedDict):
    """A method or backbone in `model.yaml`."""

    name: Text
    about: Titled
    networks: NotRequired[dict[Text, Part]]


class About(TypedDict):
    """What `model.yaml` has to hold."""

    method: Part
    backbone: Part | None
    weights_sha256: dict[Text, Text]
    precision: Literal["fp32", "bf16", "fp16"]
    input: Input
    channels: NotRequired[Side]
    thresholds: NotRequired[Thresholds]
    held_out: NotRequired[list[Scored]]


ABOUT_KEYS = ("method", "backbone", "weights_sha256", "precision", "input")  # of model.yaml


def save_maps(folder: Path, maps: NDArray[np.float32]) -> None:
    """`maps.npy`: raw float32 anomaly maps (N, H, W) in the order of the record's images."""
    with new_file(folder / "maps.npy") as file:
        header = {"descr": np.lib.format.dtype_to_descr(maps.dtype), "fortran_order": False, "shape": maps.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in stretches(maps):
            file.write(maps[part].data)


def save_model(folder: Path, method: nn.Module, job: Job, record: Record) -> None:
    """`model.safetensors` (parameters and stored statistics) and `model.yaml` (what else `load_model` needs).

    With held-out images, `model.yaml` has the thresholds and the scores that they are made from.
    """
    state = {name: value.contiguous().cpu() for name, value in method.state_dict().items()}
    backbone = job.config["backbone"]
    about = {
        "schema": SCHEMA,
        "method": {**job.parts[0], **getattr(method, "resolved", {})},
        "backbone": None if backbone is None else without_target("backbone", backbone),
        "weights_sha256": {name: weights.sha256 for name, weights in job.weights.items()},
        "precision": job.settings.precision,
        "input": job.settings.input,
        "channels": job.task.channels,
    }
    if record.held_out:
        values = [{"score": image["score"], "peak": image["peak"]} for image in record.held_out]
        about |= {"thresholds": record.thresholds, "held_out": values}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(state))
    write_atomically(folder / "model.yaml", OmegaConf.to_yaml(OmegaConf.create(about)))


def read_about(folder: Path, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The `model.yaml` of a saved model: its YAML, its backbone's, input and precision.

    Args:
        folders: folders of user YAML, whose classes may be used.

    Raises:
        UsageError: there is no model, or this version's `save_model` did not write its `model.yaml`.
    """
    file = folder / "model.yaml"
    if not file.is_file() or not (folder / "model.safetensors").is_file():
        below = [path.parent for path in sorted(folder.rglob("model.yaml"))] if folder.is_dir() else []
        near = f"; there is one in {shorten(map(str, below))}" if below else ""
        raise UsageError(
            f"{folder}: no model.yaml and model.safetensors; expected a folder written by save_model=true{near}"
        )
    try:
        about: Any = read_yaml(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({one_line(str(error))}); fit and save the model again") from error
    lacking = [key for key in ABOUT_KEYS if not isinstance(about, dict) or key not in about]
    if lacking:
        raise UsageError(f"{file}: lacks {', '.join(lacking)}; fit and save the model again")
    if about.get("schema") != SCHEMA:
        raise UsageError(
            f"{file}: schema {about.get('schema', 1)}, expected {SCHEMA}; run anomaly-bench records convert "
            "on its results folder, or fit and save the model again"
        )
    try:
        convert(about, About)
    except ValueError as error:
        raise UsageError(f"{file}: {error}; fit and save the model again") from error
    about["method"] |= dict.fromkeys(foreign_folders(about["method"], folders))  # read by fits only
    return {
        **about,
        **{part: with_target(part, about[part], folders) for part in ("method", "backbone") if about[part]},
    }


def load_model(
    folder: Path,
    device: torch.device | str = "cpu",
    weights: str | None = None,
    folders: Sequence[Path] = (),
    recorded: bool = False,
) -> Any:
    """Load a method saved by `save_model`, ready to score images of `input`'s size.

    Args:
        weights: the file of the backbone's weights, if the backbone's YAML does not locate it.
        folders: folders of user YAML, whose classes and weights may be used.
        recorded: see `make_network`.

    Raises:
        UsageError: files are missing or damaged, or the backbone's weights differ from those it was fitted with.
    """
    about = read_about(folder, folders)
    backbone = about["backbone"]
    today = None if backbone is None else backbone_node(backbone["name"], folders)
    found = recorded_weights(backbone, about["weights_sha256"], today, weights, str(folder))
    network = make_backbone(about, found, about["precision"], recorded=recorded).to(device)
    method = make_method(about["method"], network)
    method.build(network.shapes(about["input"]["crop"] or about["input"]["resize"], about.get("channels", 3)))
    try:
        method.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{folder}: model.safetensors is damaged or from another version ({reason}); refit") from error
    return method.to(device).eval()
