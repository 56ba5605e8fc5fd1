"""Variants of a paper's columns: other datasets and methods; and that every column of every layout has a method."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_build import FOLDER, columns
from test_papers import LAYOUTS, cell_at, notes_at, notes_text, ours, table

from anomaly_bench.config.compose import compose
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.data.mvtec3d import MODALITIES, mvtec3d
from anomaly_bench.errors import UsageError
from anomaly_bench.published import aliases
from anomaly_bench.records import save
from anomaly_bench.tables.layout import load_layout, make_layout

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.tables.table import CellValue, Table

METHODS = choices("method", [conf_folder()])
TABLE = LAYOUTS["zheng2022_5"]
NATIVE = {"resize": [256, 256], "crop": None}
TITLES = {"voxel_ae": "Voxel AE", "depth_vm": "Depth VM"}
WHERE = {  # a column of the paper -> modality, method
    "3d only / voxel / AE": ("xyz", "voxel_ae"),
    "3d + RGB / voxel / AE": ("rgb_xyz", "voxel_ae"),
    "3d only / depth / VM": ("depth", "depth_vm"),
    "3d + RGB / depth / VM": ("rgb_depth", "depth_vm"),
}


def scan(modality: str, method: str, points: float, task: str = "bagel", **others: Any) -> Record:
    """A record of MVTec 3D-AD in a modality; scans of each modality have other files, and so other hashes."""
    content: dict[str, Any] = {
        "dataset": f"mvtec3d_{modality}",
        "backbone": "none",
        "categories": {"bagel": "", "tire": ""},
        "titles": {"dataset": f"MVTec 3D-AD ({modality.replace('_', '+')})", "method": TITLES.get(method)},
        "settings": {"about": {"revision": 1, "input": {"resize": 256, "crop": None}}},
        "input": dict(NATIVE),
        "hashes": {part: hashlib.sha256(f"{part} {modality}".encode()).hexdigest() for part in ("fit", "test")},
    }
    return ours((points, 50, 50), task, method=method, **{**content, **others})


def scans() -> list[Record]:
    """One record of each column in `WHERE`, with 55, 56, ... %."""
    return [scan(*where, 55 + number) for number, where in enumerate(WHERE.values())]


def value_at(grid: Table, column: str) -> CellValue:
    (value,) = cell_at(grid, "bagel", column).values
    return value


def test_every_column_of_every_layout_has_a_method() -> None:
    others = {path.stem for path in FOLDER.glob("*.yaml")} - LAYOUTS.keys()
    assert [name for name in others if load_layout(name, [FOLDER]).published] == [], "a paper's table not in TABLES"
    without: dict[str, set[str]] = {}
    for name, layout in LAYOUTS.items():
        for cell in layout.references():
            if cell.method not in METHODS:
                column = " ".join(filter(None, (cell.printed_name, cell.variant)))
                without.setdefault(cell.method, set()).add(f"{name}: {column}")
    unknown = {method: sorted(found) for method, found in without.items()}
    assert not unknown, f"columns without a method in conf/method: {unknown}"


def test_every_alias_names_a_method_or_what_variants_replace() -> None:
    replaced = {
        aliases()[printed]
        for layout in LAYOUTS.values()
        for variant in layout.variants
        for printed in layout.variant(variant).methods
    }
    assert set(aliases().values()) <= {*METHODS, *replaced}


@pytest.mark.parametrize("name", ["zheng2022_5", "zheng2022_6"])
def test_variants_name_datasets_of_the_planes_that_their_methods_read(name: str, tmp_path: Path) -> None:
    modalities = {mvtec3d("mvtec3d", "", [], each, str(tmp_path)).name: each.split("+") for each in MODALITIES}
    layout = LAYOUTS[name]
    for variant in layout.variants:
        planes = modalities[layout.variant(variant).dataset]
        assert ("rgb" in planes) == ("RGB" in variant)
        methods = set(layout.variant(variant).methods.values())
        assert methods
        for method in methods:
            node = packaged_node("method", method)
            assert set(node["planes"]) <= set(planes) <= {*node["planes"], *node["optional_planes"]}
    columns_3d = {(cell.variant, cell.printed_name) for cell in layout.references() if cell.variant.startswith("3d")}
    listed = {(each, printed) for each in layout.variants for printed in layout.variant(each).methods}
    assert columns_3d == listed


@pytest.mark.parametrize("source", ["measured", "gaps"])
def test_records_of_several_modalities_stand_side_by_side(source: str) -> None:
    colour = ours((60, 50, 50), "bagel", dataset="mvtec3d", input=dict(NATIVE), categories={"bagel": "", "tire": ""})
    grid = table([*scans(), colour], TABLE, source)
    for number, (column, (_, method)) in enumerate(WHERE.items()):
        title = column if source == "gaps" else column.rpartition("/")[0] + f"/ {TITLES[method]}"
        assert value_at(grid, title).text == f"0.{55 + number}0"
    assert value_at(grid, "RGB only / PaDiM / WRN50").text == "0.600"
    assert len(columns(grid)) == 18, "no column is split, none is extra"
    assert not any("not in the paper" in each or "other images" in each for each in columns(grid))
    assert value_at(grid, "RGB only / PaDiM / WRN50").rank == 1, "one setup: compared"
    assert value_at(grid, "3d only / voxel / VM").text == "–"


def test_gaps_are_to_the_modality_of_the_same_variant() -> None:
    grid = table(scans(), TABLE, "gaps")
    published = {
        cell.variant: cell for cell in TABLE.references() if (cell.category, cell.printed_name) == ("bagel", "AE")
    }
    for column, variant in (("3d only / voxel / AE", "3d only/voxel"), ("3d + RGB / voxel / AE", "3d + RGB/voxel")):
        value, theirs = value_at(grid, column), published[variant]
        assert theirs.method == "voxel_ae"
        assert value.published == theirs.printed
        assert value.grade == ("better" if value.number and value.number > float(theirs.printed) else "worse")
        assert not any("published: mvtec3d" in note for note in notes_at(grid, "bagel", column))
    assert published["3d only/voxel"].printed != published["3d + RGB/voxel"].printed


def test_a_modality_that_the_paper_lacks_is_not_in_its_columns() -> None:
    grid = table([*scans(), scan("depth_xyz", "voxel_ae", 99), scan("depth", "mine", 98)], TABLE)
    assert "0.990" not in {value.text for row in grid.cells for cell in row for value in cell.values}
    assert columns(grid)[18:] == ["not in the paper / MVTec 3D-AD (depth) / mine"]
    assert value_at(grid, "(depth) / mine").text == "0.980"


def test_ours_beside_the_papers_are_grouped_by_dataset() -> None:
    grid = table(scans(), TABLE, "ours_beside")
    assert columns(grid)[18:] == [
        "Ours / MVTec 3D-AD (depth) / Depth VM",
        "Ours / MVTec 3D-AD (rgb+depth) / Depth VM",
        "Ours / MVTec 3D-AD (rgb+xyz) / Voxel AE",
        "Ours / MVTec 3D-AD (xyz) / Voxel AE",
    ]
    assert value_at(grid, "Ours / MVTec 3D-AD (xyz) / Voxel AE").text == "0.550"
    single = table(scans()[:1], TABLE, "ours_beside")
    assert columns(single)[18:] == ["Ours / Voxel AE"]


def test_setups_of_several_datasets_are_marked() -> None:
    colour = ours(
        (60, 50, 50), "bagel", dataset="mvtec3d", protocol="zheng2022_4", categories={"bagel": "", "tire": ""}
    )
    colour.input = {"resize": [224, 224], "crop": None, "filter": "bilinear"}
    grid = table([*scans(), colour], TABLE, "measured")
    assert notes_text(grid).startswith("Input 256×256 unless marked.")
    assert notes_at(grid, "bagel", "PaDiM / WRN50") == ["inputs of Table 4 of Zheng et al. 2022"]
    assert {value.rank for row in grid.cells for cell in row for value in cell.values} == {0}, "unlike inputs"


def test_a_dataset_has_one_setup() -> None:
    larger = scan("xyz", "voxel_ae", 70, input={"resize": [320, 320], "crop": None})
    told = (
        r"found records of 5 setups, expected one for each dataset; choose them, setup=\[A,B\], or set allow_mixed=true"
    )
    with pytest.raises(UsageError, match=told) as raised:
        table([*scans(), larger], TABLE)
    for name in ("mvtec3d_xyz-unified-320x320", "mvtec3d_xyz-unified-256x256", "mvtec3d_rgb_depth-unified-256x256"):
        assert f"setup={name}: input" in str(raised.value)
    grid = table([*scans(), larger], TABLE, mixed=True)
    assert len(columns(grid)) == 19
    assert {"0.550", "0.700"} <= {value.text for cell in grid.cells[0] for value in cell.values}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3d only": {"dataset": "x"}}, "here: variants: the paper's table has no 3d only; did you mean 3d only/"),
        ({"3d only/voxel": {"data": "x"}}, "3d only/voxel: unknown key data; did you mean dataset"),
        ({"3d only/voxel": {}}, "3d only/voxel: missing 1 required positional argument: 'dataset'"),
        ({"3d only/voxel": "x"}, "3d only/voxel: found 'x', expected a mapping"),
        ({"3d only/voxel": {"dataset": "x", "methods": {"VAE": "vae"}}}, "methods: the paper's table has no VAE"),
        ({"3d only/voxel": {"dataset": "x", "methods": {"AE": 5}}}, "methods: AE is 5, expected a text"),
    ],
)
def test_invalid_variants_are_rejected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_layout({**dataclasses.asdict(TABLE), "variants": changed}, "here")


def test_variants_need_a_papers_table() -> None:
    with pytest.raises(UsageError, match="here: variants has no effect without published: TABLE"):
        make_layout({**dataclasses.asdict(TABLE), "published": "", "labels": {}}, "here")


def test_commands_that_make_the_missing_records(command: Any, tmp_path: Path) -> None:
    for each in scans():
        save(each, tmp_path)
    status, out, err = command("tables", "table=zheng2022_5", f"results={tmp_path}", "source=measured")
    assert status == 0
    assert re.search(r"bagel .*0\.550.*0\.570.*0\.560.*0\.580", out)
    words = dict(
        re.findall(r"^(.+): no records, dashes; anomaly-bench (.+) data_root=\.\.\. makes them$", err, re.MULTILINE)
    )
    assert "AE (3d only/voxel)" not in words
    asked = "method=depth_ae dataset=mvtec3d dataset.modality=rgb+depth protocol=unified input.resize=256"
    assert words["AE (3d + RGB/depth)"] == asked
    assert words["PaDiM"] == "method=padim backbone=wrn50 dataset=mvtec3d protocol=zheng2022_4"
    save(ours(), tmp_path / "none")
    _, _, err = command("tables", "table=zheng2022_5", f"results={tmp_path / 'none'}")
    (line,) = [line for line in err.splitlines() if line.startswith("VM (3d only/voxel): ")]
    called = line.partition("anomaly-bench ")[2].removesuffix(" data_root=... makes them").split()
    assert called == ["method=voxel_vm", "dataset=mvtec3d", "dataset.modality=xyz", "protocol=paper"]
    config = compose("config", called)
    assert (config["dataset"]["modality"], config["input"]["resize"]) == ("xyz", 256)
