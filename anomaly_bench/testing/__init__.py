"""The contract tests that every method passes; usable for your own methods."""

from __future__ import annotations
