"""Datasets list files as tasks: one reader per layout, and the store that decodes each image once."""

from __future__ import annotations
