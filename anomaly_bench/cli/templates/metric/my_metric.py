"""My metric: TITLE OF THE PAPER.

AUTHORS; YEAR, arXiv NUMBER. This example is the recall of defective images at a limit of false alarms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anomaly_bench.protocol import Outcome


def my_metric(outcome: Outcome, limit: float = 0.05) -> float | None:
    """Share of defective images found while at most `limit` of the normal images are false alarms (equation NUMBER).

    An image is reported if its score is above a threshold; tied scores are reported together or not at all.

    Args:
        limit: of the false positive rate, from 0 to 1.

    Returns:
        A fraction, higher is better; None if there are no normal or no defective images.
    """
    normal, defective = outcome.scores[~outcome.labels], outcome.scores[outcome.labels]
    if not len(normal) or not len(defective):
        return None
    allowed = int(np.floor(limit * len(normal) + 1e-9))
    threshold = np.sort(normal)[::-1][allowed] if allowed < len(normal) else -np.inf
    return float((defective > threshold).mean())
