"""Published numbers: every cell of every table of five papers, one CSV per paper.

`printed` is the text in the paper, `value` the number to compare with: in % for accuracies, empty for a dash, and
repaired where the paper contradicts itself or another one. Repaired and doubtful cells have a comment. `audit` finds
contradictions. Does not import torch.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

from anomaly_bench.errors import DataError, UsageError, closest

CSV_FOLDER = Path(__file__).parent
PRINTED_DASH = "-"
TEXT = ""  # the unit of a text cell, such as a backbone's name
ORIGINS = {
    "own": "the paper's own result",
    "quoted": "quoted by the paper",
    "re-run": "re-run by the paper's authors",
}
UNITS = {
    "image_auroc": "points",
    "pixel_auroc": "points",
    "pro": "points",
    "fps": "images/s",
    "time_ms": "ms",
    "extra_params": "million",
    "backbone": TEXT,
    "input_size": TEXT,
}
MEANS = {"mean:textures": "mean of textures", "mean:objects": "mean of objects", "mean:all": "mean of all"}


class PaperTable(NamedTuple):
    """One table of a paper.

    Attributes:
        paper: a key of PAPERS.
        number: of the table, or of the section with a dash.
        dataset: its name in records; copies: names of copies and samplings of it that may be shown instead.
        fractions: accuracies are printed as 0.975, not 97.5.
        protocol: of conf/protocol, that gives the table's inputs.
        side: of every method's input, in pixels; 0: as the methods' own papers say.
        printed: whether our sources have its values; otherwise they name its methods only.
    """

    paper: str
    number: str
    dataset: str = "mvtec"
    copies: tuple[str, ...] = ()
    fractions: bool = False
    protocol: str = "paper"
    side: int = 0
    printed: bool = True

    @property
    def title(self) -> str:
        return f"{self.paper}, {'section' if '-' in self.number else 'Table'} {self.number}"


COHEN, DEFARD = "Cohen and Hoshen 2020", "Defard et al. 2020"
JANG, YOU, ZHENG = "Jang et al. 2022", "You et al. 2022", "Zheng et al. 2022"
PAPERS = {
    COHEN: "SPADE, arXiv 2005.02357",
    DEFARD: "PaDiM, arXiv 2011.08785",
    JANG: "N-pad, arXiv 2210.08768",
    YOU: "ADTR, arXiv 2209.01816",
    ZHENG: "a benchmark of thirteen methods, arXiv 2205.14852",
}
ZHENG_INPUTS = "zheng2022_4"  # the table of backbones and inputs, and the protocol that follows it
TABLES = {
    "padim2020_III": PaperTable(DEFARD, "III"),
    "padim2020_IV": PaperTable(DEFARD, "IV", dataset="stc", copies=("stc_mstc",)),
    "padim2020_V": PaperTable(DEFARD, "V", printed=False),
    "padim2020_VC": PaperTable(DEFARD, "V-C", dataset="rd_mvtec", protocol="unified", side=224),
    "zheng2022_1": PaperTable(ZHENG, "1"),
    "zheng2022_2": PaperTable(ZHENG, "2"),
    "zheng2022_3": PaperTable(ZHENG, "3"),
    "zheng2022_4": PaperTable(ZHENG, "4", dataset="mvtec3d"),
    "zheng2022_5": PaperTable(ZHENG, "5", dataset="mvtec3d", fractions=True, protocol=ZHENG_INPUTS),
    "zheng2022_6": PaperTable(ZHENG, "6", dataset="mvtec3d", fractions=True, protocol=ZHENG_INPUTS),
    "npad2022_1": PaperTable(JANG, "1"),
    "npad2022_2": PaperTable(JANG, "2"),
    "adtr2022_1": PaperTable(YOU, "1"),
    "adtr2022_2": PaperTable(YOU, "2", printed=False),
    "adtr2022_3": PaperTable(YOU, "3", dataset="cifar10", copies=("cifar10_jpeg",), printed=False),
    "spade2020_1": PaperTable(COHEN, "1"),
    "spade2020_2": PaperTable(COHEN, "2"),
}


@dataclass(frozen=True)
class Reference:
    """One cell of a published table; every field but `value` is the text of its CSV column.

    Attributes:
        table: a name of TABLES.
        method, printed_name: our id, and the name in the table's header.
        backbone: our id, empty where the paper names none.
        category: our name, a key of MEANS, or empty where the table has no categories.
        variant: further distinction between columns, such as the input "3d only/voxel"; mostly empty.
        value: in `unit`; None for a dash and for text.
        comment: why the value is repaired or doubtful.
        origin: a key of ORIGINS: the paper's own method, quoted, or another method re-run by the authors.
    """

    table: str
    method: str
    printed_name: str
    backbone: str
    category: str
    variant: str
    metric: str
    printed: str
    value: float | None
    unit: str
    comment: str
    origin: str

    @property
    def source(self) -> str:
        """The paper: the CSV's name without its suffix."""
        return self.table.rpartition("_")[0]

    @property
    def dataset(self) -> str:
        return TABLES[self.table].dataset

    @property
    def is_mean(self) -> bool:
        return self.category in MEANS

    @property
    def number(self) -> Decimal | None:
        """The printed number in `unit`, with its printed precision; None for a dash or text."""
        if self.printed == PRINTED_DASH or self.unit == TEXT:
            return None
        number = Decimal(self.printed)
        return number.scaleb(2) if self.unit == "points" and TABLES[self.table].fractions else number


class Publication(NamedTuple):
    """A method's title and paper.

    Attributes:
        arxiv: 'YYMM.number', empty if the paper is not on arXiv.
        paper: authors, and where it was published.
        date: 'YYYY-MM', of the first version on arXiv where there is one.
    """

    title: str
    arxiv: str
    paper: str
    date: str

    @property
    def month(self) -> tuple[int, int] | None:
        """(year, month) of the first version on arXiv, if any."""
        return (int(self.date[:4]), int(self.date[5:])) if self.arxiv else None


def publications() -> dict[str, Publication]:
    """Our id of each method (the name of its YAML) -> its publication, from `methods.csv`."""
    with (CSV_FOLDER / "methods.csv").open(newline="", encoding="utf-8") as file:
        return {row.pop("method"): Publication(**row) for row in csv.DictReader(file)}


COLUMNS = [field.name for field in fields(Reference)]


def load_references(name: str | None = None, folder: Path = CSV_FOLDER) -> list[Reference]:
    """The cells of one paper ("zheng2022") or table ("zheng2022_1") in printed order; None: all.

    Raises:
        UsageError: no such paper or table.
        DataError: an invalid line; the message says file, line, what was found and what was expected.
    """
    sources = sorted({table.rpartition("_")[0] for table in TABLES})
    if name is not None and name not in (*sources, *TABLES):
        raise UsageError(f"{name}: no such paper or table{closest(name, [*sources, *TABLES])}")
    methods = aliases(folder)
    wanted = [source for source in sources if name is None or name == source or name.startswith(f"{source}_")]
    cells = [cell for source in wanted for cell in _read(folder / f"{source}.csv", methods)]
    return [cell for cell in cells if name in (None, cell.source, cell.table)]


def aliases(folder: Path = CSV_FOLDER) -> dict[str, str]:
    """Printed method name -> our id.

    Raises:
        DataError: the file or a column is missing, or a name is listed twice.
    """
    methods: dict[str, str] = {}
    path = folder / "aliases.csv"
    for line, row in _rows(path, ["printed_name", "method"]):
        if row["printed_name"] in methods:
            raise DataError(f"{path.name}:{line}: {row['printed_name']} is listed twice; keep one line")
        methods[row["printed_name"]] = row["method"]
    return methods


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> text) of every row of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header != columns:
                raise DataError(f"{path.name}:1: columns {','.join(header)}; expected {','.join(columns)}")
            for row in reader:
                if len(row) != len(columns):
                    raise DataError(f"{path.name}:{reader.line_num}: {len(row)} fields; expected {len(columns)}")
                yield reader.line_num, dict(zip(columns, row, strict=True))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; it is part of the package; reinstall it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}:{reader.line_num}: not a UTF-8 CSV file: {error}") from error


def _read(path: Path, methods: Mapping[str, str]) -> list[Reference]:
    cells: list[Reference] = []
    known: dict[tuple[str, ...], int] = {}
    for line, row in _rows(path, COLUMNS):
        try:
            cell = _cell(row, path.stem, methods)
        except ValueError as error:
            raise DataError(f"{path.name}:{line}: {error}") from error
        key = (cell.table, cell.printed_name, cell.variant, cell.category, cell.metric)
        if key in known:
            raise DataError(f"{path.name}:{line}: {' '.join(filter(None, key))} repeats line {known[key]}")
        known[key] = line
        cells.append(cell)
    return cells


def _cell(row: Mapping[str, str], source: str, methods: Mapping[str, str]) -> Reference:
    """A validated row; ValueError says what is wrong with it."""
    tables = [table for table in TABLES if table.startswith(f"{source}_")]
    _one_of("table", row["table"], tables)
    _one_of("printed_name", row["printed_name"], methods)
    _one_of("method", row["method"], [methods[row["printed_name"]]])
    _one_of("metric", row["metric"], UNITS)
    _one_of("unit", row["unit"], [UNITS[row["metric"]]])
    _one_of("origin", row["origin"], ORIGINS)
    if row["category"].startswith("mean:"):
        _one_of("category", row["category"], MEANS)
    if not row["printed"]:
        raise ValueError(f"printed is empty; expected the table's text, or {PRINTED_DASH}")
    value = _decimal("value", row["value"]) if row["value"] else None
    texts = {column: row[column] for column in COLUMNS if column != "value"}
    cell = Reference(value=None if value is None else float(value), **texts)
    if cell.printed != PRINTED_DASH and cell.unit != TEXT:
        _decimal("printed", cell.printed)
    if value != cell.number and not cell.comment:
        raise ValueError(f"value {value} of a printed {cell.printed} without a comment; say why it is repaired")
    return cell


def _one_of(column: str, found: str, valid: Mapping[str, object] | list[str] | tuple[str, ...]) -> None:
    if found not in valid:
        raise ValueError(f"{column} {found or 'is empty'}{closest(found, valid)}")


def _decimal(column: str, text: str) -> Decimal:
    with contextlib.suppress(InvalidOperation):
        number = Decimal(text)
        if number.is_finite():
            return number
    raise ValueError(f"{column} {text}: expected a number")
