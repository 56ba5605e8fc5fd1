"""`anomaly-bench data check|download`: check a dataset's folder, or fetch its archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anomaly_bench.cli.commands.data_download import download_dataset
from anomaly_bench.cli.hydra_app import hydra
from anomaly_bench.config.settings import MOST_THREADS, megapixels, whole_number
from anomaly_bench.data.check import COUNTED, examine
from anomaly_bench.data.dataset import as_path, chosen, open_dataset
from anomaly_bench.data.readers import limit_pixels
from anomaly_bench.errors import Exit, UsageError, shorten, shown
from anomaly_bench.files import subfolders
from anomaly_bench.hardware.devices import cores

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset
    from anomaly_bench.data.findings import Finding


def command(subject: str, arguments: Sequence[str]) -> int:
    work = download_dataset if subject == "download" else check_dataset
    return hydra("data", arguments, lambda config: Exit.DONE if work(config) else Exit.FAILED)


def check_dataset(config: Any) -> bool:
    """Print one row per category; True: every category is present and valid.

    Checks folders, counts (against `about.counts` of the dataset's YAML), the match of images and masks, and each
    file, which is decoded unless it is unchanged since the last check. Lines below the table say what is implausible.

    Raises:
        UsageError: the root is not a folder, or contains none of the dataset's categories.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    limit_pixels(megapixels(values))
    threads = cores() if values.get("threads") is None else whole_number(values, "threads", 1, MOST_THREADS)
    dataset = open_dataset(values["dataset"], as_path(values["data_root"]))
    wanted = chosen(dataset, values["category"])
    if not dataset.available:
        raise UsageError(nothing_found(dataset))
    official = (values["dataset"].get("about") or {}).get("counts", {})
    table = Table("category", "group", *COUNTED.values(), "masks", "state", title=escape(shown(dataset.title)))
    sound = True
    noticed: dict[str, list[Finding]] = {}
    for name in wanted:
        numbers, problems, noticed[name] = examine(dataset, name, official.get(name, {}), threads)
        cells = (name, dataset.categories[name] or "", *numbers, "; ".join(problems) or "ok")
        table.add_row(*(escape(shown(cell)) for cell in cells))
        sound = sound and not problems
    Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(table)
    for name, findings in noticed.items():
        for finding in findings:
            print(shown(f"{name}: {finding}"))
    return sound


def nothing_found(dataset: Dataset) -> str:
    there = shorten([path.name for path in subfolders(dataset.root)])
    return (
        f"{dataset.root}: no category of {dataset.title} in it (folders there: {there or 'none'}); expected "
        f"{shorten(list(dataset.categories))}: give their parent as data_root, or see anomaly-bench data download"
    )
