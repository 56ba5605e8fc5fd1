"""Find contradictions in the published numbers."""

from __future__ import annotations
