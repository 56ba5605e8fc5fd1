"""A table as text: console, Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations
