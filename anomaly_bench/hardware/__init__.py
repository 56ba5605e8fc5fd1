"""The machine: devices, memory, timing, and sharing it with other processes."""

from __future__ import annotations
