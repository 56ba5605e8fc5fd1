"""Anomaly map files: their names, how to find them, and how to read them.

Maps are stored in a tree like that of their images: <category>/test/<defect>/<image>.npy, npz, tif or tiff. No torch
here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.documents import read_json
from anomaly_bench.errors import DataError
from anomaly_bench.files import relative, tree, write_atomically

MAP_SUFFIXES = (".npy", ".npz", ".tif", ".tiff")
ABOUT = "about.json"  # in a folder of maps written by anomaly-bench: who made them, and the input they cover
MapValues = NDArray[np.floating[Any]]


def map_names(files: Sequence[str]) -> list[str]:
    """The names of these images' maps: the image without its suffix, or with it where two would share a name."""
    bare = [str(PurePosixPath(file).with_suffix("")) for file in files]
    taken = Counter(name.casefold() for name in (*bare, *files))
    return [name if taken[name.casefold()] == 1 else file for name, file in zip(bare, files, strict=True)]


def find_maps(root: Path) -> dict[str, list[Path]]:
    """All map files below a folder by their path in it, with forward slashes and without the suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    for here in tree(root):
        for path in sorted(here.iterdir()):
            if path.suffix.lower() in MAP_SUFFIXES and not path.name.startswith(".") and path.is_file():
                found[relative(path.with_suffix(""), root)].append(path)
    return dict(found)


def write_about(root: Path, maker: str, input: Mapping[str, Any]) -> None:
    """Write about.json: who made the maps, and the input they cover."""
    write_atomically(root / ABOUT, json.dumps({"maker": maker, "input": input}, indent=1) + "\n")


def covered_crop(root: Path) -> dict[str, Any] | None:
    """The {"resize", "crop"} of maps that cover only a crop; None: they cover whole images, or it is unknown."""
    try:
        node = read_json(root / ABOUT)["input"]
        return {key: node[key] for key in ("resize", "crop")} if node["crop"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def addressed(category: str, names: Sequence[str], known: Container[str], alone: bool) -> Callable[[str], str] | None:
    """How a tree or list of names writes a test image's name, which is test/<defect>/<image> in its category.

    Either with the category before it or, if `alone` (there is no other category), as it is or without `test/`.
    None: no name is known in any of these forms.
    """
    forms: list[Callable[[str], str]] = [lambda name: f"{category}/{name}"]
    if alone:
        forms += [lambda name: name, lambda name: name.partition("/")[2]]
    return next((form for form in forms if any(form(name) in known for name in names)), None)


def read_map(path: Path) -> MapValues:
    """One (H, W) map; float32, or float64 if its type needs that.

    Raises:
        DataError: it cannot be read, is not a single map, or has a value that is not finite.
    """
    try:
        values = read_array(path)
    except DataError:
        raise
    except Exception as error:  # zip, numpy and tifffile raise a dozen types
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0] or error!r}); write it again") from error
    plane = values.squeeze()
    if plane.ndim != 2 or plane.dtype.kind not in "fiub":
        raise DataError(f"{path}: an array {values.shape} of {values.dtype}; expected numbers (H, W)")
    bad = plane.size - np.count_nonzero(np.isfinite(plane))
    if bad:
        raise DataError(f"{path}: {bad} of {plane.size} values are NaN or infinite; expected finite ones")
    return plane.astype(np.result_type(plane.dtype, np.float32), copy=False)


def read_array(path: Path) -> NDArray[Any]:
    """The only array in a file."""
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix.lower() != ".npz":
        import tifffile

        return np.asarray(tifffile.imread(path))
    with np.load(path, allow_pickle=False) as archive:
        if len(archive.files) != 1:
            raise DataError(f"{path}: arrays {', '.join(archive.files) or 'none'}; expected one, the map")
        return np.asarray(archive[archive.files[0]])
