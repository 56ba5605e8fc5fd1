"""How much memory there is, the refusal of what would not fit, before the work, and what becomes of freed memory.

No torch until a GPU is asked.
"""

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
    """Refuse what cannot be held.

    Args:
        needed: bytes.
        device: None: the computer's own memory.
        what: a sentence's subject in the singular; options: what the user can do instead.

    Raises:
        TooLarge: less is free on the device; where a system does not say, nothing is refused.
    """
    there = free(device)
    if there is not None and needed > there:
        raise TooLarge(f"{what} needs {needed / 1e6:.0f} MB of memory, free are {there / 1e6:.0f} MB: {options}")


def free(device: torch.device | None = None) -> int | None:
    """Bytes that can still be taken on a device; all of a computer's where only that is known; None: unknown.

    Of a computer's memory no more than its control groups (a container's, a Slurm job's) leave.
    """
    if device is not None and device.type == "cuda":
        import torch

        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    known = [each for each in (system_free(), *group_free()) if each is not None]
    return min(known, default=None)


def system_free() -> int | None:
    """Bytes that the operating system can give without swapping, else the bytes that it has."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform != "win32":
        with contextlib.suppress(ValueError, OSError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def group_free(groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each control group of this process, version 2 or 1, leaves of its limit; files it has cached count as free.

    Args:
        groups: where the groups are mounted; own: the file that names those of this process.
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
    """Bytes of files in a control group's memory, which are given up when it is wanted."""
    fields = dict(line.split(" ", 1) for line in statistics.read_text("utf-8").splitlines())
    totals = "total_" if "total_inactive_file" in fields else ""  # version 1: with the groups below
    return sum(int(fields.get(f"{totals}{state}_file", 0)) for state in ("active", "inactive"))


def keep_freed(below: int = 2**30) -> None:
    """Let glibc reuse what a tensor of less than so many bytes has freed, instead of returning it to the system.

    By default each large activation is mapped, filled with zeros page by page, and unmapped again: that took half of
    a CPU's backbone pass in batches of 32. But memory that is reused falls to pieces: a training, whose tensors live
    for unequal times, takes less with a lower bound. On other C libraries nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, below)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
