"""Which devices and how many cores there are. No torch here."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def cores() -> int:
    """The cores that this process may use; in a Slurm job those that it was given, which Slurm may not enforce."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(there, int(given)) if given.isdecimal() and int(given) else there


GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")  # NVIDIA, AMD, Windows' Linux, Jetson


def device_kind(name: str) -> str:
    """What `device=auto` is on this machine; a Linux without a GPU's driver is known without importing torch."""
    if name != "auto":
        return name
    if sys.platform == "linux" and not any(Path(node).exists() for node in GPU_NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def device_name(kind: str) -> str:
    """The processor's or the GPU's name for a torch device type or string; no host name."""
    if kind.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(kind)
    return f"GPU of {processor()}" if kind == "mps" else processor()


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":  # where platform.processor() is "arm" for all
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()
