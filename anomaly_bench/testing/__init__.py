"""The contract that every method passes, for one's own methods too."""

from __future__ import annotations
