"""Available memory, early rejection of what would not fit, and reuse of freed memory. No torch until a GPU is used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_bench.errors import TooLarge

if TYPE_CHECKING:
    import torch

CONTROL_GROUPS = Path("/sys/fs/cgroup")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's <malloc.h>


def require(needed: int, device: torch.device | None, what: str, options: str) -> None:
    """Reject what would not fit into memory.

    Args:
        needed: bytes.
        device: None: main memory.
        what: a sentence's subject in the singular; options: what the user can do instead.

    Raises:
        TooLarge: less memory is free on the device; never if the free memory is unknown.
    """
    available = free(device)
    if available is not None and needed > available:
        raise TooLarge(f"{what} needs {needed / 1e6:.0f} MB of memory, {available / 1e6:.0f} MB are free: {options}")


def free(device: torch.device | None = None) -> int | None:
    """Free bytes on a device, or all of main memory if only that is known; None: unknown.

    Main memory is limited by the process's control groups (of a container or Slurm job).
    """
    if device is not None and device.type == "cuda":
        import torch

        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    known = [each for each in (system_free(), *group_free()) if each is not None]
    return min(known, default=None)


def resident() -> int:
    """Bytes of main memory that this process takes now; 0: unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def system_free() -> int | None:
    """Bytes available without swapping, or else all physical memory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform != "win32":
        with contextlib.suppress(ValueError, OSError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def group_free(groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """The free bytes of each control group (version 2 or 1) of this process; cached files count as free.

    Args:
        groups: where the groups are mounted; own: the file that lists this process's groups.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = own.read_text("utf-8").splitlines()
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tree, limit, used = groups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            tree, limit, used = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = tree / path.lstrip("/")
        for folder in (inner, *inner.parents):  # a container sees its own group as the root
            with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                taken = int((folder / used).read_text("utf-8")) - cached(folder / "memory.stat")
                left.append(max(0, int((folder / limit).read_text("utf-8")) - taken))
            if folder == tree:
                break
    return left


def cached(statistics: Path) -> int:
    """Bytes of cached files in a control group's memory, which the kernel reclaims on demand."""
    fields = dict(line.split(" ", 1) for line in statistics.read_text("utf-8").splitlines())
    totals = "total_" if "total_inactive_file" in fields else ""  # version 1: including subgroups
    return sum(int(fields.get(f"{totals}{state}_file", 0)) for state in ("active", "inactive"))


def keep_freed(below: int = 2**30) -> None:
    """Let glibc reuse the memory of freed tensors smaller than `below` bytes instead of returning it to the system.

    By default each large activation is mapped, zeroed page by page, and unmapped again, which took half of a CPU's
    backbone pass in batches of 32. But reuse fragments memory: training, whose tensors live for different times,
    needs less memory with a lower bound. Other C libraries are not affected.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, below)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
