"""MVTec 3D-AD (Bergmann, Jin, Sattlegger, Steger; VISAPP 2022): colour images with the 3D coordinates of each pixel:

<root>/<category>/{train,validation}/good/{rgb/*.png, xyz/*.tiff}
<root>/<category>/test/{good,<defect>}/{rgb/*.png, xyz/*.tiff, gt/*.png}

Coordinates are float32, (0, 0, 0) where the sensor has no value. Masks hold class numbers, above 0 = defect; normal
images have masks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data.categories import Categories, require_choice, require_images
from anomaly_bench.data.dataset import RGB, Plane, Root, Sample, Source, Task, find_root
from anomaly_bench.data.readers import READERS, read_tiff
from anomaly_bench.errors import DataError, shorten
from anomaly_bench.files import image_files, subfolders

PLANES = {"rgb": RGB, "depth": Plane("depth", 1, "float32", "nearest"), "xyz": Plane("xyz", 3, "float32", "nearest")}
NAMES = ("rgb", "depth", "xyz", "rgb+depth", "rgb+xyz", "depth+xyz", "rgb+depth+xyz")
MODALITIES = {name: tuple(PLANES[part] for part in name.split("+")) for name in NAMES}
FILES = {"rgb": ("rgb", "image"), "xyz": ("xyz", "tiff"), "depth": ("xyz", "depth")}  # plane -> folder, reader
GOOD = "good"


@dataclass(frozen=True)
class Scans(Categories):
    """Categories in the layout above, with some of their planes."""

    planes: tuple[Plane, ...]

    @property
    def available(self) -> list[str]:
        return [name for name in self.categories if (self.root / name).is_dir()]

    def task(self, category: str) -> Task:
        """The scans of one category.

        Raises:
            DataError: no training or test scans, or one that lacks a file.
        """
        folder = self.root / category
        fit, validation = (tuple(self.scans(folder, part, GOOD)) for part in ("train", "validation"))
        kinds = subfolders(folder / "test") if (folder / "test").is_dir() else []
        test = tuple(scan for kind in kinds for scan in self.scans(folder, "test", kind.name))
        require_images(category, fit, test, folder, "train/good/rgb, test/good/rgb and test/<defect>/rgb")
        return Task(category, None, fit, {"test": test}, validation, self.planes)

    def scans(self, folder: Path, split: str, kind: str) -> Iterator[Sample]:
        """The scans of one kind, such as good, in a category's train, validation or test."""
        files = {part: by_stem(folder / split / kind / part) for part in ("rgb", "xyz", "gt")}
        stems = sorted(files["rgb"].keys() | files["xyz"].keys())
        needed = [*(FILES[plane.name][0] for plane in self.planes), *(["gt"] if split == "test" else [])]
        for part in needed:
            if lacking := [stem for stem in stems if stem not in files[part]]:
                where = f"{folder / split / kind}: scans without a file in {part}/"
                raise DataError(f"{where}: {shorten(lacking)}; expected one for each")
        for stem in stems:
            readers = (FILES[plane.name] for plane in self.planes)
            sources = tuple(Source(files[part][stem], reader=reader) for part, reader in readers)
            defect = () if kind == GOOD else (Source(files["gt"][stem]),)
            yield Sample(f"{split}/{kind}/{stem}", None if kind == GOOD else kind, sources, defect)


def by_stem(folder: Path) -> dict[str, Path]:
    """The files of a folder, which need not exist, by the number of their scan."""
    return {path.stem: path for path in image_files(folder)} if folder.is_dir() else {}


def mvtec3d(name: str, title: str, categories: Sequence[str], modality: str, data_root: Root) -> Scans:
    """MVTec 3D-AD below `data_root`, or below `$ANOMALY_BENCH_DATA/mvtec3d`.

    Args:
        modality: what methods may read, a key of `MODALITIES`; other than rgb, it becomes part of the records' name.

    Raises:
        UsageError: no such modality, or the root does not exist.
    """
    require_choice("modality", modality, MODALITIES)
    if modality != "rgb":
        name, title = f"{name}_{modality.replace('+', '_')}", f"{title} ({modality})"
    root = find_root("mvtec3d", data_root, "the folder that contains bagel, cable_gland, ...")
    return Scans(name, title, root, dict.fromkeys(categories), MODALITIES[modality])


def read_depth(source: Source) -> NDArray[np.generic]:
    """The distance from the camera's centre, (H, W), as in the paper; 0 where there is no value."""
    coordinates = read_tiff(source)
    if coordinates.ndim != 3 or coordinates.shape[2] != 3:
        raise DataError(f"{source}: an array {coordinates.shape}; expected (H, W, 3) coordinates")
    return np.asarray(np.linalg.norm(coordinates, axis=2), dtype=np.float32)


READERS["depth"] = read_depth
