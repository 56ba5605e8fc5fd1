"""One module per method; `conf/method/<name>.yaml` points to it."""

from __future__ import annotations
