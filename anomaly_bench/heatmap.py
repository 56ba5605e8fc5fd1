"""The colours of anomaly maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# dark blue over magenta and orange to light yellow, at equal steps of the score
HEAT = np.array([[8, 8, 48], [112, 28, 128], [208, 64, 96], [252, 152, 64], [252, 252, 192]], np.float64)


def heat(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) values as (H, W, 3) colours, `low` the darkest and `high` the lightest."""
    place = (values.astype(np.float64) - low) / max(high - low, 1e-12) * (len(HEAT) - 1)
    steps = np.arange(len(HEAT))
    return np.stack([np.interp(place, steps, HEAT[:, channel]) for channel in range(3)], -1).astype(np.uint8)
