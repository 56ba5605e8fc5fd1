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
from anomaly_bench.data.dataset import DATA_VARIABLE, as_path, chosen, find_root, open_dataset
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
    root, lacking = absent(archive, node, as_path(values["data_root"]), values["category"])
    if not lacking:
        reporter.say(f"nothing to do: all that is requested is in {root}")
        return True
    if archive.md5:
        reporter.say("only an MD5 of this archive is published: it shows a damaged file, but not a forged one")
    wanted = Download(archive.addresses, archive.sha256 or archive.md5, archive.packed, archive.unpacked)
    try:
        with workplace(root) as folder:
            part = read_part(folder / "archive.part", reporter, wanted.algorithm)
            fetch(wanted, part, reporter)
            unpack(archive, part.path, lacking, root, reporter)
            part.discard()
    except DataError as error:
        reporter.say(f"error: {error}")
        return False
    except OSError as error:
        reporter.say(f"error: {disk_failure(error, root, archive)}")
        return False
    reporter.say(f"{', '.join(lacking)}: unpacked into {root}")
    return True


def absent(archive: Archive, node: Any, data_root: Path | None, category: Any) -> tuple[Path, list[str]]:
    """The dataset's root, and the folders to unpack there: missing categories, or the archive's only folder."""
    given = made_root(node["name"], data_root)
    if not archive.folder:
        dataset = open_dataset(node, given)
        return dataset.root, [name for name in chosen(dataset, category) if name not in dataset.available]
    if category != "all":
        raise UsageError(
            f"category={category}: has no effect, as the archive of {node['title']} is unpacked as a whole"
        )
    root = find_root(node["name"], given, "a folder for its files")
    return root, [archive.folder] if not (root / archive.folder).is_dir() else []


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
