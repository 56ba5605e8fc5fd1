"""What was noticed about a task's files: left out, turned, empty or implausible. Nothing of it stops a run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import shorten

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Sample, Task

Facts = dict[str, Any]  # kind -> detail, of one image or of its mask; plain values, as they are stored as JSON

logger = logging.getLogger(__name__)
LEAST_BITS = 14  # images of a 16-bit format that use no more than these are probably of a camera with fewer bits
KINDS = {  # in the order of the lines; the number of files and the files come after
    "left_out": "images that no folder of the layout holds: left out",
    "unknown": "files of no known image format: left out",
    "beside": "images, or folders of images without train and test, beside the categories: left out",
    "unlisted": "images that dataset.csv does not list: left out",
    "normal_folder": "images in a folder that is not called good, read as normal",
    "no_normal": "defective test images, and no normal one (test/good): AUROC and others are undefined",
    "leaked": "test images that are training images too, byte for byte",
    "leaked_pixels": "test images with the pixels of a training image",
    "turned": "files turned upright, as their EXIF says",
    "exif": "files whose EXIF cannot be read: not turned",
    "pages": "images of several pages: the first is read",
    "transparent": "images with transparent pixels: read as if they were opaque",
    "dark": "images of 16 bits of which only {detail} are used: they are read as dark; input.bits={detail} scales them",
    "blank": "images of one colour",
    "mask_alpha": "masks read from their alpha channel",
    "mask_lossy": "masks of a lossy format: what is brighter than half of white is defect",
    "mask_soft": "masks with levels on both sides of half of white: all above 0 are defect",
    "mask_full": "masks that mark the whole image",
    "mask_white": "masks that mark the border and most of the image: is it the ground that is white?",
    "mask_empty": "defective images with an empty mask",
    "lost": "masks with regions that vanish by resizing or cropping, {detail} regions",
}
STATED = (
    "turned",
    "mask_alpha",
    "mask_lossy",
    "normal_folder",
)  # facts that are as they should be; others are warnings


@dataclass(frozen=True)
class Finding:
    """Files of which the same was noticed.

    Attributes:
        kind: a key of `KINDS`.
        files: ids of images, or paths below the category's folder.
        detail: what the kind's text names.
    """

    kind: str
    files: tuple[str, ...]
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{KINDS[self.kind].format(detail=self.detail)} ({len(self.files)})"

    def __str__(self) -> str:
        return f"{self.text}: {shorten(self.files)}"


@dataclass(frozen=True)
class ReadSet:
    """A set of images as they were decoded: facts by image, and by mask if there are masks."""

    samples: Sequence[Sample]
    images: Sequence[Facts]
    masks: Sequence[Facts]

    @property
    def decoded(self) -> Iterator[tuple[Sample, Facts]]:
        return zip(self.samples, self.images, strict=True)


def find(fit: ReadSet, tests: Sequence[ReadSet], contents: Callable[[Sample], str]) -> list[Finding]:
    """What was noticed of a training set and its test sets.

    Args:
        contents: the hash of an image's files.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for part in (fit, *tests):
        for (sample, image), mask in zip(part.decoded, part.masks or [{}] * len(part.samples), strict=True):
            for kind in (image.keys() | mask.keys()) & KINDS.keys() - (
                {"mask_empty"} if sample.label is None else set()
            ):
                files[kind].append(f"{sample.id} ({image.get(kind, mask.get(kind))})" if kind == "lost" else sample.id)
    found = [Finding(kind, tuple(ids)) for kind, ids in files.items() if kind != "lost"]
    if "lost" in files:
        gone, every = regions(facts for test in tests for facts in test.masks)
        found.append(Finding("lost", tuple(files["lost"]), f"{gone} of {every}"))
    return sorted(
        [*found, *leaks(fit, tests, contents), *dark((fit, *tests))], key=lambda each: list(KINDS).index(each.kind)
    )


def regions(masks: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many defect regions vanished by resizing and cropping, and how many there were."""
    listed = list(masks)
    return sum(facts.get("lost", 0) for facts in listed), sum(facts.get("regions", 0) for facts in listed)


def leaks(fit: ReadSet, tests: Sequence[ReadSet], contents: Callable[[Sample], str]) -> list[Finding]:
    """Test images that are in the training set too."""
    files = {contents(sample): sample.id for sample in fit.samples}
    pixels = {facts["pixels"]: sample.id for sample, facts in fit.decoded if usable(facts)}
    copies: list[str] = []
    alike: list[str] = []
    for sample, facts in (each for test in tests for each in test.decoded):
        if contents(sample) in files:
            copies.append(f"{sample.id} = {files[contents(sample)]}")
        elif usable(facts) and facts["pixels"] in pixels:
            alike.append(f"{sample.id} = {pixels[facts['pixels']]}")
    both = (("leaked", copies), ("leaked_pixels", alike))
    return [Finding(kind, tuple(ids)) for kind, ids in both if ids]


def usable(facts: Facts) -> bool:
    """Whether equal pixels mean an equal image: not where they are all the same."""
    return "pixels" in facts and "blank" not in facts


def dark(parts: Iterable[ReadSet]) -> list[Finding]:
    """Images of 16 bits, if the highest value of all of them is far below what 16 bits can hold."""
    wide = [(facts["highest"], sample.id) for part in parts for sample, facts in part.decoded if "highest" in facts]
    bits = max(8, max((highest for highest, _ in wide), default=2**16).bit_length())
    return [Finding("dark", tuple(name for _, name in wide), str(bits))] if bits <= LEAST_BITS else []


def say(
    name: str, read: str, findings: Sequence[Finding], note: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """One line for each finding, with its first files; all files go to the log.

    Args:
        read: what was read; on the screen only if there are findings.
    """
    (note if findings else logger.info)(f"{name}: read {read}")
    tell(name, findings, note, warn)


def tell_new(
    task: Task, recorded: Mapping[str, Sequence[str]] | None, note: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """What was noticed while a task's files were listed, and is not in its record: images added in an unread place."""
    known = recorded or {}
    tell(
        task.name, [each for each in task.findings if not set(each.files) <= set(known.get(each.kind, ()))], note, warn
    )


def tell(name: str, findings: Sequence[Finding], note: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """The lines of `say` about findings."""
    for each in findings:
        (note if each.kind in STATED else warn)(f"{name}: {each}")
        if shorten(each.files) != ", ".join(each.files):
            logger.info("%s: %s: %s", name, each.text, ", ".join(each.files))
