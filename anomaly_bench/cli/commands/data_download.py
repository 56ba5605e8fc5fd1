"""`anomaly-bench data download dataset=NAME data_root=DIR`: fetch a dataset's official archive, check it, unpack it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from anomaly_bench.console import Reporter
from anomaly_bench.data.archive import megabytes, read_archive, unpack
from anomaly_bench.data.dataset import DATA_VARIABLE, as_path, chosen, open_dataset
from anomaly_bench.data.download import Download, fetch, read_part, workplace
from anomaly_bench.errors import DataError, UsageError

if TYPE_CHECKING:
    from anomaly_bench.data.archive import Archive


def download_dataset(config: Any) -> bool:
    """Fetch and unpack the missing categories among `category`; True: all of them are there.

    Raises:
        UsageError: the dataset's YAML names no archive, or `data_root` cannot be a folder.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    node, reporter = values["dataset"], Reporter()
    archive = read_archive(node)
    reporter.say(archive.licence)
    dataset = open_dataset(node, made_root(node["name"], as_path(values["data_root"])))
    lacking = [name for name in chosen(dataset, values["category"]) if name not in dataset.available]
    if not lacking:
        reporter.say(f"nothing to do: all requested categories are in {dataset.root}")
        return True
    try:
        with workplace(dataset.root) as folder:
            part = read_part(folder / "archive.part", reporter)
            fetch(Download(archive.addresses, archive.sha256, archive.packed, archive.unpacked), part, reporter)
            unpack(archive, part.path, lacking, dataset.root, reporter)
            part.discard()
    except DataError as error:
        reporter.say(f"error: {error}")
        return False
    except OSError as error:
        reporter.say(f"error: {disk_failure(error, dataset.root, archive)}")
        return False
    reporter.say(f"{', '.join(lacking)}: unpacked into {dataset.root}")
    return True


def made_root(name: str, data_root: Path | None) -> Path | None:
    """`data_root`, else `$ANOMALY_BENCH_DATA/<name>`, created if missing; None: neither is given."""
    shared = os.environ.get(DATA_VARIABLE)
    if data_root is None and shared is None:
        return None
    root = (data_root or Path(str(shared), name)).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"data_root={root}: cannot create the folder ({error.strerror})") from error
    return root


def disk_failure(error: OSError, root: Path, archive: Archive) -> str:
    """Why the disk could not be written to, in one line."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename or root}: cannot be written ({error.strerror or error}); check the folder's permissions"
        )
    return (
        f"{root}: the disk is full: found {megabytes(shutil.disk_usage(root).free)} free, unpacking needs up to "
        f"{megabytes(archive.unpacked)} besides the archive; free some and run the same command again: it resumes"
    )
