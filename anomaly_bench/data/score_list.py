"""Image scores listed by another program: a CSV with the columns file and score; see `csv_files` for dialects.

Decimal commas are read where they cannot be anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from anomaly_bench.data.csv_files import read_csv
from anomaly_bench.errors import UsageError
from anomaly_bench.files import composed

COLUMNS = ("file", "score")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)  # one thousand or one and a bit


def read_scores(path: Path) -> dict[str, float]:
    """File -> score; other columns are ignored.

    Raises:
        UsageError: it cannot be read, a row is not complete, a score is no finite number, or a file is listed twice.
    """
    rows = [row.cells for row in read_csv("scores", path, COLUMNS, errors="surrogateescape")]
    names = [composed(row["file"]).replace("\\", "/").removeprefix("./") for row in rows]
    double = [name for place, name in enumerate(names) if name in names[:place]] if len({*names}) < len(names) else []
    if double:
        raise UsageError(f"scores={path}: {double[0]} is listed twice; expected one finite score each")
    try:
        return numbers(dict(zip(names, (row["score"] for row in rows), strict=True)))
    except ValueError as error:
        raise UsageError(f"scores={path}: {error}") from error


def numbers(listed: Mapping[str, str]) -> dict[str, float]:
    """File -> finite number, from texts with decimal points or all with decimal commas.

    Raises:
        ValueError: a text is no number, or its comma may separate thousands.
    """
    texts = listed.values()
    commas = [text for text in texts if "," in text]
    if commas and all(GROUPED.fullmatch(text) for text in commas):
        either = f"{commas[0].replace(',', '')} or {commas[0].replace(',', '.')}"
        raise ValueError(f"the score {commas[0]} may be {either}; write decimal points")
    point = "." if commas and not any("." in text for text in texts) else ","
    found = {}
    for file, text in listed.items():
        plain = text.replace(",", point)
        if not NUMBER.fullmatch(plain) or not math.isfinite(float(plain)):
            raise ValueError(
                f"{file} has the score {text or 'of an empty cell'}; expected a finite number, such as 0.25"
            )
        found[file] = float(plain)
    return found
