"""`anomaly-bench score maps=DIR dataset=NAME ...`: metrics from saved anomaly maps, without a model. No torch here.

DIR is one of

- a results folder, or a folder in one, with maps that `save_maps=true` wrote beside records. Masks are resized and
  cropped as in the run: metrics whose revision has not changed are reproduced exactly.
- maps from any program, one file (npy, npz, tif, tiff) per image, in a tree like that of the dataset's test images: for
  MVTec AD <category>/test/<defect>/<image>.tiff. For one category DIR may be its folder, or its folder `test`, as
  written by `score model=`.

Maps and masks are compared at one size. By default that is the image's size, as in MVTec's evaluation code: the mask
stays as it is, a map of another size is resized (bilinear). With `input.resize` and `input.crop` it is the size of a
run with these keys: the mask is resized (nearest neighbour) and cropped; a map of the resulting size is used as it is,
any other is resized to it. With a crop, only a map of the image's own size is accepted, and is resized and cropped
like the image.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from anomaly_bench.config.settings import conf_folder, existing_folder, input_size, new_folder, truth, whole_number
from anomaly_bench.console import Reporter, log_file
from anomaly_bench.data.anomaly_maps import covered_crop
from anomaly_bench.data.dataset import as_path, chosen, open_dataset
from anomaly_bench.data.geometry import Frame
from anomaly_bench.data.score_list import read_scores
from anomaly_bench.errors import UsageError, shorten
from anomaly_bench.files import safe_cell, write_atomically
from anomaly_bench.hardware import sharing
from anomaly_bench.hardware.devices import cores
from anomaly_bench.metrics.registry import chosen_metrics, standard_metrics
from anomaly_bench.runs.corrected_labels import read_labels
from anomaly_bench.runs.kept_maps import KeptMaps, kept_maps, recorded
from anomaly_bench.runs.map_files import MapFiles
from anomaly_bench.runs.rescoring import POOLED, carried_out
from anomaly_bench.tables.build import build_tables
from anomaly_bench.tables.formats.console import console
from anomaly_bench.tables.layout import CORRECTED, load_layout
from anomaly_bench.tables.table import DASH, Cell, CellValue, Header, Table

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset
    from anomaly_bench.metrics.registry import Metric
    from anomaly_bench.runs.rescoring import Result


def score_maps(values: Mapping[str, Any]) -> bool:
    """Print the metrics of all maps found, and write metrics.csv and metrics.json if `out` is given.

    Returns: whether every requested category has its metrics.

    Raises:
        UsageError: no maps, an unknown metric, or incompatible keys.
    """
    place = existing_folder(
        values, "maps", "anomaly maps in the layout of the test images, or a results folder with saved maps"
    )
    picked = chosen_metrics(values)
    if not picked:
        raise UsageError("metric=[]: expected at least one, such as metric=pro")
    metrics = standard_metrics() | picked
    dataset = open_dataset(values["dataset"], as_path(values["data_root"]))
    categories = chosen(dataset, values["category"])
    threads = cores() if values["threads"] is None else whole_number(values, "threads", 1)
    labels, pooled, reporter = read_labels(values["labels"]), truth(values, "pooled"), Reporter()
    kept = recorded(place) if labels or pooled else kept_maps(place)
    refuse_unused(values, bool(kept))
    source: KeptMaps | MapFiles
    if kept:
        source = KeptMaps(dataset, kept, metrics, threads, truth(values, "update"), reporter, labels, pooled)
    else:
        frame = read_frame(values["input"], place)
        scores = None if values["scores"] is None else read_scores(Path(str(values["scores"])).expanduser())
        source = MapFiles(dataset, place, metrics, threads, frame, scores, reporter)
    work, lacking = source.work(categories)
    if not work:
        raise UsageError(f"maps={place}: {source.nothing(categories)}")
    out = None if values["out"] is None else new_folder(values, "out")
    with sharing.computing(), log_file(None if out is None else out / "score.log"):
        if lacking:
            reporter.warn(f"{len(lacking)} categories have no images or no maps: {shorten(lacking, 15)}")
        results, failed = carried_out(work, reporter)
    if fixed := [each.corrected for each in results if each.corrected]:
        tables = build_tables(fixed, load_layout("corrected", [conf_folder() / "table"]))
    else:
        tables = [maps_table(maker, part, dataset, picked) for maker, part in by_maker(results).items()]
    print("\n".join(map(console, tables)), end="")
    if out is not None:
        write_atomically(out / "metrics.csv", as_csv(results, dataset, picked))
        write_atomically(out / "metrics.json", as_json(results, dataset, picked))
        print(f"\nmetrics.csv and metrics.json (with curves) are in {out}")
    return not (lacking or failed)


def read_frame(node: Mapping[str, Any], place: Path) -> Frame:
    """The size of the comparison; maps known to cover only a crop cannot be compared with whole images."""
    if node["resize"] is not None:
        return Frame(*input_size(node))
    if node["crop"] is not None:
        raise UsageError(f"input.crop={node['crop']} needs input.resize, the size before the crop")
    cut = covered_crop(place)
    if cut is not None:
        keys = " ".join(f"input.{key}={size}".replace(", ", ",") for key, size in cut.items())
        raise UsageError(f"maps={place}: they cover only the centre of their images; give {keys}")
    return Frame(None, None)


def refuse_unused(values: Mapping[str, Any], ours: bool) -> None:
    """Raise UsageError for a key that has no effect on this kind of maps."""
    if not ours:
        for key, lacks in (("update", "maps.npy beside a record"), ("pooled", "record"), ("labels", "record")):
            if values[key] if key == "labels" else truth(values, key):
                given = values[key] if key == "labels" else "true"
                raise UsageError(f"{key}={given}: maps={values['maps']} has no {lacks}")
    fixed = {"scores": values["scores"], **{f"input.{key}": value for key, value in values["input"].items()}}
    for key, value in fixed.items():
        if ours and value is not None:
            raise UsageError(f"{key}={value}: maps={values['maps']} has maps beside records, which set it already")


def by_maker(results: Sequence[Result]) -> dict[str, list[Result]]:
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        parts[result.maker].append(result)
    return parts


def maps_table(maker: str, results: Sequence[Result], dataset: Dataset, picked: Mapping[str, Metric]) -> Table:
    """Rows: categories, each group followed by its mean; columns: metrics, in %."""
    rows: list[tuple[Header, list[Cell]]] = []

    def add(label: str, part: Sequence[Result], opens: bool, mean: bool = False) -> None:
        cells = []
        for name, metric in picked.items():
            found = [value for each in part if (value := each.evaluation.values.get(name)) is not None]
            notes = (f"mean of {len(found)} of {len(part)}",) if 0 < len(found) < len(part) else ()
            cells.append(
                Cell((CellValue(f"{metric.scale * fmean(found):.{metric.digits}f}" if found else DASH),), notes)
            )
        rows.append((Header((label,), opens=opens, mean=mean), cells))

    groups = list(dict.fromkeys(dataset.categories.values()))
    for group in groups:
        names = [name for name, other in dataset.categories.items() if other == group]
        shown = sorted((each for each in results if each.task in names), key=lambda each: names.index(each.task))
        for each in shown:
            add(each.category, [each], opens=bool(rows) and each is shown[0])
        if shown and group and len(groups) > 1:
            add(mean_of(group, shown, len(names)), shown, opens=False, mean=True)
    alone = [each for each in results if each.category != POOLED]
    if len(dataset.categories) > 1 and alone:
        add(mean_of("all", alone, len(dataset.categories)), alone, opens=True, mean=True)
    for each in results:
        if each.category == POOLED:
            add(f"all {each.images} images pooled", [each], opens=False, mean=True)
    columns = [(metric.level, metric.short_title) for metric in picked.values()]
    caption = f"{dataset.title}, {maker} (in %)"
    return Table.of_rows("maps", caption, ("Category",), columns, rows).lettered()


def mean_of(what: str, part: Sequence[Result], categories: int) -> str:
    """'mean of all (2 of 15)'."""
    have = len({each.task for each in part})
    return f"mean of {what}" + (f" ({have} of {categories})" if have < categories else "")


def result_rows(results: Sequence[Result], dataset: Dataset, picked: Mapping[str, Metric]) -> Iterator[dict[str, Any]]:
    """One row per result; metrics as fractions, None where undefined; `corrected_...`: under corrected labels."""
    for each in results:
        counts = {"images": each.images, "defects": each.defects}
        about = {"dataset": dataset.name, "category": each.category, "group": dataset.categories.get(each.task)}
        fixed = each.corrected.corrected if each.corrected else None
        found = {name: each.evaluation.values.get(name) for name in picked}
        if fixed:
            found |= {CORRECTED + name: fixed["metrics"].get(name, {}).get("value") for name in picked}
        yield {"maps": each.maker, **about, **counts, **found, **({"changed": len(fixed["images"])} if fixed else {})}


def as_csv(results: Sequence[Result], dataset: Dataset, picked: Mapping[str, Metric]) -> str:
    text = io.StringIO(newline="")
    rows = list(result_rows(results, dataset, picked))
    columns = rows[0] if rows else ("maps", "dataset", "category", "group", "images", "defects", *picked)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: safe_cell(value) for name, value in row.items()})
    return text.getvalue()


def as_json(results: Sequence[Result], dataset: Dataset, picked: Mapping[str, Metric]) -> str:
    """The rows with their curves, and the metrics' revisions."""
    listed = [
        {**row, "curves": each.evaluation.curves}
        for row, each in zip(result_rows(results, dataset, picked), results, strict=True)
    ]
    revisions = {name: metric.revision for name, metric in picked.items()}
    return json.dumps({"revisions": revisions, "results": listed}, indent=1, allow_nan=False) + "\n"
