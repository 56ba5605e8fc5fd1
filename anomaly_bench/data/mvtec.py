"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which most industrial datasets use:

<root>/<category>/train/good/*            normal images to fit on
<root>/<category>/test/good/*             normal test images
<root>/<category>/test/<defect>/*         defective test images
<root>/<category>/ground_truth/<defect>/<stem>_mask.*   or <stem>.*, non-zero = defect
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomaly_bench.data.dataset import Digests, Sample, Source, Task, find_root
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.files import composed, entries, image_files, printable, relative, subfolders

GOOD, TRUTH = "good", "ground_truth"


@dataclass(frozen=True)
class MVTecDataset:
    """Categories in the layout above.

    Attributes:
        categories: every category of the dataset in the papers' order -> its group, or None.
        root: the folder that holds the categories.
        folders: category -> folder, where it is not `root / category`.
        normal: the names of folders of normal images, in place of "good".
        truth: the folder of a category's masks.
    """

    name: str
    title: str
    root: Path
    categories: dict[str, str | None]
    folders: dict[str, Path] = field(default_factory=dict)
    normal: tuple[str, ...] = (GOOD,)
    truth: str = TRUTH

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
        return read_category(category, group, folder, self.normal, self.truth)

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.folder(task.name))


def mvtec(
    name: str, title: str, categories: Mapping[str, Sequence[str]], data_root: str | os.PathLike[str] | None
) -> MVTecDataset:
    """MVTec AD below `data_root`, else below `$ANOMALY_BENCH_DATA/<name>`.

    Args:
        categories: group -> names, in the papers' order.

    Raises:
        UsageError: no root is given, or it does not exist.
    """
    groups: dict[str, str | None] = {each: group for group, names in categories.items() for each in names}
    return MVTecDataset(name, title, find_root(name, data_root, "the folder that contains bottle, cable, ..."), groups)


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
    kinds = {kind: None if found[kind] in normal else found[kind] for kind in sorted(found, key=found.__getitem__)}
    tested = [image for kind, label in kinds.items() for image in read_images(kind, folder, label)]
    if not tested:
        raise DataError(
            f"{name}: no image in the folders of {test}; expected {normal[0]} and one folder per kind of defect; add "
            "them"
        )
    return Task(name, group, fit, {"test": with_masks(name, tested, folder / truth, normal)})


def normal_folders(name: str, folder: Path, normal: Sequence[str]) -> list[Path]:
    """The folders of a category's training images; DataError: there are none."""
    train = folder / "train"
    others = subfolders(train) if os.path.isdir(train) else []
    found = [each for each in others if name_of(each) in normal]
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


def with_masks(category: str, images: Sequence[Sample], truth: Path, normal: Sequence[str]) -> tuple[Sample, ...]:
    """Assign each defective image its mask in the folder `truth`; either all have one, or none."""
    kinds = {image.label for image in images if image.label is not None}
    listed = {name_of(path): path for path in (subfolders(truth) if os.path.isdir(truth) else [])}
    folders = {kind: listed.get(kind, truth / kind) for kind in sorted(kinds | (listed.keys() - set(normal)))}
    found = {kind: mask_files(category, where) for kind, where in folders.items()}
    if not any(found.values()):
        return tuple(images)
    matched, lacking = [], []
    for image in images:
        mask = None
        if image.label is not None:
            mask = found[image.label].pop(composed(image.sources[0].path.stem), None)
            if mask is None:
                lacking.append(image.id)
        matched.append(replace(image, masks=() if mask is None else (Source(mask),)))
    if lacking:
        raise DataError(
            f"{category}: {len(lacking)} defective images have no mask in {truth}: {shorten(lacking)}; "
            "expected <defect>/<stem>_mask.* or <stem>.*; add them, or remove all masks for image metrics only"
        )
    orphans = [relative(mask, truth.parent) for masks in found.values() for mask in masks.values()]
    if orphans:
        raise DataError(f"{category}: {len(orphans)} masks without an image: {shorten(orphans)}; remove or rename them")
    return tuple(matched)


def mask_files(category: str, folder: Path) -> dict[str, Path]:
    """Image stem -> mask file, for one kind of defect."""
    masks: dict[str, list[Path]] = defaultdict(list)
    for path in image_files(folder) if os.path.isdir(folder) else []:
        masks[composed(path.stem).removesuffix("_mask")].append(path)
    for stem, paths in masks.items():
        if len(paths) > 1:
            raise DataError(f"{category}: {len(paths)} masks for image {stem}: {shorten(map(str, paths))}; keep one")
    return {stem: paths[0] for stem, paths in masks.items()}
