"""What each method is called, and its arXiv number, which tells the month it became public. No torch here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple


class Publication(NamedTuple):
    """arxiv: 'YYMM.number'; empty where a method has no paper of its own there."""

    title: str
    arxiv: str

    @property
    def month(self) -> tuple[int, int] | None:
        """(year, month) of the arXiv number."""
        return (2000 + int(self.arxiv[:2]), int(self.arxiv[2:4])) if self.arxiv else None


def publications() -> dict[str, Publication]:
    """Our id of each method (the name of its YAML) -> its publication; `methods.csv`."""
    with Path(__file__).with_name("methods.csv").open(newline="", encoding="utf-8") as file:
        return {row.pop("method"): Publication(**row) for row in csv.DictReader(file)}
