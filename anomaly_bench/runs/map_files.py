"""Metrics of maps from any program, one file per image: find, read and resize them to their masks. No torch here."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data import readers
from anomaly_bench.data.anomaly_maps import MAP_SUFFIXES, addressed, find_maps, map_names, read_map
from anomaly_bench.data.geometry import Frame, has_masks, shape
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.metrics.metrics import all_equal, evaluate
from anomaly_bench.protocol import Outcome
from anomaly_bench.records.record import category_name
from anomaly_bench.runs.rescoring import Result, Work

if TYPE_CHECKING:
    from anomaly_bench.console import Reporter
    from anomaly_bench.data.anomaly_maps import MapValues
    from anomaly_bench.data.dataset import Dataset, Sample
    from anomaly_bench.metrics.registry import Metric


class MapFiles:
    """Maps from any program, one file per image.

    Args:
        place: mirrors the dataset's root or, for one category, its folder or the folder `test` in it.
        frame: the size at which maps and masks are compared.
        scores: file -> image score; None: the highest value of each map at that size.
    """

    def __init__(
        self,
        dataset: Dataset,
        place: Path,
        metrics: Mapping[str, Metric],
        threads: int,
        frame: Frame,
        scores: Mapping[str, float] | None,
        reporter: Reporter,
    ) -> None:
        self.dataset, self.place, self.metrics = dataset, place, metrics
        self.threads, self.frame = threads, frame
        self.scores, self.reporter = scores, reporter
        self.files = find_maps(place)
        self.alone = False

    def work(self, categories: Sequence[str]) -> tuple[list[Work], list[str]]:
        """One piece per category, and the categories without a folder of images or maps."""
        self.alone = len(categories) == 1
        mapped = {name.partition("/")[0] for name in self.files}
        have = [name for name in categories if name in self.dataset.available]
        have = [name for name in have if name in mapped or (self.alone and mapped)]
        lacking = [name for name in categories if name not in have]
        return [(name, functools.partial(self.compute, name)) for name in have], lacking

    def nothing(self, categories: Sequence[str]) -> str:
        """Why there is no work."""
        kinds = ", ".join(MAP_SUFFIXES)
        expected = f"expected <category>/test/<defect>/<image> with one of {kinds}"
        if not self.files:
            return f"no maps in it; {expected}, or maps.npy beside a record"
        return f"{len(self.files)} maps in it, but none of {shorten(categories)}; {expected}: set category=NAME for one"

    def compute(self, category: str) -> list[Result]:
        """The metrics of every test set of one category.

        Raises:
            DataError: a map is missing or invalid, or an image has no score.
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
            if said := all_equal(outcome):
                hint = "" if scores else "; each is its map's maximum: if maps were scaled one by one, give scores=FILE"
                self.reporter.warn(f"{category}: {said}{hint}")
            maker = f"maps in {self.place}, compared at {self.frame}"
            shown = category_name(category, name, self.dataset.categories)
            evaluation = evaluate(outcome, self.metrics)
            results.append(Result(maker, category, shown, len(test), int(outcome.labels.sum()), evaluation))
        return results

    def find(self, category: str, images: Sequence[Sample]) -> dict[Sample, Path]:
        """Each image's map; a warning lists maps without an image."""
        names = map_names([image.id for image in images])
        way = addressed(category, names, self.files, self.alone)
        lacking = [
            image.id for image, name in zip(images, names, strict=True) if not way or way(name) not in self.files
        ]
        if way is None or lacking:
            raise DataError(
                f"{len(lacking)} of {len(images)} test images have no map in {self.place}: {shorten(lacking)}; "
                f"expected {category}/{names[0]}{MAP_SUFFIXES[0]} and so on"
            )
        wanted = {way(name) for name in names}
        double = [name for name in wanted if len(self.files[name]) > 1]
        if double:
            raise DataError(f"{len(double)} images have two maps: {shorten(map(str, self.files[double[0]]))}; keep one")
        tops = tuple({way(f"{name.partition('/')[0]}/") for name in names})
        extra = [str(self.files[name][0]) for name in self.files if name.startswith(tops) and name not in wanted]
        if extra:
            self.reporter.warn(f"{category}: {len(extra)} maps have no test image and are ignored: {shorten(extra)}")
        return {image: self.files[way(name)][0] for image, name in zip(images, names, strict=True)}

    def find_scores(self, category: str, images: Sequence[Sample]) -> dict[Sample, float] | None:
        """Each image's score, if a list was given."""
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
        used, tops = {way(file) for file in files}, tuple({way(f"{file.partition('/')[0]}/") for file in files})
        beside = re.compile(re.escape(way("")) + "[^/]+")  # not in the folders of training images and masks
        extra = [name for name in self.scores if name.startswith(tops) or beside.fullmatch(name)]
        extra = [name for name in extra if name not in used]
        if extra:
            self.reporter.warn(f"{category}: {len(extra)} scores have no test image and are ignored: {shorten(extra)}")
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
        """The input of metrics; without scores, an image's score is its map's highest value."""
        labels = np.array([image.label is not None for image in images])
        highest = [float(each.map.max()) for each in loaded] if scores is None else [scores[image] for image in images]
        masks = [each.mask for each in loaded] if has_masks(images) else None
        return Outcome(labels, np.array(highest), [each.map for each in loaded], masks)

    def load(self, image: Sample, path: Path) -> Loaded | DataError:
        """One map and its mask, or the error."""
        try:
            size = readers.source_size(image.sources[0])
            values = read_map(path)
            return Loaded(self.frame.map(values, size), self.frame.mask(image, size), values.shape)
        except DataError as error:
            return error if str(path) in str(error) else DataError(f"{path}: {error}")

    def say_resized(self, category: str, loaded: Sequence[Loaded]) -> None:
        changes = Counter((each.found, each.map.shape) for each in loaded if each.found != each.map.shape)
        for (found, used), count in changes.most_common(3):
            self.reporter.say(f"{category}: {count} maps of {shape(found)} resized to {shape(used)}")


@dataclass(frozen=True)
class Loaded:
    """One map and its mask at the size of the comparison, and the map's original (H, W)."""

    map: MapValues
    mask: NDArray[np.bool_]
    found: tuple[int, ...]
