"""CSV files that users write or export, in the usual dialects.

The first line names the columns, in any case and order; it tells the separator: a comma, semicolon or tab. The text is
UTF-8 or, with its byte order mark, UTF-16. A quote before what a spreadsheet would take for a formula is dropped.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from anomaly_bench.errors import UsageError, shorten
from anomaly_bench.files import plain_cell

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


class Row(NamedTuple):
    """The cells of one row by column, without spaces around them, and the number of its line in the file."""

    line: int
    cells: dict[str, str]


def read_csv(
    key: str, path: Path, columns: Collection[str], optional: Collection[str] | None = None, errors: str = "strict"
) -> list[Row]:
    """The rows of a file, but for empty ones.

    Args:
        key: what names the file in the configuration, for messages.
        columns: required, in lower case.
        optional: other columns that it may have; None: any.
        errors: of decoding; "surrogateescape" where names may be of any bytes.

    Raises:
        UsageError: it cannot be read, its columns are wrong, or a row has more or fewer cells than the first.
    """
    try:
        text = decoded(path.read_bytes(), errors)
        separator, titles = header(text, columns, optional)
        return rows(text, separator, titles)
    except OSError as error:
        what = f"a CSV with the columns {', '.join(columns)}"
        raise UsageError(f"{key}={path}: cannot be read ({error.strerror}); expected {what}") from error
    except UnicodeError as error:
        raise UsageError(f"{key}={path}: neither UTF-8 nor UTF-16 with a byte order mark; save it as UTF-8") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{key}={path}: {error}") from error


def decoded(content: bytes, errors: str) -> str:
    """The text of a file; UnicodeError: of no known encoding."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content:
        raise UnicodeError("a zero byte")
    return content.decode("utf-8-sig", errors)


def header(text: str, columns: Collection[str], optional: Collection[str] | None) -> tuple[str, list[str]]:
    """The separator and the columns; ValueError: some are lacking, unknown, or named twice."""
    for separator in SEPARATORS:
        head = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), [])
        titles = [title.strip().casefold() for title in head]
        while titles and not titles[-1]:  # every line ends with a separator
            titles.pop()
        if set(columns) <= set(titles):
            break
    else:
        found = shorten(next(csv.reader(io.StringIO(text, newline="")), [])) or "nothing"
        raise ValueError(f"not a CSV with the columns {', '.join(columns)} (its first line has {found})")
    if double := [title for title in (*columns, *(optional or ())) if titles.count(title) > 1]:
        raise ValueError(f"two columns are called {double[0]}; expected one")
    if optional is not None and (unknown := [title for title in titles if title not in (*columns, *optional)]):
        raise ValueError(f"a column {unknown[0]}; expected {', '.join(columns)}, and perhaps {', '.join(optional)}")
    return separator, titles


def rows(text: str, separator: str, titles: list[str]) -> list[Row]:
    """All rows but the first; ValueError: one has more or fewer cells than the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found = [(reader.line_num, row) for row in reader if row][1:]
    for line, row in found:
        if len(row) < len(titles) or any(row[len(titles) :]):
            raise ValueError(
                f"line {line} has {len(row)} cells, the first has {len(titles)}; cells that contain a "
                f"{SEPARATORS[separator]} need quotes"
            )
    return [
        Row(line, {title: plain_cell(cell.strip()) for title, cell in zip(titles, row, strict=False)})
        for line, row in found
    ]
