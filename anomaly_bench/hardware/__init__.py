"""Hardware: devices, memory, timing, and sharing the machine with other processes."""

from __future__ import annotations
