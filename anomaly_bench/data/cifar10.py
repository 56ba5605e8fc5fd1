"""CIFAR-10 (Krizhevsky 2009) as one-class problems: one category per class, images of 32 x 32 pixels, no masks.

It is read from the official batches (binary or Python), or from image folders `train/<class>` and `test/<class>`,
which may be in a zip archive. Four protocols are in use, and their numbers are not comparable:

A  (Deep SVDD, Ruff et al. 2018): fit on the class's 5,000 training images, tested on all 10,000 test images.
B  (third-party code of ARNet): fit on 80 % of the class's 6,000 images, tested on all other images of all classes.
C  (GANomaly, Akcay et al. 2018): the class is the anomaly; fit on 80 % of the images of the nine others.
D  (GradCon, Kwon et al. 2020): fit on 90 % of the class's training images, the rest is the validation set; tested on
   its 1,000 test images and as many drawn from the others.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_bench.data.cifar10_files import CLASSES, Images, find_images, lossy
from anomaly_bench.data.dataset import Digests, Sample, Task, find_root
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError

PROTOCOLS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Cifar10:
    """The ten one-class problems of one protocol."""

    name: str
    title: str
    root: Path
    images: Images
    protocol: str
    draw: int

    @property
    def categories(self) -> dict[str, None]:
        return dict.fromkeys(CLASSES)

    @property
    def available(self) -> list[str]:
        return [name for name in CLASSES if self.images.get(("train", name))]

    def task(self, category: str) -> Task:
        """The images of one category.

        Raises:
            DataError: there are no training or no test images.
        """
        train, test = (self.samples(split, category) for split in ("train", "test"))
        good = [image for image in train if image.label is None]
        validation: Sequence[Sample] = ()
        if not good or not test:
            raise DataError(f"{category}: no training or no test images in {self.root}; expected both of every class")
        if self.protocol in "BC":
            good, held_out = self.divide([image for image in (*train, *test) if image.label is None], 0.8, category)
            test = [*held_out, *(image for image in (*train, *test) if image.label is not None)]
        if self.protocol == "D":
            good, validation = self.divide(good, 0.9, category)
            normal, others = ([image for image in test if (image.label is None) is kind] for kind in (True, False))
            test = [*normal, *self.divide(others, len(normal) / len(others), category)[0]]
        return Task(category, None, tuple(good), {"test": tuple(test)}, tuple(validation))

    def samples(self, split: str, category: str) -> list[Sample]:
        """All images of a split, labelled with their class where it counts as a defect."""

        def label(name: str) -> str | None:
            return name if (name == category) is (self.protocol == "C") else None

        return [
            Sample(each, label(name), (source,))
            for name in CLASSES
            for each, source in self.images.get((split, name), ())
        ]

    def divide(self, images: list[Sample], share: float, category: str) -> tuple[list[Sample], list[Sample]]:
        """A random share of the images and the rest, both in order."""
        seed = zlib.crc32(f"{self.draw}/{category}".encode())
        taken = set(np.random.default_rng(seed).permutation(len(images))[: round(share * len(images))].tolist())
        return (
            [image for number, image in enumerate(images) if number in taken],
            [image for number, image in enumerate(images) if number not in taken],
        )

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root)


def cifar10(name: str, title: str, protocol: str, draw: int, data_root: str | os.PathLike[str] | None) -> Cifar10:
    """CIFAR-10 below `data_root`, or in a zip archive of that name.

    Protocols other than A, and copies in a lossy format, get their own names and titles, so records never mix.

    Args:
        protocol: A, B, C or D; see above.
        draw: seed of the random choices of protocols B, C and D; independent of a method's seed.

    Raises:
        UsageError: no such protocol, no root, or no images in it.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"dataset.protocol={protocol}: expected A, B, C or D")
    expected = "a folder or zip of train/<class> and test/<class>, or the official batches"
    root = find_root("cifar10", data_root, expected, archive=".zip")
    images = find_images(root)
    if not images:
        raise UsageError(f"data_root={root}: no images of CIFAR-10; expected {expected}")
    if protocol != "A":
        name, title = f"{name}_{protocol.lower()}", f"{title} (protocol {protocol})"
    if lossy(images):
        name, title = f"{name}_jpeg", f"{title}, JPEG copy"
    return Cifar10(name, title, root, images, protocol, draw)
