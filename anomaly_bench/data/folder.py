"""`dataset=folder data_root=DIR`: your own images, in MVTec AD's layout or listed in a CSV.

DIR holds one folder per category, or is a single category (it then has a folder `train`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.config.settings import listed_names
from anomaly_bench.data.dataset import Dataset, Root, find_root
from anomaly_bench.data.listed import Listed, read_list
from anomaly_bench.data.mvtec import GOOD, TRUTH, MVTecDataset
from anomaly_bench.errors import DataError, UsageError, closest, shorten
from anomaly_bench.files import composed, entries, image_files, subfolders


def folder(
    name: str | None,
    title: str | None,
    data_root: Root,
    textures: Sequence[str] = (),
    normal: str | list[str] = GOOD,
    masks: str = TRUTH,
    csv: str | None = None,
) -> Dataset:
    """Every category below `data_root`.

    Args:
        name: in records and paths; None: the folder's name.
        title: in tables; None: the name.
        textures: the categories that are textures; the others are objects. Empty: not known of any.
        normal: the names of folders of normal images; in a CSV, the labels of normal images.
        masks: the folder of masks in each category.
        csv: see `data.listed`; below `data_root`, unless it is absolute.

    Raises:
        UsageError: no such folder, no category in it, textures that are not among them, or a list that is wrong.
    """
    root = find_root("folder", data_root, "a folder of categories in MVTec AD's layout, or one category").resolve()
    own = composed(root.name)
    name = name or own
    good = tuple(listed_names(normal, "dataset.normal"))
    if csv is not None:
        images = read_list(root / str(csv), root, good)
        return Listed(name, title or name, root, grouped(list(images), textures), images)
    if (root / "train").is_dir():
        return MVTecDataset(name, title or name, root, grouped([own], textures), {own: root}, good, str(masks))
    categories = [path for path in subfolders(root) if is_category(path)]
    if not categories:
        raise UsageError(
            f"data_root={root}: no category found; expected {Path('<category>', 'train', 'good')} below it"
            f" (folders there: {shorten([path.name for path in subfolders(root)]) or 'none'})"
        )
    folders = {composed(path.name): path for path in categories}
    if len(folders) < len(categories):
        double = [path.name for path in categories if folders[composed(path.name)] != path]
        raise UsageError(f"data_root={root}: two folders have the name {double[0]}, in two Unicode forms; rename one")
    groups = grouped(list(folders), textures)
    beside = tuple(path for path in (*subfolders(root), *image_files(root)) if path not in categories)
    return MVTecDataset(name, title or name, root, groups, folders, good, str(masks), beside)


def grouped(categories: Sequence[str], textures: Sequence[str]) -> dict[str, str | None]:
    """Category -> "textures", "objects", or None where the textures are not named."""
    textures = [composed(str(name)) for name in textures]
    for name in textures:
        if name not in categories:
            raise UsageError(f"dataset.textures: {name} is no category{closest(name, categories)}")
    return {name: ("textures" if name in textures else "objects") if textures else None for name in categories}


def is_category(folder: Path) -> bool:
    """Whether it has part of the layout; an empty or unreadable folder counts as a category, which then fails."""
    try:
        names = {entry.name for entry in entries(folder)}
    except DataError:
        return True
    return not names or not names.isdisjoint({"train", "test"})
