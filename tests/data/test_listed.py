"""Images listed in a CSV, and folders whose normal images or masks have other names than MVTec AD's."""

from __future__ import annotations

import csv
import io

import pytest

from anomaly_bench.data.folder import folder
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS

HEADER = ["file", "label", "mask", "split", "category"]


def rows_of(tree, category):
    """A list of one category of `conftest.tree`: good images are labelled in two ways, one is for validation."""
    for path in sorted((tree / category).glob("*/*/*.png"), key=lambda path: ("train" not in path.parts, path)):
        split, kind = path.parent.parent.name, path.parent.name
        if split != "ground_truth":
            mask = tree / category / "ground_truth" / kind / f"{path.stem}_mask.png"
            named = mask.relative_to(tree).as_posix() if mask.exists() else ""
            label = {"good": ["", "OK"][len(path.stem) % 2]}.get(kind, kind)
            part = "validation" if (split, path.stem) == ("train", "005") else split
            yield [path.relative_to(tree).as_posix(), label, named, part, category]


def write(tree, rows, header=HEADER):
    with (tree / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def text_of(rows, separator=","):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue()


DIALECTS = {
    "semicolons": lambda rows: text_of(rows, ";").encode(),
    "tabs and a byte order mark": lambda rows: text_of(rows, "\t").encode("utf-8-sig"),
    "UTF-16": lambda rows: text_of(rows).encode("utf-16"),
    "other case and spaces": lambda rows: text_of([[f" {name.title()} " for name in rows[0]], *rows[1:]]).encode(),
    "other order": lambda rows: text_of([row[::-1] for row in rows]).encode(),
    "trailing commas and empty lines": lambda rows: text_of(rows).replace("\r\n", ",\r\n\r\n").encode(),
}


def opened(tree, **keys):
    return folder(None, None, tree, normal=["OK"], csv="list.csv", **keys)


def test_a_list_gives_the_images_of_the_layout(tree):
    write(tree, [*rows_of(tree, "mat"), *rows_of(tree, "cog")])
    dataset = opened(tree, textures=["mat"])
    for check in DATASET_CHECKS:
        check(dataset)
    assert dataset.categories == {"mat": "textures", "cog": "objects"}
    found, layout = dataset.task("cog"), folder(None, None, tree).task("cog")
    assert len(found.validation) == 1
    assert [each.sources for each in (*found.fit, *found.validation)] == [each.sources for each in layout.fit]
    tested = found.tests["test"]
    assert [(each.label, each.sources, each.masks) for each in tested] == [
        (each.label, each.sources, each.masks) for each in layout.tests["test"]
    ]
    assert tested[0].id == "cog/test/good/000.png"


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name, tree):
    rows = list(rows_of(tree, "cog"))
    write(tree, rows)
    plain = opened(tree).task("cog")
    (tree / "list.csv").write_bytes(DIALECTS[name]([HEADER, *rows]))
    assert opened(tree).task("cog") == plain


def test_good_images_are_normal_in_any_case(tree):
    names = iter(["", "Good", "OK", "normal"] * 5)
    write(tree, [[file, next(names) if "good" in file else "Spot", *rest] for file, _, *rest in rows_of(tree, "cog")])
    task = folder(None, None, tree, csv="list.csv").task("cog")
    assert [image.label for image in task.tests["test"]] == [None] * 3 + ["Spot"] * 3


def test_a_run_on_a_list_without_categories(command, tree, tmp_path):
    write(tree, [row[:4] for row in rows_of(tree, "cog")], HEADER[:4])
    words = (f"data_root={tree}", "dataset.csv=list.csv", "dataset.normal=OK", f"results={tmp_path / 'results'}")
    small = ("input.resize=64", "method.dimensions=20", "speed=false", "gallery=0")
    status, _, err = command("dataset=folder", *words, *small)
    assert status == 0, err
    assert len(list((tmp_path / "results").rglob("data-s0-*.json"))) == 1


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, "fit", r"list.csv:2: split fit; expected train, validation, test"),
        (1, "spot", r"list.csv:2: cog/train/good/000.png of split train has label spot; only test images may"),
        (2, "cog/x.png", r"list.csv:2: cog/train/good/000.png is normal but has a mask"),
        (0, "../secret.png", r"list.csv:2: file or mask '../secret.png'; expected a path below"),
        (0, "/etc/passwd", r"list.csv:2: file or mask '/etc/passwd'; expected a path below"),
        (0, "cog/train/good/001.png", r"list.csv:3: cog/train/good/001.png is listed twice"),
    ],
)
def test_a_wrong_row_is_named(column, value, message, tree):
    rows = list(rows_of(tree, "cog"))
    rows[0][column] = value
    write(tree, rows)
    with pytest.raises(UsageError, match=message):
        opened(tree)


def test_wrong_lists_and_files(tree):
    with pytest.raises(
        UsageError, match=r"dataset.csv=.*list.csv: cannot be read \(No such file or directory\); expected a CSV with"
    ):
        opened(tree)
    write(tree, [], ["image", "label"])
    with pytest.raises(
        UsageError, match=r"list.csv: not a CSV with the columns file, label, mask, split \(its first line"
    ):
        opened(tree)
    write(tree, [], [*HEADER[:4], "kategory"])
    with pytest.raises(
        UsageError, match=r"list.csv: a column kategory; expected file, label, mask, split, and perhaps"
    ):
        opened(tree)
    write(tree, [])
    with pytest.raises(UsageError, match="no rows; expected one for each image"):
        opened(tree)
    rows = list(rows_of(tree, "cog"))
    rows[-1][2] = ""
    write(tree, rows)
    with pytest.raises(DataError, match=r"cog: 1 defective images have no mask: cog/test/spot/002.png; name one"):
        opened(tree).task("cog")
    rows[0][0] = "cog/gone.png"
    write(tree, rows)
    with pytest.raises(DataError, match=r"cog: no such file in .*: cog/gone.png; add them, or mend the list"):
        opened(tree).task("cog")


def test_other_names_for_normal_images_and_masks(tree):
    for part in ("train", "test"):
        (tree / "cog" / part / "good").rename(tree / "cog" / part / "flawless")
    (tree / "cog" / "ground_truth").rename(tree / "cog" / "masks")
    with pytest.raises(DataError, match=r"no folder .*good; .*add it \(folders there: flawless; see dataset.normal\)"):
        folder(None, None, tree).task("cog")
    dataset = folder(None, None, tree, normal=["flawless", "good"], masks="masks")
    for check in DATASET_CHECKS:
        check(dataset)
    for category in ("cog", "mat"):
        tested = dataset.task(category).tests["test"]
        assert [image.label for image in tested] == [None] * 3 + ["spot"] * 3
    assert dataset.task("cog").tests["test"][3].masks[0].path == tree / "cog" / "masks" / "spot" / "000_mask.png"


def test_images_that_the_list_does_not_have_are_named_once(tree):
    rows = [*rows_of(tree, "cog"), *rows_of(tree, "mat")]
    gone = rows.pop(0)[0]
    write(tree, rows)
    dataset = opened(tree)
    (found,) = dataset.task("cog").findings
    assert (found.kind, found.files) == ("unlisted", (gone,))
    assert dataset.task("mat").findings == ()
