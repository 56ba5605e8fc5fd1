"""MVTec 3D-AD (Bergmann, Jin, Sattlegger, Steger; VISAPP 2022): colour images with the 3D coordinates of each pixel:

<root>/<category>/{train,validation}/good/{rgb/*.png, xyz/*.tiff}
<root>/<category>/test/{good,<defect>}/{rgb/*.png, xyz/*.tiff, gt/*.png}

Coordinates are float32, (0, 0, 0) where the sensor has no value. Masks hold class numbers, above 0 = defect; normal
images have masks too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data.dataset import RGB, Digests, Plane, Sample, Source, Task, find_root
from anomaly_bench.data.readers import READERS, read_tiff
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError, closest, shorten
from anomaly_bench.files import image_files, subfolders

XYZ = Plane("xyz", 3, "float32", "nearest")
DEPTH = Plane("depth", 1, "float32", "nearest")
MODALITIES = {"rgb": (RGB,), "depth": (DEPTH,), "xyz": (XYZ,), "rgb+depth": (RGB, DEPTH), "rgb+xyz": (RGB, XYZ)}
FILES = {"rgb": ("rgb", "image"), "xyz": ("xyz", "tiff"), "depth": ("xyz", "depth")}  # plane -> folder, reader
GOOD = "good"


@dataclass(frozen=True)
class Scans:
    """Categories in the layout above, with some of their planes."""

    name: str
    title: str
    root: Path
    categories: Mapping[str, None]
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
        fit = self.scans(folder / "train" / GOOD, folder)
        validation = self.scans(folder / "validation" / GOOD, folder)
        kinds = subfolders(folder / "test") if (folder / "test").is_dir() else []
        tested = [scan for kind in kinds for scan in self.scans(kind, folder)]
        if not fit or not tested:
            raise DataError(
                f"{category}: {len(fit)} training and {len(tested)} test scans in {folder}; expected both, in "
                "train/good/rgb, test/good/rgb and test/<defect>/rgb"
            )
        return Task(category, None, tuple(fit), {"test": tuple(tested)}, tuple(validation), self.planes)

    def scans(self, where: Path, folder: Path) -> list[Sample]:
        """The scans in train/good, validation/good, or one folder of test."""
        files = {
            part: {path.stem: path for path in (image_files(where / part) if (where / part).is_dir() else [])}
            for part in ("rgb", "xyz", "gt")
        }
        tested, defective = where.parent.name == "test", where.name != GOOD
        every = sorted(files["rgb"].keys() | files["xyz"].keys())
        for part in (*dict.fromkeys(FILES[plane.name][0] for plane in self.planes), *(["gt"] if tested else [])):
            if lacking := [stem for stem in every if stem not in files[part]]:
                raise DataError(f"{where}: scans without a file in {part}/: {shorten(lacking)}; expected one for each")

        def sources(stem: str) -> tuple[Source, ...]:
            pairs = (FILES[plane.name] for plane in self.planes)
            return tuple(Source(files[part][stem], reader=reader) for part, reader in pairs)

        return [
            Sample(
                f"{where.relative_to(folder).as_posix()}/{stem}",
                where.name if defective else None,
                sources(stem),
                (Source(files["gt"][stem]),) if defective else (),
            )
            for stem in every
        ]

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root / task.name)


def mvtec3d(
    name: str, title: str, categories: Sequence[str], modality: str, data_root: str | os.PathLike[str] | None
) -> Scans:
    """MVTec 3D-AD below `data_root`, or below `$ANOMALY_BENCH_DATA/mvtec3d`.

    Args:
        modality: what methods may read, a key of `MODALITIES`; other than rgb, it becomes part of the records' name.

    Raises:
        UsageError: no such modality, or the root does not exist.
    """
    if modality not in MODALITIES:
        found = f"dataset.modality={modality}: expected {', '.join(MODALITIES)}"
        raise UsageError(f"{found}{closest(str(modality), MODALITIES)}")
    root = find_root("mvtec3d", data_root, "the folder that contains bagel, cable_gland, ...")
    if modality != "rgb":
        name, title = f"{name}_{modality.replace('+', '_')}", f"{title} ({modality})"
    return Scans(name, title, root, dict.fromkeys(categories), MODALITIES[modality])


def read_depth(source: Source) -> NDArray[np.generic]:
    """The distance from the camera, (H, W): the third coordinate."""
    coordinates = read_tiff(source)
    if coordinates.ndim != 3 or coordinates.shape[2] != 3:
        raise DataError(f"{source}: an array {coordinates.shape}; expected (H, W, 3) coordinates")
    return coordinates[..., 2]


READERS["depth"] = read_depth
