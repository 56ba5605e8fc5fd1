"""CSVs of image scores: dialects are read to the same numbers, or refused in one line."""

from __future__ import annotations

import unicodedata

import pytest

from anomaly_bench.data.score_list import read_scores
from anomaly_bench.errors import UsageError

SCORES = {"test/good/000.png": 0.125, "test/Größe/000.png": 1234.5, "test/Größe/001.png": -2e-3}
PLAIN = "".join(f"{file},{score}\n" for file, score in SCORES.items())
COMMAS = {file: f"{score}".replace(".", ",") for file, score in SCORES.items()}
DIALECTS = {
    "plain": ("file,score\n" + PLAIN, "utf-8"),
    "byte order mark": ("file,score\n" + PLAIN, "utf-8-sig"),
    "UTF-16": ("file,score\n" + PLAIN, "utf-16"),
    "big-endian UTF-16": ("\ufefffile,score\n" + PLAIN, "utf-16-be"),
    "other case and spaces": ("File, SCORE \n" + PLAIN.replace(",", " , "), "utf-8"),
    "Windows": ("file,score\n" + PLAIN.replace("/", "\\"), "utf-8"),
    "line ends": (("file,score\n" + PLAIN).replace("\n", "\r\n"), "utf-8"),
    "from the current folder": ("file,score\n" + "".join(f"./{line}\n" for line in PLAIN.split()), "utf-8"),
    "decomposed": (unicodedata.normalize("NFD", "file,score\n" + PLAIN), "utf-8"),
    "tabs": (("file,score\n" + PLAIN).replace(",", "\t"), "utf-8"),
    "other columns": ("note,score,file\n" + "".join(f'"a,b",{n},{f}\n' for f, n in SCORES.items()), "utf-8"),
    "trailing commas": ("file,score\n" + PLAIN.replace("\n", ",\n"), "utf-8"),
    "semicolons": ("file;score\n" + PLAIN.replace(",", ";"), "utf-8"),
    "decimal commas": ("file;score\n" + "".join(f"{f};{n}\n" for f, n in COMMAS.items()), "utf-8"),
    "decimal commas in quotes": ("file,score\n" + "".join(f'{f},"{n}"\n' for f, n in COMMAS.items()), "utf-8"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name, tmp_path):
    text, encoding = DIALECTS[name]
    (tmp_path / "scores.csv").write_bytes(text.encode(encoding))
    assert read_scores(tmp_path / "scores.csv") == SCORES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,score\na,0,25\nb,1,5\n", "line 2 has 3 cells, the first has 2; cells that contain a comma need quotes"),
        ("file,score,note\na,0,25\nb,1\n", "line 3 has 2 cells, the first has 3"),
        ("file;score\na;1,250\nb;12,345\n", "the score 1,250 may be 1250 or 1.250; write decimal points"),
        ('file,score\na,"1,234.5"\n', "a has the score 1,234.5; expected a finite number"),
        ("file,score\na,1_000\n", "a has the score 1_000"),
        ("file,score\na,95%\n", "a has the score 95%"),
        ("file,score\na,\n", "a has the score of an empty cell"),
        ('file,score\na,1\n"b,2\n', "unexpected end of data"),
        ("file,score\na,inf\n", "a has the score inf"),
        ("file,score\na,1e999\n", "a has the score 1e999"),
        ("file,score\na,1\n./a,2\n", "a is listed twice"),
        ("file,score,Score\na,1,2\n", "two columns are called score"),
        ("a,1\nb,2\n", "not a CSV with the columns file, score (its first line has a, 1)"),
        ("", "its first line has nothing"),
        ("f\0i\0l\0e\0", "neither UTF-8 nor UTF-16 with a byte order mark"),
    ],
)
def test_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_scores(tmp_path / "scores.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leading_zeros_are_decimal(tmp_path):
    (tmp_path / "scores.csv").write_text("file;score\na;0,123\nb;1,250\n")
    assert read_scores(tmp_path / "scores.csv") == {"a": 0.123, "b": 1.25}
