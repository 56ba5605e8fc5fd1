"""Differences between methods or results folders, and whether they are significant."""

from __future__ import annotations
