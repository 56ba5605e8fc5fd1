"""Files of anomaly maps: what they are called, how they are read, and how they are brought to their masks' size.

A map lies in a tree like that of its image: <category>/test/<defect>/<image>.npy, npz, tif or tiff. No torch here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.errors import DataError
from anomaly_bench.files import relative, tree, write_atomically

MAP_SUFFIXES = (".npy", ".npz", ".tif", ".tiff")
ABOUT = (
    "about.json"  # in a folder of maps that anomaly-bench has written: whose they are, and the input that they cover
)
MapValues = NDArray[np.floating[Any]]


def map_names(files: Sequence[str]) -> list[str]:
    """What the maps of these images are called: without the suffix, or with it where two would have one name."""
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
    """Say beside maps who made them, and the {"resize", "crop"} that they cover."""
    write_atomically(root / ABOUT, json.dumps({"maker": maker, "input": input}, indent=1) + "\n")


def covered_crop(root: Path) -> dict[str, Any] | None:
    """The input of maps that cover a crop only; None: they cover whole images, as far as is known."""
    try:
        node = json.loads((root / ABOUT).read_bytes())["input"]
        return dict(node) if node["crop"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def addressed(category: str, names: Sequence[str], known: Container[str], alone: bool) -> Callable[[str], str] | None:
    """How a test image's name in its category, test/<defect>/<image>, is written in a tree or list of names.

    That is with the category before it or, where there is no other category, as it is or without its first folder.
    None: none of the names is known in any of these ways.
    """
    ways: list[Callable[[str], str]] = [lambda name: f"{category}/{name}"]
    if alone:
        ways += [lambda name: name, lambda name: name.partition("/")[2]]
    return next((way for way in ways if any(way(name) in known for name in names)), None)


def read_map(path: Path) -> MapValues:
    """One (H, W) map; float32, or float64 where that is what it needs.

    Raises:
        DataError: it cannot be read, is no single map, or has no finite values.
    """
    try:
        values = read_array(path)
    except DataError:
        raise
    except Exception as error:  # zip, numpy and tifffile raise a dozen kinds
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0] or error!r}); write it again") from error
    plane = values.squeeze()
    if plane.ndim != 2 or plane.dtype.kind not in "fiub":
        raise DataError(f"{path}: an array {values.shape} of {values.dtype}; expected numbers (H, W)")
    bad = plane.size - np.count_nonzero(np.isfinite(plane))
    if bad:
        raise DataError(f"{path}: {bad} of {plane.size} values are NaN or infinite; expected finite ones")
    return plane.astype(np.result_type(plane.dtype, np.float32), copy=False)


def read_array(path: Path) -> NDArray[Any]:
    """The only array of a file."""
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix.lower() != ".npz":
        import tifffile

        return np.asarray(tifffile.imread(path))
    with np.load(path, allow_pickle=False) as archive:
        if len(archive.files) != 1:
            raise DataError(f"{path}: arrays {', '.join(archive.files) or 'none'}; expected one, the map")
        return np.asarray(archive[archive.files[0]])
