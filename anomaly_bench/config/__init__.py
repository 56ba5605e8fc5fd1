"""Configuration: composed by Hydra, validated, and instantiated."""

from __future__ import annotations
