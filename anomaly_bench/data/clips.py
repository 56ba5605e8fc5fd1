"""Clips of a video as folders of frames, and the arrays of labels and masks of ShanghaiTech Campus's test clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_bench.data.dataset import Sample, Source
from anomaly_bench.data.readers import mapped_npy, naming, source_size
from anomaly_bench.errors import DataError
from anomaly_bench.files import image_files


def frames(clip: Path, root: Path, step: int = 1) -> list[Sample]:
    """Every `step`-th frame of a clip, as a normal image."""
    paths = image_files(clip)[::step]
    return [Sample(path.relative_to(root).as_posix(), None, (Source(path),), clip=clip.name) for path in paths]


def labelled_frames(clip: Path, root: Path, labels: Path, masks: Path, step: int) -> Iterator[Sample]:
    """Every `step`-th frame of a test clip.

    Args:
        labels: npy file (T,), 0 or 1 for each frame.
        masks: npy file (T, H, W), non-zero = anomaly.

    Raises:
        DataError: a file is missing or has another number of frames.
    """
    if lacking := [str(path) for path in (labels, masks) if not path.exists()]:
        raise DataError(f"{clip}: a clip without masks: no {' and no '.join(lacking)}; add them, or remove the clip")
    normal = frames(clip, root)
    with naming(Source(labels)):
        anomalous = mapped_npy(labels)
    with naming(Source(masks)):
        marked = len(mapped_npy(masks))
    if not len(normal) == len(anomalous) == marked:
        raise DataError(
            f"{clip}: {len(normal)} frames, {len(anomalous)} labels in {labels.name} and {marked} masks; "
            "expected equal numbers"
        )
    for number in range(0, len(normal), step):
        marks = (Source(masks, str(number), "npy"),)
        yield replace(normal[number], label="anomaly", masks=marks) if anomalous[number] else normal[number]


def require_one_size(scene: str, clips: Sequence[Path]) -> None:
    """Raise DataError if the first frames of clips differ in size; `data check` looks at all frames."""
    first = [path for clip in clips for path in image_files(clip)[:1]]
    sizes = [source_size(Source(path)) for path in first]
    for path, (height, width) in zip(first, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise DataError(
                f"{scene}: frames of unlike sizes: {path} has {width}x{height} pixels, {first[0]} "
                f"{sizes[0][1]}x{sizes[0][0]}; expected those of one camera"
            )
