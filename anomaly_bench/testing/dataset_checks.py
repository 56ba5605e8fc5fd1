"""Contract checks for datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anomaly_bench.data.check import examine
from anomaly_bench.data.remembered import content_hash
from anomaly_bench.errors import shorten

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset


def check_names(dataset: Dataset) -> None:
    for name in ("name", "title", "root", "categories", "available", "task", "digests"):
        assert hasattr(dataset, name), f"the dataset has no {name}: see anomaly_bench.data.dataset.Dataset"
    names = list(dataset.categories)
    same = [name for name in names if [other.casefold() for other in names].count(name.casefold()) > 1]
    assert not same, f"categories {shorten(same)} differ only in case, which Windows and macOS ignore: rename them"
    assert dataset.available, f"no category has a folder in {dataset.root}: check data_root"


def check_tasks(dataset: Dataset) -> None:
    for name in dataset.available:
        task = dataset.task(name)
        assert task == dataset.task(name), f"{name}: two listings of the images differ: sort them by name"
        for part in (task.fit, task.validation, *task.tests.values()):  # test sets may share their normal images
            assert len({image.id for image in part}) == len(part), f"{name}: an image is listed twice: list each once"
        files = [image.id for image in task.samples]
        foreign = [file for file in files if "\\" in file or file.startswith(("/", ".."))]
        assert not foreign, f"{name}: {shorten(foreign)}: make `id` relative to the dataset, using as_posix()"
        defects = [image.id for image in (*task.fit, *task.validation) if image.label is not None]
        assert not defects, f"{name}: {shorten(defects)} in `fit` have a defect: fit on normal images only"
        assert all([task.tests, *task.tests.values()]), f"{name}: a test set is empty: `tests` is {{name: images}}"
        wrong = [image.id for image in task.samples if len(image.sources) != len(task.planes)]
        assert not wrong, f"{name}: {shorten(wrong)}: give each image one source per plane of the task"
        digests = dataset.digests(task)
        missing = [str(file) for file in task.files if file not in digests]
        assert not missing, f"{name}: no digest for {shorten(missing)}: digests(task) must include all of task.files"
        _, problems, _ = examine(dataset, name, {})
        assert not problems, "; ".join(problems)


def check_no_image_is_fitted_and_tested(dataset: Dataset) -> None:
    for name in dataset.available:
        task = dataset.task(name)
        digests = dataset.digests(task)
        fitted = {content_hash(image.sources, digests) for image in task.fit}
        tested = (image for test in task.tests.values() for image in test)
        leaked = [image.id for image in tested if content_hash(image.sources, digests) in fitted]
        assert not leaked, f"{name}: {shorten(leaked)} are in both training and test set: remove them from one"


DATASET_CHECKS: tuple[Callable[[Dataset], None], ...] = (
    check_names,
    check_tasks,
    check_no_image_is_fitted_and_tested,
)
