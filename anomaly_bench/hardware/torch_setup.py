"""Set up torch's device and precision."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import devices, memory, sharing

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter


@contextlib.contextmanager
def own_device(name: str, reporter: Reporter) -> Iterator[str]:
    """The device of the key `device`; "auto" reserves a GPU that no other such job uses, waiting if necessary."""
    if name != "auto" or devices.device_kind(name) != "cuda":
        yield name
        return
    gpus = [f"gpu-{torch.cuda.get_device_properties(each).uuid}" for each in range(torch.cuda.device_count())]
    taken = f"all GPUs of this machine ({len(gpus)}) are in use; waiting for one (device=cuda does not wait)"
    with sharing.one_of(gpus, functools.partial(reporter.say, taken)) as place:
        yield f"cuda:{place}"
    torch.cuda.empty_cache()


def set_up(device: str, threads: int, precision: str) -> torch.device:
    """Apply torch's settings for computing scores; return the device of the key `device`.

    Raises:
        UsageError: no such device, or it does not support this precision.
    """
    torch.set_num_threads(threads)
    memory.keep_freed()
    compute_exactly()
    found = find_device(devices.device_kind(device))
    require_precision(found, precision)
    return found


def compute_exactly() -> None:
    """On CUDA: fp32 means fp32, not TF32, and convolutions are deterministic, as on a CPU."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def require_precision(device: torch.device, precision: str) -> None:
    """Try a convolution in the backbone's precision.

    Raises:
        UsageError: the device does not support it, or autocast would silently keep float32.
    """
    dtype, why = DTYPES[precision], "autocast ignores it"
    if precision == "fp32":
        return
    try:
        with torch.autocast(device.type, dtype):
            one = torch.ones(1, 1, 1, 1, device=device)
            found = F.conv2d(one, one).dtype
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        found, why = torch.float32, str(error).splitlines()[0]
    if found != dtype:
        raise UsageError(f"precision={precision}: device {device} does not support it ({why}); use fp32 there")


def find_device(name: str) -> torch.device:
    """The torch device with this name.

    Raises:
        UsageError: this machine does not have it.
    """
    have = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    have += ["cuda"] if torch.cuda.is_available() else []
    have += ["mps"] if torch.backends.mps.is_available() else []
    if name not in have:
        raise UsageError(f"device={name}: this machine has {', '.join(have)}; device=auto takes the best of them")
    return torch.device(name)


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
