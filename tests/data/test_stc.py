"""Videos in ShanghaiTech Campus's layout: scenes, clips, masks, samplings; real frames of Ped2 in that layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import picture, save

from anomaly_bench.data.check import examine
from anomaly_bench.data.readers import read_source
from anomaly_bench.data.stc import stc
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS

PED2 = Path(__file__).parents[3] / "shared" / "data" / "ped2"
LABELS = {"01_01": [0, 1, 1, 0, 0, 0, 1], "01_02": [0, 0, 0], "02_01": [1, 1, 0]}


@pytest.fixture
def videos(tmp_path):
    """Two scenes of 48 x 40 pixels; an anomaly is a bright square."""
    for clip, count in {"01_01": 6, "01_02": 6, "02_01": 4}.items():
        for number in range(count):
            save(picture(number)[:40], tmp_path / "training" / "frames" / clip / f"{number:03}.jpg")
    for clip, labels in LABELS.items():
        masks = np.zeros((len(labels), 40, 48), np.uint8)
        masks[np.array(labels, bool), 10:22, 20:32] = 1
        for number, mask in enumerate(masks):
            frame = picture(50 + number)[:40]
            frame[mask > 0] = 255
            save(frame, tmp_path / "testing" / "frames" / clip / f"{number:03}.jpg")
        for kind, array in (("frame", np.array(labels, np.int8)), ("pixel", masks)):
            (tmp_path / "testing" / f"test_{kind}_mask").mkdir(exist_ok=True)
            np.save(tmp_path / "testing" / f"test_{kind}_mask" / f"{clip}.npy", array)
    return tmp_path


def opened(root, sampling="all", subsample=None, scenes=("01", "02", "03")):
    return stc("stc", "Campus", scenes, sampling, subsample, root)


def test_scenes_clips_and_masks(videos):
    dataset = opened(videos)
    for check in DATASET_CHECKS:
        check(dataset)
    assert dataset.available == ["01", "02"]
    task = dataset.task("01")
    assert [image.clip for image in task.fit] == ["01_01"] * 6 + ["01_02"] * 6
    tested = task.tests["test"]
    assert [image.label is not None for image in tested] == [bool(n) for n in LABELS["01_01"] + LABELS["01_02"]]
    assert tested[1].id == "testing/frames/01_01/001.jpg"
    assert read_source(tested[1].masks[0]).sum() == 144
    assert tested[0].masks == ()


@pytest.mark.parametrize(
    ("sampling", "subsample", "fit", "tested", "name"),
    [
        ("all", None, 12, 10, "stc"),
        ("mstc", None, 4, 3, "stc_mstc"),
        ("pefm", None, 4, 10, "stc_pefm"),
        ("all", 3, 4, 4, "stc_every3"),
    ],
)
def test_samplings_of_papers(sampling, subsample, fit, tested, name, videos):
    dataset = opened(videos, sampling, subsample)
    task = dataset.task("01")
    assert (dataset.name, len(task.fit), len(task.tests["test"])) == (name, fit, tested)


def test_run_scores_frames_and_pixels(command, videos, tmp_path):
    words = (f"data_root={videos}", "category=01", f"results={tmp_path / 'results'}", "input.resize=64", "speed=false")
    status, out, err = command("dataset=stc", "backbone=lite0", "method.dimensions=20", *words)
    assert status == 0, err
    assert "ShanghaiTech Campus, input 64×64" in out


def test_mismatched_frames_and_masks_are_named(videos):
    with pytest.raises(UsageError, match=r"dataset.sampling=mst: no such sampling; did you mean mstc\?"):
        opened(videos, "mst")
    with pytest.raises(UsageError, match=r"dataset.subsample=0: expected a whole number"):
        opened(videos, subsample=0)
    with pytest.raises(DataError, match=r"03: 0 training and 0 test images in .*; expected both"):
        opened(videos).task("03")
    (videos / "testing" / "frames" / "01_01" / "006.jpg").unlink()
    with pytest.raises(DataError, match=r"01_01: 6 frames, 7 labels in 01_01.npy and 7 masks; expected equal numbers"):
        opened(videos).task("01")
    (videos / "testing" / "test_pixel_mask" / "02_01.npy").unlink()
    with pytest.raises(DataError, match=r"02_01: a clip without masks: no .*test_pixel_mask/02_01.npy; add them, or"):
        opened(videos).task("02")


def test_frames_of_unlike_sizes_are_named(videos):
    frames = videos / "testing" / "frames" / "01_01"
    save(picture(9)[:32], frames / "003.jpg")
    _, (problem,), _ = examine(opened(videos), "01", {})
    assert problem.endswith("003.jpg: 48x32 pixels, the first frame of clip 01_01 has 48x40; expected the same")
    save(picture(9)[:32], frames / "000.jpg")
    with pytest.raises(
        DataError, match=r"01: frames of unlike sizes: .*000.jpg has 48x32 pixels, .*000.jpg 48x40; exp"
    ):
        opened(videos).task("01")


@pytest.mark.skipif(not PED2.exists(), reason="needs Ped2 in ../shared/data")
def test_every_fifth_frame_of_ped2():
    task = stc("ped2", "UCSD Ped2", ["01"], "all", None, PED2).task("01")
    assert len({image.clip for image in task.fit}) == 16
    tested = task.tests["test"]
    assert len({image.clip for image in tested}) == 6
    assert all(read_source(image.masks[0]).any() for image in tested if image.label)
