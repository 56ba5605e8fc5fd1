"""Image scores listed by another program: a CSV with the columns file and score, in the usual dialects.

The first line names the columns, in any case and order; it tells the separator: a comma, semicolon or tab. The text is
UTF-8 or, with its byte order mark, UTF-16. Decimal commas are read where they cannot be anything else.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path

from anomaly_bench.errors import UsageError, shorten
from anomaly_bench.files import composed, plain_cell

COLUMNS = ("file", "score")
SEPARATORS = ",;\t"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)  # one thousand or one and a bit


def read_scores(path: Path) -> dict[str, float]:
    """File -> score; other columns are ignored.

    Raises:
        UsageError: it cannot be read, a row is not complete, a score is no finite number, or a file is listed twice.
    """
    try:
        lines = read_rows(read_text(path))
    except OSError as error:
        raise UsageError(f"scores={path}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"scores={path}: not a CSV with the columns file and score ({error})") from error
    names = [composed(plain_cell(name)).replace("\\", "/").removeprefix("./") for name, _ in lines]
    double = [name for place, name in enumerate(names) if name in names[:place]] if len({*names}) < len(names) else []
    if double:
        raise UsageError(f"scores={path}: {double[0]} is listed twice; expected one finite score each")
    try:
        return numbers(dict(zip(names, (score for _, score in lines), strict=True)))
    except ValueError as error:
        raise UsageError(f"scores={path}: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file; ValueError: of no known encoding."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content:
        raise ValueError("neither UTF-8 nor UTF-16 with a byte order mark; save it as UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")  # names may be of any bytes


def read_rows(text: str) -> list[tuple[str, str]]:
    """The file and score of every row; ValueError: lacking columns, or a row of more or fewer cells than the header."""
    for separator in SEPARATORS:
        head, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row] or [[]]
        titles = [title.strip().casefold() for title in head]
        if set(COLUMNS) <= set(titles):
            break
    else:
        head = next(csv.reader(io.StringIO(text, newline="")), [])
        raise ValueError(f"its first line has {shorten(head) or 'nothing'}")
    double = [name for name in COLUMNS if titles.count(name) > 1]
    if double:
        raise ValueError(f"two columns are called {double[0]}")
    for number, row in enumerate(rows, 2):
        if len(row) < len(titles) or any(row[len(titles) :]):
            raise ValueError(
                f"row {number} has {len(row)} cells, the first has {len(titles)}; numbers with decimal commas need "
                "quotes, or semicolons between the columns"
            )
    file, score = map(titles.index, COLUMNS)
    return [(row[file].strip(), row[score].strip()) for row in rows]


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
