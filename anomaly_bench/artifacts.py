"""What a run keeps beside its record when asked: anomaly maps, the fitted model, pictures of the worst cases."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image as PILImage
from torch import nn

from anomaly_bench.errors import UsageError
from anomaly_bench.jobs import Job, construct, find_weights, make_backbone
from anomaly_bench.protocol import Image
from anomaly_bench.records import legal, write_atomically

PICTURE = 128  # pixels: the side of each of the three squares of a gallery picture
# dark blue over magenta and orange to light yellow, at equal steps of the score
HEAT = np.array([[8, 8, 48], [112, 28, 128], [208, 64, 96], [252, 152, 64], [252, 252, 192]], np.float64)


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


def save_gallery(
    folder: Path,
    images: Sequence[Image],
    scores: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    maps: NDArray[np.float32] | None,
    masks: NDArray[np.bool_] | None,
    count: int,
) -> None:
    """Pictures `alarm-1-*.png` (highest normal images) and `miss-1-*.png` (lowest defective ones).

    Each is the image, its mask and its map side by side; maps share one scale, that of the test set.
    """
    labels = np.array([image.defect is not None for image in images])
    alarms = [index for index in np.argsort(-scores, kind="stable") if not labels[index]][: (count + 1) // 2]
    misses = [index for index in np.argsort(scores, kind="stable") if labels[index]][: count - len(alarms)]
    low, high = (0.0, 0.0) if maps is None else (float(maps.min()), float(maps.max()))
    for kind, cases in (("alarm", alarms), ("miss", misses)):
        for rank, index in enumerate(cases, 1):
            squares = [pixels[index]]
            if masks is not None:
                squares.append(np.repeat(masks[index][..., None], 3, axis=-1) * np.uint8(255))
            if maps is not None:
                squares.append(heat(maps[index], low, high))
            buffer = io.BytesIO()
            beside(squares).save(buffer, "PNG", compress_level=1)
            name = f"{kind}-{rank}-{legal(images[index].file.rpartition('.')[0].replace('/', '-'))}.png"
            write_atomically(folder / name, buffer.getvalue())


def heat(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) values as (H, W, 3) colours, `low` the darkest and `high` the lightest."""
    place = (values.astype(np.float64) - low) / max(high - low, 1e-12) * (len(HEAT) - 1)
    steps = np.arange(len(HEAT))
    return np.stack([np.interp(place, steps, HEAT[:, channel]) for channel in range(3)], -1).astype(np.uint8)


def beside(squares: Sequence[NDArray[np.uint8]]) -> PILImage.Image:
    """(H, W, 3) arrays side by side, each PICTURE pixels wide and high."""
    sheet = PILImage.new("RGB", (PICTURE * len(squares), PICTURE))
    for position, square in enumerate(squares):
        sheet.paste(PILImage.fromarray(square).resize((PICTURE, PICTURE)), (position * PICTURE, 0))
    return sheet
