"""ShanghaiTech Campus (Liu et al., CVPR 2018) and other videos in its layout; a category is one scene:

<root>/training/frames/<scene>_<clip>/*.jpg         normal frames to fit on
<root>/testing/frames/<scene>_<clip>/*.jpg
<root>/testing/test_frame_mask/<scene>_<clip>.npy   (T,) 0 or 1 for each frame
<root>/testing/test_pixel_mask/<scene>_<clip>.npy   (T, H, W), non-zero = anomaly

Papers read different frames, so their numbers are not comparable: records are named after the sampling.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.data.dataset import Digests, Sample, Source, Task, find_root
from anomaly_bench.data.readers import naming, source_size
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError, closest
from anomaly_bench.files import image_files, subfolders

SAMPLINGS = {"all": (1, 1), "mstc": (5, 5), "pefm": (5, 1)}  # every n-th training frame, every n-th test frame


@dataclass(frozen=True)
class Videos:
    """Scenes, each fitted on its training clips and tested on its test clips.

    Attributes:
        steps: n of every n-th training and of every n-th test frame of a clip that are read.
    """

    name: str
    title: str
    root: Path
    categories: Mapping[str, None]
    steps: tuple[int, int]

    @property
    def available(self) -> list[str]:
        return [scene for scene in self.categories if self.clips("training", scene)]

    def task(self, category: str) -> Task:
        """The frames of one scene.

        Raises:
            DataError: no frames to fit or test on, masks that are missing or do not match the frames, or clips of
                unlike sizes.
        """
        self.require_one_size(category)
        fit = [frame for clip in self.clips("training", category) for frame in self.frames(clip, self.steps[0])]
        test = [frame for clip in self.clips("testing", category) for frame in self.tested_frames(clip)]
        if not fit or not test:
            raise DataError(
                f"{category}: {len(fit)} training and {len(test)} test frames in {self.root}; expected both, in "
                f"training/frames/{category}_<clip> and testing/frames/{category}_<clip>"
            )
        return Task(category, None, tuple(fit), {"test": tuple(test)})

    def require_one_size(self, scene: str) -> None:
        """Raise DataError if the first frames of a scene's clips differ in size; `data check` looks at all frames."""
        expected: tuple[Path, tuple[int, int]] | None = None
        for clip in (*self.clips("training", scene), *self.clips("testing", scene)):
            for path in image_files(clip)[:1]:
                height, width = size = source_size(Source(path))
                expected = expected or (path, size)
                if size != expected[1]:
                    raise DataError(
                        f"{scene}: frames of unlike sizes: {path} has {width}x{height} pixels, {expected[0]} "
                        f"{expected[1][1]}x{expected[1][0]}; expected those of one camera"
                    )

    def clips(self, part: str, scene: str) -> list[Path]:
        folder = self.root / part / "frames"
        return [clip for clip in subfolders(folder) if clip.name.startswith(f"{scene}_")] if folder.is_dir() else []

    def frames(self, clip: Path, step: int = 1) -> list[Sample]:
        """Every `step`-th frame of a clip, as a normal image."""
        paths = image_files(clip)[::step]
        return [Sample(path.relative_to(self.root).as_posix(), None, (Source(path),), clip=clip.name) for path in paths]

    def tested_frames(self, clip: Path) -> Iterator[Sample]:
        """Frames of a test clip, with the labels and masks of its two arrays."""
        frame_file, mask_file = (
            self.root / "testing" / f"test_{kind}_mask" / f"{clip.name}.npy" for kind in ("frame", "pixel")
        )
        if lacking := [str(path) for path in (frame_file, mask_file) if not path.exists()]:
            raise DataError(
                f"{clip}: a clip without masks: no {' and no '.join(lacking)}; add them, or remove the clip"
            )
        frames, labels, masks = self.frames(clip), mapped(frame_file), mapped(mask_file)
        if not len(frames) == len(labels) == len(masks):
            raise DataError(
                f"{clip}: {len(frames)} frames, {len(labels)} labels in {frame_file.name} and {len(masks)} masks; "
                "expected equal numbers"
            )
        for number in range(0, len(frames), self.steps[1]):
            frame, mask = frames[number], (Source(mask_file, str(number), "npy"),)
            anomalous = bool(labels[number])
            yield Sample(frame.id, "anomaly", frame.sources, mask, clip.name) if anomalous else frame

    def digests(self, task: Task) -> Digests:
        return file_digests(task.files, self.root / task.name)


def mapped(path: Path) -> NDArray[Any]:
    """An npy file, memory-mapped; DataError: it cannot be read."""
    with naming(Source(path, reader="npy")):
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def stc(
    name: str,
    title: str,
    scenes: Sequence[str],
    sampling: str,
    subsample: int | None,
    data_root: str | os.PathLike[str] | None,
) -> Videos:
    """Videos below `data_root`, or below `$ANOMALY_BENCH_DATA/stc`.

    Args:
        scenes: to evaluate.
        sampling: all frames, or those of a paper; a key of `SAMPLINGS`.
        subsample: overrides it: every n-th frame of training and test clips.

    Raises:
        UsageError: no such sampling, or the root does not exist.
    """
    if sampling not in SAMPLINGS:
        found = f"dataset.sampling={sampling}: expected {', '.join(SAMPLINGS)}"
        raise UsageError(f"{found}{closest(str(sampling), SAMPLINGS)}")
    if subsample is not None and (type(subsample) is not int or subsample < 1):
        raise UsageError(f"dataset.subsample={subsample}: expected null or a whole number of at least 1")
    root = find_root("stc", data_root, "the folder that contains training and testing")
    steps, short, long = SAMPLINGS[sampling], sampling, f"sampling of {sampling}"
    if subsample is not None:
        steps, short, long = (subsample, subsample), f"every{subsample}", f"every {subsample}th frame"
    if steps != (1, 1):
        name, title = f"{name}_{short}", f"{title} ({long})"
    return Videos(name, title, root, dict.fromkeys(map(str, scenes)), steps)
