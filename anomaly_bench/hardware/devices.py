"""Available devices and cores. No torch at the top."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path


def cores() -> int:
    """The cores that this process may use, at most those allocated to a Slurm job (Slurm may not enforce that)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allocated = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(available, int(allocated)) if allocated.isdecimal() and int(allocated) else available


GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")  # NVIDIA, AMD, WSL, Jetson


def device_kind(name: str) -> str:
    """What `device=auto` means on this machine; Linux without a GPU driver is detected without importing torch."""
    if name != "auto":
        return name
    if sys.platform == "linux" and not any(Path(node).exists() for node in GPU_NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def device_name(kind: str) -> str:
    """The CPU's or GPU's name for a torch device type or string; no host name."""
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
