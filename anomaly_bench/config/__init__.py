"""Configuration: composed by Hydra, checked, and turned into objects."""

from __future__ import annotations
