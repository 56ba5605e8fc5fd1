"""CIFAR-10's image files: in folders, in a zip archive of folders, or in the official batches."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from anomaly_bench.data.cifar10_batches import CLASSES, batch
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.readers import archive
from anomaly_bench.errors import UsageError
from anomaly_bench.files import image_files

LAYOUT = "a folder or zip of train/<class> and test/<class>, or the official batches"
LOSSY = (".jpg", ".jpeg", ".webp")
Images = Mapping[tuple[str, str], Sequence[tuple[str, Source]]]  # (split, class) -> (id, source) of each image
Found = Iterator[tuple[str, str, str, Source]]  # split, class, id, source


def find_images(root: Path) -> Images:
    """Every image below a folder or in a zip archive, in order.

    Raises:
        UsageError: there are none.
        DataError: a batch that cannot be read.
    """
    images: dict[tuple[str, str], list[tuple[str, Source]]] = defaultdict(list)
    for split, kind, name, source in in_zip(root) if root.is_file() else (*in_folders(root), *in_batches(root)):
        images[split, kind].append((name, source))
    if not images:
        raise UsageError(f"data_root={root}: no images of CIFAR-10; expected {LAYOUT}")
    return images


def lossy(images: Images) -> bool:
    """Whether any image is stored in a lossy format."""
    return any(name.lower().endswith(LOSSY) for part in images.values() for name, _ in part)


def in_folders(root: Path) -> Found:
    for split in ("train", "test"):
        for kind in CLASSES:
            folder = root / split / kind
            for path in image_files(folder) if folder.is_dir() else ():
                yield split, kind, f"{split}/{kind}/{path.name}", Source(path)


def in_zip(root: Path) -> Found:
    """Members such as train/airplane/0001.png, below any folder of the archive."""
    for member in sorted(archive(root, root.stat().st_mtime_ns).namelist()):
        match = re.search(r"(?:^|/)((train|test)/(\w+)/[^/]+)$", member)
        if match and match[3] in CLASSES:
            yield match[2], match[3], match[1], Source(root, member)


def in_batches(root: Path) -> Found:
    """The official files, in `root` or in the folder of the official archive."""
    for reader, folder, suffix in (("cifar10_binary", "bin", ".bin"), ("cifar10_pickle", "py", "")):
        for path in [*root.glob(f"*_batch*{suffix}"), *(root / f"cifar-10-batches-{folder}").glob(f"*_batch*{suffix}")]:
            split = "test" if path.name == f"test_batch{suffix}" else "train"
            if re.fullmatch(rf"(data_batch_[1-5]|test_batch){re.escape(suffix)}", path.name):
                for row, label in enumerate(batch(reader, path)[0]):
                    yield split, CLASSES[label], f"{path.stem}/{row:05}", Source(path, str(row), reader)
