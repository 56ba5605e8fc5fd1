"""JSON and YAML files of any origin: plain values, of limited size and depth."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

from anomaly_bench.files import digest

MOST_BYTES = 64 * 10**6  # of a record of 300,000 images
DEEPEST = 32  # nested lists and mappings
SCALARS = frozenset({str, int, float, bool, type(None)})


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: not a regular file, larger than `most` bytes, not JSON (such as NaN), or nested too deeply.
    """
    try:
        return shallow(decode(read_file(path, most)))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decode(text: bytes) -> Any:
    """`json.loads`, in a fifth of its time unless the text holds what only that accepts."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # such as half a surrogate pair, from a file name that is not UTF-8
        return json.loads(text, parse_float=finite, parse_constant=finite)


def encode(value: Any, sort_keys: bool = False) -> bytes:
    """JSON of plain values, in a fifth of the time of `json.dumps`; NaN becomes null."""
    try:
        return msgspec.json.encode(value, order="sorted" if sort_keys else None)
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(value, sort_keys=sort_keys).encode()


def has_digest(value: Any, expected: str) -> bool:
    """Whether this is the `digest` of plain values without NaN, which msgspec usually tells in a third of the time.

    Its text differs from `json`'s in how it writes very small and large numbers, mended here, and in rare letters: then
    the digest does not match, and is computed in full.
    """
    text = re.sub(rb"e-(\d)(?=[],}])", rb"e-0\1", encode(value, sort_keys=True))
    text = re.sub(rb"0\.0000([1-9])(\d*)", _scientific, text)
    return hashlib.sha256(text).hexdigest() == expected or digest(value) == expected


def _scientific(number: re.Match[bytes]) -> bytes:
    """0.000012 as `json` writes it: 1.2e-05."""
    return number[1] + (b"." + number[2] if number[2] else b"") + b"e-05"


def finite(text: str) -> float:
    """A number; ValueError: NaN or infinite, which JSON has no word for."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text}, expected a finite number")
    return number


def read_yaml(path: Path, most: int = 10**5) -> Any:
    """The content of a YAML file. Aliases are rejected, as a few lines of them can expand to any number of values.

    Raises: see `read_json`.
    """
    import yaml

    try:
        text = read_file(path, most)
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("has aliases, expected plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # reading on takes a time that grows with its square
                raise ValueError(f"nested more than {DEEPEST} deep")
        return shallow(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a plain file; a pipe is not waited for."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
        raise ValueError(f"{kinds.get(stat.S_IFMT(status.st_mode), 'a pipe or device')}, expected a file")
    if status.st_size > most:
        raise ValueError(f"{status.st_size / 1e6:.0f} MB, expected at most {most / 1e6:.0f}")
    return path.read_bytes()


def shallow(content: Any) -> Any:
    """The same; ValueError: nested more than `DEEPEST` deep."""
    level = [content] if isinstance(content, (list, dict)) else []
    for _ in range(DEEPEST):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [
            inner
            for values in parts
            if not SCALARS.issuperset(map(type, values))  # much faster than looking at each number of a curve
            for inner in values
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return content
    raise ValueError(f"nested more than {DEEPEST} deep")
