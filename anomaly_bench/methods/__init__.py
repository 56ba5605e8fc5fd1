"""One module per method; `conf/method/<name>.yaml` points at it."""

from __future__ import annotations
