"""Synthetic anomalies for training: Perlin noise, confetti, cuts and scars, stains, and blended patches.

All random numbers come from torch's global CPU generator.
"""

from __future__ import annotations
