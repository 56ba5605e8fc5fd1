"""The software versions that made a record."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from anomaly_bench.hardware import timing
from anomaly_bench.version import __version__


def provenance() -> dict[str, Any]:
    """Versions and system of this run; no host or user name."""
    import PIL
    import torch

    return {
        "date": timing.today(),
        "anomaly_bench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
    }
