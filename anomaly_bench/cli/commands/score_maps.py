"""`anomaly-bench score maps=DIR dataset=NAME ...`: metrics from kept anomaly maps, without a model. No torch here.

DIR is either of

- a results folder, or a folder in one, with the maps that `save_maps=true` kept beside records. Masks are resized and
  cropped as the run did: a metric whose revision has not changed comes out as recorded.
- maps of any program, one file (npy, npz, tif, tiff) an image, in a tree like that of the dataset's test images: MVTec
  AD's <category>/test/<defect>/<image>.tiff. For one category DIR may be its folder, or its folder `test`, as
  `score model=` writes it.

Maps and masks have to be of one size. MVTec's evaluation code expects maps of their images' size, and that is the size
here unless another is asked for: a smaller or larger map is resized (bilinear), the mask stays as it is. With
`input.resize` and `input.crop` the comparison is that of a run with these keys: the mask is resized (nearest neighbour)
and cropped; a map of the resulting size is taken as it is, any other is resized to it; with a crop, that can only be
one of the image's own size, which is resized and cropped like the image.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench import records
from anomaly_bench.config.settings import folder, input_size, new_folder, truth, whole
from anomaly_bench.console import Reporter, log_file
from anomaly_bench.data import readers
from anomaly_bench.data.anomaly_maps import SUFFIXES, addressed, covered_crop, find_maps, map_names, read_map
from anomaly_bench.data.dataset import as_path, chosen, open_dataset
from anomaly_bench.data.geometry import Frame, has_masks, shape
from anomaly_bench.errors import DataError, UsageError, closest, reason, shorten
from anomaly_bench.files import digest, tree, write_atomically
from anomaly_bench.hardware import sharing
from anomaly_bench.hardware.devices import cores
from anomaly_bench.metrics.metrics import METRICS, evaluate
from anomaly_bench.protocol import Outcome
from anomaly_bench.records.record import DamagedRecord, category_name
from anomaly_bench.records.setups import describe
from anomaly_bench.tables import query
from anomaly_bench.tables.formats.console import console
from anomaly_bench.tables.table import DASH, Cell, CellValue, Header, Table

if TYPE_CHECKING:
    from anomaly_bench.data.anomaly_maps import Floats
    from anomaly_bench.data.dataset import Dataset, Sample
    from anomaly_bench.metrics.metrics import Evaluation
    from anomaly_bench.records.record import Record


@dataclass(frozen=True)
class Result:
    """The metrics of one test set.

    Attributes:
        maker: whose maps at which size; each has a table of its own.
        task, category: of the dataset; the category is the test set's name in tables.
        images, defects: how many.
    """

    maker: str
    task: str
    category: str
    images: int
    defects: int
    evaluation: Evaluation


Work = tuple[str, Callable[[], list[Result]]]  # how its lines begin, and what is to be done


def rescore(values: Mapping[str, Any]) -> bool:
    """Print the metrics of all maps that are found, and write metrics.csv and metrics.json if `out` is given.

    Returns: whether every category that was asked for has its metrics.

    Raises:
        UsageError: no maps, an unknown metric, or keys that do not go together.
    """
    place = folder(values, "maps", "anomaly maps in the layout of the test images, or a results folder with kept maps")
    picked = read_metrics(values["metrics"])
    dataset = open_dataset(values["dataset"], as_path(values["data_root"]))
    categories = chosen(dataset, values["category"])
    threads = cores() if values["threads"] is None else whole(values, "threads", 1)
    kept, reporter = kept_maps(place), Reporter()
    refuse_unused(values, bool(kept))
    source: KeptMaps | MapFiles
    if kept:
        source = KeptMaps(dataset, kept, threads, truth(values, "update"), reporter)
    else:
        frame = read_frame(values["input"], place)
        source = MapFiles(dataset, place, threads, frame, read_scores(values["scores"]), reporter)
    work, lacking = source.work(categories)
    if not work:
        raise UsageError(f"maps={place}: {source.nothing(categories)}")
    out = None if values["out"] is None else new_folder(values, "out")
    with sharing.computing(), log_file(None if out is None else out / "score.log"):
        if lacking:
            reporter.warn(f"{len(lacking)} categories have no images or no maps: {shorten(lacking, 15)}")
        results, failed = carried_out(work, reporter)
    tables = [maps_table(maker, part, dataset, picked) for maker, part in by_maker(results).items()]
    print("\n".join(map(console, tables)), end="")
    if out is not None:
        write_atomically(out / "metrics.csv", as_csv(results, dataset, picked))
        write_atomically(out / "metrics.json", as_json(results, dataset, picked))
        print(f"\nmetrics.csv and metrics.json (with curves) are in {out}")
    return not (lacking or failed)


def carried_out(work: Sequence[Work], reporter: Reporter) -> tuple[list[Result], int]:
    """The results, and how many pieces of work failed: that is said, and does not stop the others."""
    results, failed = [], 0
    with reporter.stage("computing metrics", len(work)) as advance:
        for number, (name, task) in enumerate(work, 1):
            try:
                results += task()
            except UsageError:
                raise
            except Exception as error:  # one's failure is its own
                failed += 1
                reporter.fail(f"[{number}/{len(work)}] {name}: {reason(error)}", error)
            advance(1)
    return results, failed


def read_metrics(value: Any) -> list[str]:
    picked = list(METRICS) if value is None else query.name_list(value) or []
    for name in picked:
        if name not in METRICS:
            raise UsageError(f"metrics={name}: no such metric{closest(name, METRICS)}")
    if not picked:
        raise UsageError(f"metrics=[]: expected at least one of {', '.join(METRICS)}")
    return picked


def read_frame(node: Mapping[str, Any], place: Path) -> Frame:
    """The size of the comparison; maps that are known to cover a crop only cannot be laid over whole images."""
    if node["resize"] is not None:
        return Frame(*input_size(node))
    if node["crop"] is not None:
        raise UsageError(f"input.crop={node['crop']} needs input.resize, the size before the crop")
    cut = covered_crop(place)
    if cut is not None:
        keys = " ".join(f"input.{key}={size}".replace(", ", ",") for key, size in cut.items())
        raise UsageError(f"maps={place}: they cover the centre of their images only; give {keys}")
    return Frame(None, None)


def refuse_unused(values: Mapping[str, Any], recorded: bool) -> None:
    """Raise UsageError for a key that has no effect on this kind of maps."""
    if not recorded and truth(values, "update"):
        raise UsageError(f"update=true: maps={values['maps']} has no maps.npy beside a record")
    given = {"scores": values["scores"], **{f"input.{key}": value for key, value in values["input"].items()}}
    for key, value in given.items():
        if recorded and value is not None:
            raise UsageError(f"{key}={value}: maps={values['maps']} has maps kept beside records, which say that too")


def read_scores(value: Any) -> dict[str, float] | None:
    """File -> score of a CSV with these two columns; other columns are ignored.

    Raises:
        UsageError: it cannot be read, or a row is not as it must be.
    """
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    found: dict[str, float] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            for row in csv.DictReader(stream):
                file, score = row["file"].replace("\\", "/"), float(row["score"])
                if file in found or not math.isfinite(score):
                    what = "twice" if file in found else f"with the score {score}"
                    raise UsageError(f"scores={path}: {file} is listed {what}; expected one finite score each")
                found[file] = score
    except OSError as error:
        raise UsageError(f"scores={path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise UsageError(f"scores={path}: not a CSV with the columns file and score ({error!r})") from error
    return found


def kept_maps(place: Path) -> list[Path]:
    """The record of every `maps.npy` that lies beside one."""
    folders = [each for each in tree(place.resolve()) if (each / "maps.npy").is_file()]
    return sorted(path for each in folders if (path := each.with_name(f"{each.name}.json")).is_file())


class KeptMaps:
    """Maps that a run kept beside its records.

    Args:
        kept: the records' files.
        update: write new values of metrics into records that lack them or hold those of an older revision.
    """

    def __init__(self, dataset: Dataset, kept: list[Path], threads: int, update: bool, reporter: Reporter) -> None:
        self.dataset, self.threads, self.update, self.reporter = dataset, threads, update, reporter
        self.records: dict[Path, Record] = {}
        for path in kept:
            try:
                self.records[path] = records.load(path)
            except DamagedRecord as error:
                reporter.warn(str(error))
        self.makers = makers(self.records)

    def work(self, categories: Sequence[str]) -> tuple[list[Work], list[str]]:
        """One piece for each record, those with the same masks in turn; no category is expected to have one."""
        wanted = {
            path: record
            for path, record in self.records.items()
            if record.dataset == self.dataset.name and record.task in categories
        }
        order = sorted(wanted, key=lambda path: (categories.index(wanted[path].task), str(wanted[path].input), path))
        return [(path.stem, functools.partial(self.recompute, path, wanted[path])) for path in order], []

    def nothing(self, categories: Sequence[str]) -> str:
        """Why there is no work."""
        have = sorted({f"{record.dataset} {record.task}" for record in self.records.values()})
        expected = f"{self.dataset.name} {shorten(categories)}"
        return (
            f"it has kept maps of {shorten(have) or 'damaged records'}, none of {expected}; give dataset and category"
        )

    def recompute(self, path: Path, record: Record) -> list[Result]:
        """The metrics of one record, compared with those in it.

        Raises:
            DataError: the dataset's test images are no longer those of the record, or the maps are damaged.
        """
        images = self.dataset.task(record.task).tests.get(record.test, ())
        found = [(image.id, image.label) for image in images]
        if found != [(each["file"], each["defect"]) for each in record.images]:
            raise DataError(
                f"{len(found)} test images in {self.dataset.root}, others than the record's {len(record.images)}; "
                "give the data_root that it was made from"
            )
        resize, crop = input_size(record.input)
        masks = read_masks(images, Frame(resize, crop), self.threads) if has_masks(images) else None
        maps = read_kept(path.with_suffix("") / "maps.npy", (len(images), *(crop or resize)))
        scores = np.array([each["score"] for each in record.images], np.float32)
        labels = np.array([image.label is not None for image in images])
        made = evaluate(Outcome(labels, scores, maps, masks))
        self.compare(path, record, made)
        maker = self.makers[path]
        return [Result(maker, record.task, record.category, len(images), int(labels.sum()), made)]

    def compare(self, path: Path, record: Record, made: Evaluation) -> None:
        """Say, or with `update` mend, what the record does not hold; a value that should be the same and is not."""
        stale, changed = [], []
        for name, entry in made.entries.items():
            held = record.metrics.get(name)
            if held is None or held["revision"] != entry["revision"]:
                stale.append(name)
            elif not same(held["value"], entry["value"]):
                changed.append(name)
        if changed:
            self.reporter.warn(
                f"{path.stem}: {', '.join(changed)} not as recorded: its masks or maps have changed since"
                + ("; the record is not updated" if stale and self.update else "")
            )
        elif stale and self.update:
            records.write(replace(record, metrics={**record.metrics, **made.entries}, curves=made.curves), path)
            self.reporter.say(f"{path.stem}: updated ({', '.join(stale)})")
        elif stale:
            self.reporter.warn(
                f"{path.stem}: {', '.join(stale)} missing in the record or outdated; update=true mends it"
            )


def same(one: float | None, other: float | None) -> bool:
    """Equal but for the order in which another machine adds up."""
    return one is other if one is None or other is None else math.isclose(one, other, abs_tol=1e-9)


def makers(found: Mapping[Path, Record]) -> dict[Path, str]:
    """What the tables of records are called: method, backbone, seed and input; other settings by a hash of them."""
    names, settings = {}, {}
    for path, record in found.items():
        titles = [record.titles["method"], *([] if record.backbone == "none" else [record.titles["backbone"]])]
        names[path] = f"{' on '.join(titles)}, seed {record.seed}, {describe(record)}"
        settings[path] = digest({key: value for key, value in record.config.items() if key != "batch_size"})
    variants = defaultdict(set)
    for path, name in names.items():
        variants[name].add(settings[path])
    several = {path for path, name in names.items() if len(variants[name]) > 1}
    return {
        path: name + (f", settings {settings[path][:8]}" if path in several else "") for path, name in names.items()
    }


@functools.lru_cache(maxsize=1)  # the records of one category, method by method and seed by seed
def read_masks(images: tuple[Sample, ...], frame: Frame, threads: int) -> NDArray[np.bool_]:
    """(N, H, W) masks at an input's size."""
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(lambda image: frame.mask(image, (0, 0)), images)))


def read_kept(path: Path, expected: tuple[int, ...]) -> NDArray[np.float32]:
    """The (N, H, W) of a `maps.npy`, mapped from the disk."""
    try:
        maps: NDArray[np.float32] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save_maps=true overwrite=true makes it again") from error
    if maps.shape != expected:
        raise DataError(
            f"{path}: maps {maps.shape}; expected {expected}: save_maps=true overwrite=true makes them again"
        )
    return maps


class MapFiles:
    """Maps of any program, one file an image.

    Args:
        place: mirrors the dataset's root or, of one category, its folder or the folder `test` in that.
        frame: the size of the comparison.
        scores: file -> image score; None: a map's highest value, as it is compared.
    """

    def __init__(
        self,
        dataset: Dataset,
        place: Path,
        threads: int,
        frame: Frame,
        scores: Mapping[str, float] | None,
        reporter: Reporter,
    ) -> None:
        self.dataset, self.place, self.threads, self.frame = dataset, place, threads, frame
        self.scores, self.reporter = scores, reporter
        self.files = find_maps(place)
        self.alone = False

    def work(self, categories: Sequence[str]) -> tuple[list[Work], list[str]]:
        """One piece for each category, and the categories that have no folder of images or of maps."""
        self.alone = len(categories) == 1
        mapped = {name.partition("/")[0] for name in self.files}
        have = [name for name in categories if name in self.dataset.available]
        have = [name for name in have if name in mapped or (self.alone and mapped)]
        lacking = [name for name in categories if name not in have]
        return [(name, functools.partial(self.compute, name)) for name in have], lacking

    def nothing(self, categories: Sequence[str]) -> str:
        """Why there is no work."""
        kinds = ", ".join(SUFFIXES)
        expected = f"expected <category>/test/<defect>/<image> with one of {kinds}"
        if not self.files:
            return f"no maps in it; {expected}, or maps.npy beside a record"
        return (
            f"{len(self.files)} maps in it, but none of {shorten(categories)}; {expected}: give category=NAME for one"
        )

    def compute(self, category: str) -> list[Result]:
        """The metrics of every test set of one category.

        Raises:
            DataError: a map is missing or not as it must be, or an image has no score.
        """
        tests = self.dataset.task(category).tests
        images = [image for test in tests.values() for image in test]
        files = self.find(category, images)
        scores = self.find_scores(category, images)
        results = []
        for name, test in tests.items():
            loaded = self.read(test, files)
            self.say_resized(category, loaded)
            outcome = self.outcome(test, loaded, scores)
            maker = f"maps in {self.place}, compared at {self.frame}"
            shown = category_name(category, name, self.dataset.categories)
            results.append(Result(maker, category, shown, len(test), int(outcome.labels.sum()), evaluate(outcome)))
        return results

    def find(self, category: str, images: Sequence[Sample]) -> dict[Sample, Path]:
        """Each image's map; maps without an image are named."""
        names = map_names([image.id for image in images])
        way = addressed(category, names, self.files, self.alone)
        lacking = [
            image.id for image, name in zip(images, names, strict=True) if not way or way(name) not in self.files
        ]
        if way is None or lacking:
            raise DataError(
                f"{len(lacking)} of {len(images)} test images have no map in {self.place}: {shorten(lacking)}; "
                f"expected {category}/{names[0]}{SUFFIXES[0]} and so on"
            )
        wanted = {way(name) for name in names}
        double = [name for name in wanted if len(self.files[name]) > 1]
        if double:
            raise DataError(f"{len(double)} images have two maps: {shorten(map(str, self.files[double[0]]))}; keep one")
        tops = tuple({way(f"{name.partition('/')[0]}/") for name in names})
        extra = [str(self.files[name][0]) for name in self.files if name.startswith(tops) and name not in wanted]
        if extra:
            self.reporter.warn(f"{category}: {len(extra)} maps have no test image and are left out: {shorten(extra)}")
        return {image: self.files[way(name)][0] for image, name in zip(images, names, strict=True)}

    def find_scores(self, category: str, images: Sequence[Sample]) -> dict[Sample, float] | None:
        """Each image's score, where a list of them was given."""
        if self.scores is None:
            return None
        files = [image.id for image in images]
        way = addressed(category, files, self.scores, self.alone)
        lacking = [file for file in files if way is None or way(file) not in self.scores]
        if way is None or lacking:
            raise DataError(
                f"{len(lacking)} of {len(images)} test images are not in scores: {shorten(lacking)}; "
                f"expected {category}/{files[0]} and so on in the column file"
            )
        return {image: self.scores[way(image.id)] for image in images}

    def read(self, images: Sequence[Sample], files: Mapping[Sample, Path]) -> list[Loaded]:
        """The map and mask of every image."""
        with ThreadPoolExecutor(self.threads) as pool:
            loaded = list(pool.map(lambda image: self.load(image, files[image]), images))
        wrong = [each for each in loaded if isinstance(each, DataError)]
        if wrong:
            others = f"; {len(wrong) - 1} more of {len(images)} maps cannot be used" if len(wrong) > 1 else ""
            raise DataError(f"{wrong[0]}{others}")
        return [each for each in loaded if isinstance(each, Loaded)]

    def outcome(
        self, images: Sequence[Sample], loaded: Sequence[Loaded], scores: Mapping[Sample, float] | None
    ) -> Outcome:
        """What metrics look at; without scores a map's highest value is its image's."""
        labels = np.array([image.label is not None for image in images])
        highest = [float(each.map.max()) for each in loaded] if scores is None else [scores[image] for image in images]
        masks = [each.mask for each in loaded] if has_masks(images) else None
        return Outcome(labels, np.array(highest), [each.map for each in loaded], masks)

    def load(self, image: Sample, path: Path) -> Loaded | DataError:
        """One map and its mask, or what is wrong with them."""
        try:
            own = readers.size(image.sources[0])
            values = read_map(path)
            return Loaded(self.frame.map(values, own), self.frame.mask(image, own), values.shape)
        except DataError as error:
            return error if str(path) in str(error) else DataError(f"{path}: {error}")

    def say_resized(self, category: str, loaded: Sequence[Loaded]) -> None:
        changes = Counter((each.found, each.map.shape) for each in loaded if each.found != each.map.shape)
        for (found, used), count in changes.most_common(3):
            self.reporter.say(f"{category}: {count} maps of {shape(found)} resized to {shape(used)}")


@dataclass(frozen=True)
class Loaded:
    """One map and its mask at the size of the comparison, and the (H, W) that the map was found with."""

    map: Floats
    mask: NDArray[np.bool_]
    found: tuple[int, ...]


def by_maker(results: Sequence[Result]) -> dict[str, list[Result]]:
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        parts[result.maker].append(result)
    return parts


def maps_table(maker: str, results: Sequence[Result], dataset: Dataset, picked: Sequence[str]) -> Table:
    """Categories, each group followed by its mean, against metrics, in points of 100."""
    rows: list[tuple[Header, list[Cell]]] = []

    def add(label: str, part: Sequence[Result], opens: bool, mean: bool = False) -> None:
        cells = []
        for name in picked:
            found = [value for each in part if (value := each.evaluation.values[name]) is not None]
            notes = (f"mean of {len(found)} of {len(part)}",) if 0 < len(found) < len(part) else ()
            cells.append(Cell((CellValue(f"{100 * fmean(found):.1f}" if found else DASH),), notes))
        rows.append((Header((label,), opens=opens, mean=mean), cells))

    groups = list(dict.fromkeys(dataset.categories.values()))
    for group in groups:
        names = [name for name, own in dataset.categories.items() if own == group]
        shown = sorted((each for each in results if each.task in names), key=lambda each: names.index(each.task))
        for each in shown:
            add(each.category, [each], opens=bool(rows) and each is shown[0])
        if shown and group and len(groups) > 1:
            add(mean_of(group, shown, len(names)), shown, opens=False, mean=True)
    if len(dataset.categories) > 1 and results:
        add(mean_of("all", results, len(dataset.categories)), results, opens=True, mean=True)
    columns = [(METRICS[name].level, METRICS[name].title.removeprefix(f"{METRICS[name].level} ")) for name in picked]
    caption = f"{dataset.title}, {maker} (points of 100)"
    return Table.of_rows("maps", caption, ("Category",), columns, rows).lettered()


def mean_of(what: str, part: Sequence[Result], categories: int) -> str:
    """'mean of all (2 of 15)'."""
    have = len({each.task for each in part})
    return f"mean of {what}" + (f" ({have} of {categories})" if have < categories else "")


def rows(results: Sequence[Result], dataset: Dataset, picked: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One for each result; metrics as fractions, None where undefined."""
    for each in results:
        counts = {"images": each.images, "defects": each.defects}
        about = {"dataset": dataset.name, "category": each.category, "group": dataset.categories[each.task]}
        yield {"maps": each.maker, **about, **counts, **{name: each.evaluation.values[name] for name in picked}}


def as_csv(results: Sequence[Result], dataset: Dataset, picked: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    columns = ("maps", "dataset", "category", "group", "images", "defects", *picked)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(results, dataset, picked))
    return text.getvalue()


def as_json(results: Sequence[Result], dataset: Dataset, picked: Sequence[str]) -> str:
    """The rows with their curves, and the revisions of the metrics."""
    listed = [
        {**row, "curves": each.evaluation.curves}
        for row, each in zip(rows(results, dataset, picked), results, strict=True)
    ]
    revisions = {name: METRICS[name].revision for name in picked}
    return json.dumps({"revisions": revisions, "results": listed}, indent=1, allow_nan=False) + "\n"
