"""Exact metrics of a scored test set."""

from __future__ import annotations
