"""format=openvino: OpenVINO's XML and weights, translated from ONNX, without rounding to 16 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import UsageError, one_line
from anomaly_bench.export import onnx_graph

if TYPE_CHECKING:
    import torch

    from anomaly_bench.export.formats import Run

SUFFIX = ".xml"
PACKAGES = ("onnx", "onnxscript", "openvino")


def write(program: torch.export.ExportedProgram, names: Sequence[str], file: Path) -> None:
    """Translate and save it, with its weights in a `.bin` of the same name.

    Raises:
        UsageError: an operation has no translation.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder, "graph.onnx")
        onnx_graph.write(program, names, between)
        try:
            model = openvino.Core().read_model(str(between))
        except Exception as error:  # plain RuntimeErrors
            raise UsageError(f"format=openvino: it cannot read this graph ({one_line(str(error))[:300]})") from error
        openvino.save_model(model, str(file), compress_to_fp16=False)


def load(file: Path, names: Sequence[str], threads: int) -> Run:
    """Run it with OpenVINO on the CPU, in float32.

    Raises:
        UsageError: the installed OpenVINO cannot run the graph.
    """
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    try:
        compiled = openvino.Core().compile_model(str(file), "CPU", exact)
    except Exception as error:
        version = openvino.__version__
        raise UsageError(f"{file}: OpenVINO {version} cannot run this graph ({one_line(str(error))[:300]})") from error

    def run(images: Any) -> dict[str, Any]:
        found = compiled({"images": images})
        return {name: found[name] for name in names}

    return run
