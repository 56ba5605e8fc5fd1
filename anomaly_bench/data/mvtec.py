"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which most industrial datasets use:

<root>/<category>/train/good/*            normal images to fit on
<root>/<category>/test/good/*             normal test images
<root>/<category>/test/<defect>/*         defective test images
<root>/<category>/ground_truth/<defect>/<stem>_mask.*   non-zero = defect; see `mask_files` for other names
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomaly_bench.data.categories import Categories
from anomaly_bench.data.dataset import Digests, Root, Sample, Source, Task, find_root
from anomaly_bench.data.findings import Finding
from anomaly_bench.data.mask_files import mask_folder, with_masks
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.files import composed, entries, image_files, other_files, printable, relative, subfolders, tree

GOOD, TRUTH = "good", "ground_truth"
CALLED_NORMAL = (GOOD, "ok", "normal")  # in any case: folders that cannot hold defects, whatever `normal` says


@dataclass(frozen=True)
class MVTecDataset(Categories):
    """Categories in the layout above.

    Attributes:
        folders: category -> folder, where it is not `root / category`.
        normal: the names of folders of normal images, in place of "good".
        truth: the folder of a category's masks.
        beside: what else is in `root` and should be named if it holds images.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    normal: tuple[str, ...] = (GOOD,)
    truth: str = TRUTH
    beside: tuple[Path, ...] = ()

    def folder(self, category: str) -> Path:
        return self.folders.get(category, self.root / category)

    @property
    def available(self) -> list[str]:
        return [name for name in self.categories if os.path.isdir(self.folder(name))]

    def task(self, category: str) -> Task:
        """List the files of one category.

        Raises:
            DataError: a folder is missing or empty, or images and masks do not match.
        """
        if not os.path.isdir(self.folder(category)):
            raise DataError(f"{category}: no folder {self.folder(category)}; expected MVTec AD's layout; add it")
        group, folder = self.categories[category], self.folder(category)
        task = read_category(category, group, folder, self.normal, self.truth)
        found = tuple(notice(task, folder, self.normal))
        if category == next(iter(self.available)):  # said once
            found += tuple(notice_beside(self.beside))
        return replace(task, findings=found)

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.folder(task.name))


def mvtec(name: str, title: str, categories: Mapping[str, Sequence[str]], data_root: Root) -> MVTecDataset:
    """MVTec AD below `data_root`, else below `$ANOMALY_BENCH_DATA/<name>`.

    Args:
        categories: group -> names, in the papers' order.

    Raises:
        UsageError: no root is given, or it does not exist.
    """
    root = find_root(name, data_root, "the folder that contains bottle, cable, ...")
    return MVTecDataset(name, title, root, by_category(categories))


def by_category(groups: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Category -> its group, in the papers' order."""
    return {category: group for group, names in groups.items() for category in names}


def read_category(name: str, group: str | None, folder: Path, normal: Sequence[str], truth: str) -> Task:
    """The task of one category's folder; see `MVTecDataset.task`."""
    entries(printable(folder))
    test = folder / "test"
    fit = tuple(image for train in normal_folders(name, folder, normal) for image in read_images(train, folder, None))
    if not os.path.isdir(test):
        raise DataError(f"{name}: no folder {test}; expected MVTec AD's layout; add it")
    if not fit:
        raise DataError(f"{name}: no image in {folder / 'train' / normal[0]}; add the normal images to fit on")
    found = {kind: name_of(kind) for kind in subfolders(test)}
    ordered = sorted(found, key=found.__getitem__)
    kinds = {kind: None if is_normal(kind, normal) else found[kind] for kind in ordered}
    tested = [image for kind, label in kinds.items() for image in read_images(kind, folder, label)]
    if not tested:
        raise DataError(
            f"{name}: no image in the folders of {test}; expected {normal[0]} and one folder per kind of defect; add "
            "them"
        )
    masks = mask_folder(name, folder, truth)
    if masks is not None:
        tested = with_masks(name, tested, masks, [kind.name for kind in subfolders(masks) if is_normal(kind, normal)])
    return Task(name, group, fit, {"test": tuple(tested)})


def normal_folders(name: str, folder: Path, normal: Sequence[str]) -> list[Path]:
    """The folders of a category's training images; DataError: there are none."""
    train = folder / "train"
    others = subfolders(train) if os.path.isdir(train) else []
    found = [each for each in others if is_normal(each, normal)]
    if not found:
        hint = f" (folders there: {shorten([each.name for each in others])}; see dataset.normal)" if others else ""
        raise DataError(f"{name}: no folder {train / normal[0]}; expected MVTec AD's layout; add it{hint}")
    return found


def name_of(folder: Path) -> str:
    return composed(folder.name)


def read_images(where: Path, folder: Path, label: str | None) -> list[Sample]:
    """The images in one folder of a category."""
    listed = image_files(printable(where))
    files = {relative(path, folder): path for path in map(printable, listed)}
    if len(files) < len(listed):
        raise DataError(f"{where}: {len(listed) - len(files)} images have the name of another in a second Unicode form")
    return [Sample(name, label, (Source(path),)) for name, path in sorted(files.items())]


def is_normal(folder: Path, normal: Sequence[str]) -> bool:
    return name_of(folder) in normal or folder.name.casefold() in CALLED_NORMAL


def notice(task: Task, folder: Path, normal: Sequence[str]) -> Iterator[Finding]:
    """What the layout has no place for, and normal images that are missing or elsewhere."""
    read = set(task.files)
    images: list[Path] = []
    others: list[Path] = []
    for where in tree(folder):
        images += [path for path in image_files(where) if path not in read]
        others += other_files(where) if where != folder else []  # which may hold a licence
    for kind, paths in (("left_out", images), ("unknown", others)):
        if paths:
            yield Finding(kind, tuple(relative(path, folder) for path in paths))
    tested = task.tests["test"]
    normals = [image for image in (*task.fit, *tested) if image.label is None]
    renamed = [image.id for image in normals if name_of(image.sources[0].path.parent) not in normal]
    if renamed:
        yield Finding("normal_folder", tuple(renamed))
    if all(image.label for image in tested):
        yield Finding("no_normal", tuple(image.id for image in tested))


def notice_beside(paths: Sequence[Path]) -> Iterator[Finding]:
    """Images beside the categories, and folders that hold some."""
    held = [path for path in paths if not path.is_dir() or has_images(path)]
    if held:
        yield Finding("beside", tuple(f"../{name_of(path)}" for path in held))


def has_images(folder: Path) -> bool:
    """Whether there is an image at any depth of a folder; not in one that cannot be listed."""
    try:
        return any(image_files(each) for each in tree(folder))
    except DataError:
        return False
