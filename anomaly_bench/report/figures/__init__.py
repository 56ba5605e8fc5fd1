"""Figures of the report, as SVG."""

from __future__ import annotations
