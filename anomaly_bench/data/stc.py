"""ShanghaiTech Campus (Liu et al., CVPR 2018) and other videos in its layout; a category is one scene:

<root>/training/frames/<scene>_<clip>/*.jpg         normal frames to fit on
<root>/testing/frames/<scene>_<clip>/*.jpg
<root>/testing/test_frame_mask/<scene>_<clip>.npy   (T,) 0 or 1 for each frame
<root>/testing/test_pixel_mask/<scene>_<clip>.npy   (T, H, W), non-zero = anomaly

Papers read different frames, so their numbers are not comparable: records are named after the sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_bench.config.settings import whole_number
from anomaly_bench.data.categories import Categories, require_choice, require_images
from anomaly_bench.data.clips import frames, labelled_frames, require_one_size
from anomaly_bench.data.dataset import Root, Sample, Task, find_root
from anomaly_bench.files import subfolders

SAMPLINGS = {"all": (1, 1), "mstc": (5, 5), "pefm": (5, 1)}  # every n-th training frame, every n-th test frame


@dataclass(frozen=True)
class Videos(Categories):
    """Scenes, each fitted on its training clips and tested on its test clips.

    Attributes:
        steps: n of every n-th training and of every n-th test frame of a clip that are read.
    """

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
        fitted, tested = self.clips("training", category), self.clips("testing", category)
        require_one_size(category, (*fitted, *tested))
        fit = tuple(frame for clip in fitted for frame in frames(clip, self.root, self.steps[0]))
        test = tuple(frame for clip in tested for frame in self.tested_frames(clip))
        require_images(category, fit, test, self.root, f"training/frames and testing/frames/{category}_<clip>")
        return Task(category, None, fit, {"test": test})

    def clips(self, part: str, scene: str) -> list[Path]:
        folder = self.root / part / "frames"
        return [clip for clip in subfolders(folder) if clip.name.startswith(f"{scene}_")] if folder.is_dir() else []

    def tested_frames(self, clip: Path) -> Iterator[Sample]:
        """Frames of a test clip, with the labels and masks of its two arrays."""
        frame_mask, pixel_mask = (f"testing/test_{kind}_mask/{clip.name}.npy" for kind in ("frame", "pixel"))
        return labelled_frames(clip, self.root, self.root / frame_mask, self.root / pixel_mask, self.steps[1])


def stc(name: str, title: str, scenes: Sequence[str], sampling: str, subsample: int | None, data_root: Root) -> Videos:
    """Videos below `data_root`, or below `$ANOMALY_BENCH_DATA/stc`.

    Args:
        scenes: to evaluate.
        sampling: all frames, or those of a paper; a key of `SAMPLINGS`.
        subsample: overrides it: every n-th frame of training and test clips.

    Raises:
        UsageError: no such sampling, or the root does not exist.
    """
    require_choice("sampling", sampling, SAMPLINGS)
    steps, short, long = SAMPLINGS[sampling], sampling, f"sampling of {sampling}"
    if subsample is not None:
        every = whole_number({"dataset.subsample": subsample}, "dataset.subsample", 1)
        steps, short, long = (every, every), f"every{every}", f"every {every}th frame"
    if steps != (1, 1):
        name, title = f"{name}_{short}", f"{title} ({long})"
    root = find_root("stc", data_root, "the folder that contains training and testing")
    return Videos(name, title, root, dict.fromkeys(map(str, scenes)), steps)
