"""`anomaly-bench data check dataset=NAME data_root=DIR`: what is there, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from anomaly_bench.data.store import opened
from anomaly_bench.errors import DataError
from anomaly_bench.jobs import open_dataset, selected
from anomaly_bench.protocol import Task


def check(config: Any) -> bool:
    """Print one row per category; True: every category is there and sound.

    Folders, counts, the match of images and masks, and each file's header are looked at; pixels are not decoded.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    dataset = open_dataset(values["dataset"], values["data_root"])
    wanted = values["category"] if isinstance(values["category"], list) else [values["category"]]
    table = Table("category", "group", "train", "test good", "test defects", "masks", "state", title=dataset.title)
    sound = True
    for name in selected(dataset, [str(each) for each in wanted]):
        try:
            if name in dataset.missing:
                raise DataError(f"no folder {dataset.folder(name)}")
            task = dataset.task(name)
            look_at_headers(task)
            row = [*counts(task), "ok"]
        except DataError as error:
            row, sound = ["", "", "", "", str(error)], False
        table.add_row(name, dataset.categories[name] or "", *row)
    Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(table)
    return sound


def counts(task: Task) -> list[str]:
    tested = [image for test in task.tests.values() for image in test]
    defects = [image for image in tested if image.defect is not None]
    masks = sum(image.mask is not None for image in defects)
    return [str(number) for number in (len(task.fit), len(tested) - len(defects), len(defects), masks)]


def look_at_headers(task: Task) -> None:
    """Raise DataError for the first file that is no image."""
    for image in (*task.fit, *(image for test in task.tests.values() for image in test)):
        for path in filter(None, (image.path, image.mask)):
            with opened(path):
                pass
