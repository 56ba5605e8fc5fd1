"""CIFAR-10 (Krizhevsky 2009) as one-class problems: one category per class, images of 32 x 32 pixels, no masks.

Four protocols are in use, and their numbers are not comparable:
A  (Deep SVDD, Ruff et al. 2018): fit on the class's 5,000 training images, tested on all 10,000 test images.
B  (third-party code of ARNet): fit on 80 % of the class's 6,000 images, tested on all other images of all classes.
C  (GANomaly, Akcay et al. 2018): the class is the anomaly; fit on 80 % of the images of the nine others.
D  (GradCon, Kwon et al. 2020): fit on 90 % of the class's training images, the rest is the validation set; tested on
   its 1,000 test images and as many drawn from the others.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from anomaly_bench.config.settings import whole_number
from anomaly_bench.data.categories import Categories, require_choice, require_images
from anomaly_bench.data.cifar10_batches import CLASSES
from anomaly_bench.data.cifar10_files import LAYOUT, Images, find_images, lossy
from anomaly_bench.data.dataset import Digests, Root, Sample, Task, find_root
from anomaly_bench.data.remembered import file_digests


@dataclass(frozen=True)
class Cifar10(Categories):
    """The ten one-class problems of one protocol."""

    images: Images
    protocol: str
    draw: int

    @property
    def available(self) -> list[str]:
        return [name for name in CLASSES if self.images.get(("train", name))]

    def task(self, category: str) -> Task:
        """The images of one category.

        Raises:
            DataError: there are no training or no test images.
        """
        train, test = (self.samples(split, category) for split in ("train", "test"))
        (fit, defects), (good, others) = parted(train), parted(test)
        validation: list[Sample] = []
        require_images(category, fit, test, self.root, LAYOUT)
        if self.protocol in "BC":
            fit, good = self.divide(fit + good, 0.8, category)
            test = good + defects + others
        if self.protocol == "D":
            fit, validation = self.divide(fit, 0.9, category)
            test = good + self.divide(others, len(good) / len(others), category)[0]
        return Task(category, None, tuple(fit), {"test": tuple(test)}, tuple(validation))

    def samples(self, split: str, category: str) -> list[Sample]:
        """All images of a split, labelled with their class where it counts as a defect."""
        images: list[Sample] = []
        for name in CLASSES:
            label = name if (name == category) is (self.protocol == "C") else None
            images += [Sample(each, label, (source,)) for each, source in self.images.get((split, name), ())]
        return images

    def divide(self, images: list[Sample], share: float, category: str) -> tuple[list[Sample], list[Sample]]:
        """A random share of the images and the rest, both in order."""
        seed = zlib.crc32(f"{self.draw}/{category}".encode())
        taken = set(np.random.default_rng(seed).permutation(len(images))[: round(share * len(images))].tolist())
        first, rest = ([each for n, each in enumerate(images) if (n in taken) is kind] for kind in (True, False))
        return first, rest

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root)


def parted(images: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The normal images and the others."""
    return [each for each in images if each.label is None], [each for each in images if each.label is not None]


def cifar10(name: str, title: str, protocol: str, draw: int, data_root: Root) -> Cifar10:
    """CIFAR-10 below `data_root`, or in a zip archive of that name.

    Protocols other than A, and copies in a lossy format, get their own names and titles, so records never mix.

    Args:
        protocol: A, B, C or D; see above.
        draw: seed of the random choices of protocols B, C and D; independent of a method's seed.

    Raises:
        UsageError: no such protocol, no root, or no images in it.
    """
    require_choice("protocol", protocol, "ABCD")
    whole_number({"dataset.draw": draw}, "dataset.draw", 0)
    root = find_root("cifar10", data_root, LAYOUT, archive=".zip")
    images = find_images(root)
    if protocol != "A":
        name, title = f"{name}_{protocol.lower()}", f"{title} (protocol {protocol})"
    if lossy(images):
        name, title = f"{name}_jpeg", f"{title}, JPEG copy"
    return Cifar10(name, title, root, dict.fromkeys(CLASSES), images, protocol, draw)
