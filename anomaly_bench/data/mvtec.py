"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which most industrial data sets are kept in:

<root>/<category>/train/good/*            normal images to fit on
<root>/<category>/test/good/*             normal test images
<root>/<category>/test/<defect>/*         defective test images
<root>/<category>/ground_truth/<defect>/<stem>_mask.*   or <stem>.*, non-zero = defect
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as PILImage

from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.protocol import Image, Task

GOOD = "good"
DATA_VARIABLE = "ANOMALY_BENCH_DATA"


@dataclass(frozen=True)
class Dataset:
    """Categories in the layout above.

    Attributes:
        categories: every category of the dataset in the papers' order -> its group, or None.
        root: the folder that holds the categories.
        folders: category -> folder, where it is not `root / category`.
    """

    name: str
    title: str
    root: Path
    categories: dict[str, str | None]
    folders: dict[str, Path] = field(default_factory=dict)

    def folder(self, category: str) -> Path:
        return self.folders.get(category, self.root / category)

    @property
    def missing(self) -> list[str]:
        """Categories that have no folder on this disk."""
        return [name for name in self.categories if not os.path.isdir(self.folder(name))]

    def task(self, category: str) -> Task:
        """List the files of one category.

        Raises:
            DataError: a folder is missing or empty, or images and masks do not match.
        """
        return read_category(category, self.categories[category], self.folder(category))


def mvtec(
    name: str, title: str, categories: Mapping[str, Sequence[str]], data_root: str | os.PathLike[str] | None
) -> Dataset:
    """MVTec AD below `data_root`, else below `$ANOMALY_BENCH_DATA/<name>`.

    Args:
        categories: group -> names, in the papers' order.

    Raises:
        UsageError: no root is given, or it is not there.
    """
    groups: dict[str, str | None] = {each: group for group, names in categories.items() for each in names}
    return Dataset(name, title, find_root(name, data_root, "the folder that contains bottle, cable, ..."), groups)


def find_root(name: str, data_root: str | os.PathLike[str] | None, what: str) -> Path:
    """The dataset's folder from the key `data_root` or from the environment."""
    shared = os.environ.get(DATA_VARIABLE)
    if data_root is None and shared is None:
        raise UsageError(f"dataset={name} needs data_root=DIR ({what}), or {DATA_VARIABLE} set to its parent")
    root = Path(data_root).expanduser() if data_root is not None else Path(str(shared)).expanduser() / name
    origin = "data_root" if data_root is not None else f"${DATA_VARIABLE}/{name}"
    try:
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{origin}={root}: no such folder; give {what}") from error
    except OSError as error:
        raise UsageError(f"{origin}={root}: cannot be listed ({error.strerror}); check its rights") from error
    return root


def read_category(name: str, group: str | None, folder: Path) -> Task:
    """The task of one category's folder; see `Dataset.task`."""
    entries(printable(folder))
    train, test = folder / "train" / GOOD, folder / "test"
    for needed in (train, test):
        if not os.path.isdir(needed):
            raise DataError(f"{name}: no folder {needed}; expected MVTec AD's layout; add it")
    fit = tuple(Image(path, relative(path, folder), None) for path in map(printable, image_files(train)))
    if not fit:
        raise DataError(f"{name}: no image in {train}; add the normal images that a method fits on")
    tested = tuple(image for kind in subfolders(test) for image in read_kind(name, kind, folder))
    if not tested:
        raise DataError(
            f"{name}: no image in the folders of {test}; expected {GOOD} and one folder per kind of defect; add them"
        )
    return Task(name, group, fit, {"test": with_masks(name, tested, folder)})


def read_kind(category: str, kind: Path, folder: Path) -> list[Image]:
    printable(kind)
    defect = None if kind.name == GOOD else kind.name
    return [Image(path, relative(path, folder), defect) for path in map(printable, image_files(kind))]


def with_masks(category: str, images: Sequence[Image], folder: Path) -> tuple[Image, ...]:
    """Give each defective image its mask; no mask anywhere is allowed, some missing is not."""
    truth = folder / "ground_truth"
    kinds = {image.defect for image in images if image.defect is not None}
    kinds |= {path.name for path in subfolders(truth) if path.name != GOOD} if os.path.isdir(truth) else set()
    found = {kind: mask_files(category, truth / kind) for kind in sorted(kinds)}
    if not any(found.values()):
        return tuple(images)
    matched, lacking = [], []
    for image in images:
        mask = None
        if image.defect is not None:
            mask = found[image.defect].pop(image.path.stem, None)
            if mask is None:
                lacking.append(image.file)
        matched.append(Image(image.path, image.file, image.defect, mask))
    if lacking:
        raise DataError(
            f"{category}: {len(lacking)} defective images have no mask in {truth}: {shorten(lacking)}; "
            "expected <defect>/<stem>_mask.* or <stem>.*; add them, or remove all masks for image metrics only"
        )
    orphans = [relative(mask, folder) for masks in found.values() for mask in masks.values()]
    if orphans:
        raise DataError(f"{category}: {len(orphans)} masks without an image: {shorten(orphans)}; remove or rename them")
    return tuple(matched)


def mask_files(category: str, folder: Path) -> dict[str, Path]:
    """Image stem -> mask file of one kind of defect."""
    masks: dict[str, list[Path]] = defaultdict(list)
    for path in image_files(folder) if os.path.isdir(folder) else []:
        masks[path.stem.removesuffix("_mask")].append(path)
    for stem, paths in masks.items():
        if len(paths) > 1:
            raise DataError(f"{category}: {len(paths)} masks for image {stem}: {shorten(map(str, paths))}; keep one")
    return {stem: paths[0] for stem, paths in masks.items()}


def image_files(folder: Path) -> list[Path]:
    """Files with a suffix that PIL reads, sorted by name; hidden files are left out."""
    PILImage.init()
    suffixes = {suffix for suffix, kind in PILImage.registered_extensions().items() if kind in PILImage.OPEN}
    names = [entry.name for entry in entries(folder) if is_file(entry)]
    return [folder / name for name in sorted(names) if os.path.splitext(name)[1].lower() in suffixes]


def is_file(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere counts too: it is reported when it is read, and not silently left out."""
    try:
        return entry.is_file() or not os.path.exists(entry)
    except OSError:
        return True


def subfolders(folder: Path) -> list[Path]:
    """Visible subfolders, sorted by name."""
    return sorted(folder / entry.name for entry in entries(folder) if os.path.isdir(entry))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the folder and its rights") from error


def printable(path: Path) -> Path:
    """The same; DataError: its name has a line break, a control character or bytes that are no Unicode."""
    if not path.name.isprintable():
        raise DataError(
            f"{path.name!r} in {path.parent}: expected a name of printable Unicode letters; rename the file or folder"
        )
    return path


def tree(root: Path) -> Iterator[Path]:
    """A folder and all visible folders below it, links followed, each before its own and one that is met again once."""
    met: set[str] = set()

    def below(here: Path) -> Iterator[Path]:
        real = os.path.realpath(here)
        if real not in met:
            met.add(real)
            yield here
            for each in subfolders(here):
                yield from below(each)

    return below(root)


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def shorten(names: Sequence[str] | map[str], most: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
