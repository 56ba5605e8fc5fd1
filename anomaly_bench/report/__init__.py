"""The HTML report."""

from __future__ import annotations
