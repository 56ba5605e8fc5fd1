"""`anomaly-bench data check dataset=NAME data_root=DIR`: what is there, and its problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from anomaly_bench.data import readers
from anomaly_bench.data.dataset import RGB, Sample
from anomaly_bench.data.decoding import decode_sample
from anomaly_bench.data.findings import Finding, ReadSet, find
from anomaly_bench.data.masks import look_at_extent, look_at_regions, read_mask
from anomaly_bench.data.remembered import content_hash, remembered
from anomaly_bench.errors import DataError

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset, Source, Task
    from anomaly_bench.data.remembered import Facts

COUNTED = {"train": "train", "good": "test good", "defects": "test defects", "kinds": "kinds of defect"}
SIZE = (256, 256)  # of protocol=unified; regions of masks that vanish at it are reported
ALL_COUNTED = {**COUNTED, "validation": "validation"}  # shown only if it differs from the official number


def examine(
    dataset: Dataset, name: str, official: Mapping[str, int], threads: int = 1
) -> tuple[list[str], list[str], list[Finding]]:
    """The cells of one category's row, its problems, and what else was noticed."""
    cells, problems = [""] * (len(COUNTED) + 1), []
    noticed: list[Finding] = []
    try:
        task = dataset.task(name)
        found, masks = count(task)
        cells = [str(number) for number in (*(found[key] for key in COUNTED), masks)]
        problems += count_differences(found, official)
        noticed = look(dataset, task, threads)
    except DataError as error:
        problems.append(str(error))
    return cells, problems, noticed


def count(task: Task) -> tuple[dict[str, int], int]:
    """The numbers for `ALL_COUNTED`, and the number of test images with a mask."""
    tested = [image for test in task.tests.values() for image in test]
    labels = [image.label for image in tested if image.label is not None]
    numbers = (len(task.fit), len(tested) - len(labels), len(labels), len(set(labels)), len(task.validation))
    return dict(zip(ALL_COUNTED, numbers, strict=True)), sum(bool(image.masks) for image in tested)


def count_differences(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """At most one line: every count that differs from the official one, if there is one."""
    wrong = [
        f"{ALL_COUNTED[key]} {found[key]}, official {number}"
        for key, number in official.items()
        if found[key] != number
    ]
    return [f"counts differ: {'; '.join(wrong)}"] if wrong else []


def look(dataset: Dataset, task: Task, threads: int) -> list[Finding]:
    """What was noticed about the files of a task; images are decoded, but for those unchanged since the last check.

    Raises:
        DataError: the first file that cannot be read, or plane or mask that differs from its image in size.
    """
    masks = {mask for image in task.samples for mask in image.masks}
    colours = {
        image.sources[index] for index, plane in enumerate(task.planes) if plane == RGB for image in task.samples
    }
    sources = list(dict.fromkeys(source for image in task.samples for source in (*image.sources, *image.masks)))

    def examined(source: Source) -> Facts:
        if source in colours and source not in masks:
            values, facts = decode_sample(Sample("", None, (source,)), (RGB,), None)
            return [values.shape[1], values.shape[0], facts]
        height, width = readers.source_size(source)
        return [width, height, look_at_mask(source) if source in masks else {}]

    with remembered("looks", dataset.root / task.name, examined) as look_up, ThreadPoolExecutor(threads) as pool:
        found = dict(zip(sources, pool.map(look_up, sources), strict=True))
    first: dict[str, Facts] = {}
    for image in task.samples:
        require_same_size(image, found, first)

    def part(samples: tuple[Sample, ...]) -> ReadSet:
        images = [joined(found[source][-1] for source in sample.sources) for sample in samples]
        marked = [joined(found[mask][-1] for mask in sample.masks) for sample in samples]
        return ReadSet(samples, images, marked)

    digests = dataset.digests(task)
    tests = [part(test) for test in task.tests.values()]
    noticed = find(part((*task.fit, *task.validation)), tests, lambda image: content_hash(image.sources, digests))
    return [*task.findings, *noticed]


def look_at_mask(source: Source) -> dict[str, Any]:
    """The facts of a mask file, at the default size of images."""
    facts: dict[str, Any] = {}
    marked = read_mask(source, facts)
    look_at_extent(marked, facts)
    return facts | look_at_regions(marked, SIZE, None)


def joined(several: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of all files of an image; its mask is empty if all are, and regions are counted together."""
    listed = list(several)
    facts = {kind: detail for each in listed for kind, detail in each.items()}
    if not all("mask_empty" in each for each in listed):
        facts.pop("mask_empty", None)
    return facts | {kind: sum(each.get(kind, 0) for each in listed) for kind in ("regions", "lost") if kind in facts}


def require_same_size(image: Sample, found: Mapping[Source, Facts], first: dict[str, Facts]) -> None:
    """DataError: a plane or mask has not the size of its image, or a frame not that of its clip's `first`."""
    expected, *others = ([source, *found[source][:2]] for source in (*image.sources, *image.masks))
    for source, width, height in others:
        if [width, height] != expected[1:]:
            raise DataError(
                f"{source}: {width}x{height} pixels, its image {image.id} has {expected[1]}x{expected[2]}; "
                "expected the same"
            )
    if image.clip and expected[1:] != (size := first.setdefault(image.clip, expected[1:])):
        raise DataError(
            f"{expected[0]}: {expected[1]}x{expected[2]} pixels, the first frame of clip {image.clip} has "
            f"{size[0]}x{size[1]}; expected the same"
        )
