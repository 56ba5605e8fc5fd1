"""format=onnx: by torch's exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomaly_bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from anomaly_bench.export.formats import Run

SUFFIX = ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write(program: torch.export.ExportedProgram, names: Sequence[str], file: Path) -> None:
    """Translate and save it; weights above 2 GB lie in `FILE.data`.

    Raises:
        UsageError: an operation has no translation.
    """
    try:
        translated = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=list(names), verbose=False
        )
    except Exception as error:  # the exporter's types are private
        why = one_line(str(error))[:300]
        raise UsageError(f"format=onnx: torch's exporter cannot translate this method ({why})") from error
    assert translated is not None, "with dynamo=True it is returned"
    translated.save(file)


def load(file: Path, names: Sequence[str], threads: int) -> Run:
    """Run it with ONNX Runtime.

    Raises:
        UsageError: the installed ONNX Runtime cannot run the graph, for example as it lacks an operator.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no public base
        raise UsageError(
            f"{file}: ONNX Runtime {onnxruntime.__version__} cannot run this graph ({one_line(str(error))[:300]}); "
            "update it"
        ) from error

    def run(images: Any) -> dict[str, Any]:
        return dict(zip(names, session.run(list(names), {"images": images}), strict=True))

    return run
