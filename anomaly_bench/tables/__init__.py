"""Tables as a pure function of records and published numbers."""

from __future__ import annotations
