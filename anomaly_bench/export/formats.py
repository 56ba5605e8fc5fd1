"""The formats of a graph: each is a module with `SUFFIX`, `PACKAGES`, `write` and `load`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from anomaly_bench.errors import UsageError, closest, how_to_install

Run = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]  # (B, H, W, 3) uint8 -> the graph's outputs by name
FORMATS = {"torch": "torch_program", "onnx": "onnx_graph", "openvino": "openvino_graph"}


def format_module(name: str) -> Any:
    """The module of a format.

    Raises:
        UsageError: no such format, or a package that it needs is not installed.
    """
    if name not in FORMATS:
        raise UsageError(f"format={name}: no such format{closest(name, FORMATS)}")
    module = importlib.import_module(f"anomaly_bench.export.{FORMATS[name]}")
    for package in module.PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"format={name}: needs {package}; {how_to_install(name)}")
    return module


def versions(module: Any) -> dict[str, str]:
    """The versions of a format's packages."""
    return {name: importlib.metadata.version(name) for name in dict.fromkeys(("torch", *module.PACKAGES))}
