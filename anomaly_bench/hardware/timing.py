"""The only module that reads a clock.

Protocol: warm-up, then calls one after the other, each followed by a synchronisation, until 10 seconds or 300 calls
have passed, with at least 5 calls. A call includes copying images to the device, normalisation, backbone, map
computation, and copying scores and maps to the host, but not decoding. Batch 1 gives latency, batch N throughput, from
the same calls where N is 1. Calls of the backbone alone, cut at the same level, alternate with those of the whole
method, so both see the same noise. No other job computes on the machine meanwhile (`sharing.exclusive`), or the entry
says "alone": false.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SECONDS, CALLS, LEAST_CALLS, WARM_UP = 10.0, 300, 5, 3
PERCENTILES = {"latency_ms": 50, "latency_p95_ms": 95, "latency_p99_ms": 99}


def clock() -> float:
    """Seconds since any fixed moment."""
    return time.perf_counter()


def today() -> str:
    """The date and time in UTC, to the second, legal in file names on every system."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")


@contextlib.contextmanager
def stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yields a function that returns the block's duration in seconds, including all work on the device."""
    synchronise(device)
    start, end = clock(), None
    yield lambda: (end or clock()) - start
    synchronise(device)
    end = clock()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The duration of one call: by CUDA events on a GPU, by the clock elsewhere."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end))
    begin = clock()
    call()
    synchronise(device)
    return (clock() - begin) * 1000


def in_turn(
    calls: dict[str, Callable[[], Any]], device: torch.device, seconds: float, advance: Callable[[int], Any]
) -> dict[str, list[float]]:
    """Milliseconds of each call, alternating, under the protocol above; `advance` gets 50 in all, see `measure`."""
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin, rounds, passed, said = clock(), 0, 0.0, 0
    while rounds < LEAST_CALLS or (rounds < CALLS and (passed := clock() - begin) < seconds):
        for name, call in calls.items():
            samples[name].append(milliseconds(call, device))
        rounds += 1
        percent = min(50, int(50 * max(rounds / CALLS, passed / max(seconds, 1e-9))))
        advance(percent - said)
        said = percent
    advance(50 - said)
    return samples


def measure(
    timed: Mapping[str, Callable[[Tensor], Any]],
    images: Tensor,
    device: torch.device,
    seconds: float = SECONDS,
    advance: Callable[[int], Any] = lambda percent: None,
) -> dict[str, Any]:
    """One entry of `Record.speed`.

    Args:
        timed: key prefix -> what is timed; "" is a fitted method, which copies its scores to the host, and "backbone_"
            its network, if any.
        images: (N, 3, H, W) on the host; N is the batch size for throughput.
        seconds: for timing latency, and again for throughput in batches of several images.
        advance: told of each further percent.

    Returns:
        For each prefix: latency_ms (the median), percentiles, fps, and all samples in ms. A percentile p of fewer than
        1 / (1 - p) calls is None.
    """
    import torch

    def calls(batch: Tensor) -> dict[str, Callable[[], Any]]:
        def call(each: Callable[[Tensor], Any]) -> None:
            each(batch.to(device))

        return {prefix: functools.partial(call, each) for prefix, each in timed.items()}

    one = in_turn(calls(images[:1]), device, seconds, advance)
    if len(images) > 1:
        many = in_turn(calls(images), device, seconds, advance)
    else:
        many = one
        advance(50)
    entry: dict[str, Any] = {"threads": torch.get_num_threads(), "batch_size": len(images)}
    for prefix in timed:
        entry |= {f"{prefix}{title}": percentile(one[prefix], p) for title, p in PERCENTILES.items()}
        entry[f"{prefix}fps"] = 1000 * len(images) * len(many[prefix]) / sum(many[prefix])
        entry[f"{prefix}latency_samples_ms"] = [round(sample, 3) for sample in one[prefix]]
        entry[f"{prefix}batch_samples_ms"] = [round(sample, 3) for sample in many[prefix]]
    return entry


def percentile(samples: list[float], p: int) -> float | None:
    """The p-th percentile; None if there are too few samples."""
    return float(np.percentile(samples, p)) if len(samples) * (100 - p) >= 100 else None


def reset_peaks(device: torch.device) -> None:
    """Reset the process's peak memory, if the system can, after releasing unused memory held by glibc."""
    import torch

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_ram_mb() -> float | None:
    """The process's peak resident memory since `reset_peaks`, in 10^6 bytes; None if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def peak_gpu_mb(device: torch.device) -> float | None:
    """Peak GPU memory of tensors since `reset_peaks`, in 10^6 bytes; None on other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
