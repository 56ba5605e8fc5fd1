"""Image sides that the cells of a network's levels tile; on others anomaly maps are displaced.

A level's map is stretched to the image's size. Where its stride divides the sides, the map is shifted by at most half
a cell, everywhere alike, as in the papers. Elsewhere cells hang over the border, or pixels are left out, and what pads
one side of even maps only (EfficientNet) pads both: the shift depends on the place, by up to a cell.
"""

from __future__ import annotations

from typing import Any

from anomaly_bench.errors import UsageError

STEPS = (2, 4, 8, 16, 32, 64)  # pixels: strides of CNNs


def require_tiles(name: str, network: Any, size: tuple[int, int], channels: int) -> None:
    """Reject (H, W) images that the levels' cells do not tile, except for networks whose cells tile no side (AlexNet).

    Args:
        name: of the backbone.
        network: a `Backbone` or `Networks`.

    Raises:
        UsageError: with the nearest sides that the cells tile.
    """
    if network.tiles(size, channels):
        return
    for step in STEPS:
        below = [max(step, side - side % step) for side in size]
        above = [side + step for side in below]
        if all(network.tiles((near[0], near[1]), channels) for near in (below, above)):
            raise UsageError(
                f"{name}: its cells do not tile images of {size[0]} x {size[1]} pixels, so anomaly maps would be "
                f"displaced; expected sides that are multiples of {step}, such as {' x '.join(map(str, below))} or "
                f"{' x '.join(map(str, above))}: set input.resize or input.crop"
            )
