"""Which mask files belong to which images, in the layout of MVTec AD and those like it:

ground_truth/<defect>/<stem>_mask.*       or <stem>.*; also GROUND_TRUTH, masks, ...
ground_truth/<defect>/<stem>/*            several masks of one image, as in MVTec LOCO AD
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_bench.data.dataset import Sample, Source
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.files import composed, image_files, relative, subfolders

FOLDERS = ("ground_truth", "ground-truth", "groundtruth", "gt", "masks", "mask")  # in any case
SUFFIX = "_mask"
Masks = dict[str, list[Path]]  # an image's stem, or that and `SUFFIX` -> mask files


def mask_folder(category: str, folder: Path, name: str) -> Path | None:
    """A category's folder of masks: the one of this name, or one that is called so elsewhere."""
    if os.path.isdir(folder / name):
        return folder / name
    found = [path for path in subfolders(folder) if path.name.casefold() in FOLDERS]
    if len(found) > 1:
        raise DataError(f"{category}: {len(found)} folders of masks: {shorten(map(str, found))}; keep one")
    return found[0] if found else None


def with_masks(category: str, images: Sequence[Sample], truth: Path, normal: Sequence[str]) -> list[Sample]:
    """Assign each defective image its masks in the folder `truth`; either all have some, or none.

    Args:
        normal: folders of masks that are not read, those of normal images.

    Raises:
        DataError: images and masks do not match.
    """
    folders = {composed(path.name): path for path in subfolders(truth) if path.name not in normal}
    found = {kind: masks_in(category, path) for kind, path in folders.items()}
    if not any(found.values()):
        return list(images)
    matched, lacking = list(images), []
    for kind in sorted({image.label for image in images if image.label is not None} | found.keys()):
        places = [index for index, image in enumerate(images) if image.label == kind]
        stems = [composed(images[index].sources[0].path.stem) for index in places]
        masks, found[kind] = match(category, stems, found.get(kind, {}))
        for index, stem in zip(places, stems, strict=True):
            matched[index] = replace(images[index], masks=tuple(map(Source, masks.pop(stem, []))))
            lacking += [] if matched[index].masks else [images[index].id]
    if lacking:
        raise DataError(
            f"{category}: {len(lacking)} defective images have no mask in {truth}: {shorten(lacking)}; expected "
            "<defect>/<stem>_mask.* or <stem>.*, for each image; add them, or remove all masks for image metrics only"
        )
    orphans = [relative(path, truth.parent) for masks in found.values() for paths in masks.values() for path in paths]
    if orphans:
        raise DataError(f"{category}: {len(orphans)} masks without an image: {shorten(orphans)}; remove or rename them")
    return matched


def masks_in(category: str, folder: Path) -> Masks:
    """The mask files of one kind of defect; of an image's own folder all."""
    masks: Masks = defaultdict(list)
    for path in image_files(folder):
        masks[plain(path.stem)].append(path)
    for stem, paths in masks.items():
        if len(paths) > 1:
            raise DataError(f"{category}: {len(paths)} masks for image {stem}: {shorten(map(str, paths))}; keep one")
    for path in subfolders(folder):
        if several := image_files(path):
            if plain(path.name) in masks:
                raise DataError(f"{category}: a mask and a folder of masks for image {path.name} in {folder}; keep one")
            masks[plain(path.name)] = several
    return masks


def plain(stem: str) -> str:
    """A stem, composed, whose `SUFFIX` is in lower case."""
    stem = composed(stem)
    return stem[: -len(SUFFIX)] + SUFFIX if stem.casefold().endswith(SUFFIX) else stem


def match(category: str, stems: Sequence[str], masks: Masks) -> tuple[Masks, Masks]:
    """The masks by the stem of their image, and those without an image.

    Images may be called <name>_mask themselves, so a mask belongs to who has no other.

    Raises:
        DataError: an image has two, and which is meant is unknown.
    """
    fitting = {stem: [name for name in (plain(f"{stem}{SUFFIX}"), plain(stem)) if name in masks] for stem in stems}
    taken = {names[0] for names in fitting.values() if len(names) == 1}
    matched: Masks = {}
    rest = dict(masks)
    for stem, names in fitting.items():
        own = names if len(names) == 1 else [name for name in names if name not in taken]
        if len(own) > 1:
            both = shorten([str(path) for name in own for path in masks[name]])
            raise DataError(f"{category}: {len(own)} masks for image {stem}: {both}; keep one")
        if own:
            matched[stem] = rest.pop(own[0])
    return matched, rest
