"""Draw docs/synthetic_anomalies.png, all synthetic anomalies: `python benchmarks/picture_anomalies.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from anomaly_bench.components.synthetic_anomalies import blends, confetti, cuts, perlin
from anomaly_bench.data.synthetic import render
from anomaly_bench.protocol import to_tensor

FILE = Path(__file__).parents[1] / "docs" / "synthetic_anomalies.png"
SIDE, HEAD, GAP = 160, 18, 4  # pixels


def noise(image: Tensor) -> Tensor:
    """As DRAEM's, but in every image, and not too small to be seen."""
    while True:
        changed, mask = perlin.simulate(image, perlin.generated_texture)
        if mask.float().mean() > 0.05:
            return changed


def blended(mixed: bool) -> Callable[[Tensor, Tensor], Tensor]:
    rules = blends.Patches(rows=(0.1, 0.4), columns=(0.1, 0.4), mixed=mixed)

    def change(image: Tensor, other: Tensor) -> Tensor:
        pixels = [(255 * each).round().to(torch.uint8).permute(1, 2, 0).numpy() for each in (image, other)]
        return to_tensor(blends.blend_patches(*pixels, rules)[0][None])[0]

    return change


COLUMNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda image, other: image,
    "Perlin noise": lambda image, other: noise(image),
    "confetti": lambda image, other: confetti.spoiled(image),
    "cut": lambda image, other: cuts.cut_paste(image),
    "scar": lambda image, other: cuts.scar(image),
    "blend": blended(mixed=False),
    "blend, mixed": blended(mixed=True),
}


def main() -> None:
    torch.manual_seed(0)
    names = ("weave", "granite", "gear", "biscuit")
    size = (SIDE + GAP) * len(COLUMNS) - GAP, HEAD + (SIDE + GAP) * len(names) - GAP
    sheet = Image.new("RGB", size, "white")
    for column, (title, change) in enumerate(COLUMNS.items()):
        left = column * (SIDE + GAP)
        ImageDraw.Draw(sheet).text((left + 2, 2), title, "black", font_size=12)
        for row, name in enumerate(names):
            image, other = to_tensor(np.stack([render(name, "train", number)[0] for number in (1, 2)]))
            pixels = (255 * change(image, other)).round().to(torch.uint8).permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
            sheet.paste(picture, (left, HEAD + row * (SIDE + GAP)))
    sheet.quantize(256).save(FILE, optimize=True)


if __name__ == "__main__":
    main()
