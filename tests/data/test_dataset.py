"""The dataset protocol: four small datasets outside MVTec AD's layout, each run from files to records."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import picture, save
from PIL import Image

from anomaly_bench import records
from anomaly_bench.components.validation import check_fitted
from anomaly_bench.config.compose import compose
from anomaly_bench.console import Reporter
from anomaly_bench.data import readers
from anomaly_bench.data.dataset import RGB, Plane, Sample, Source, Task
from anomaly_bench.data.decoding import decode_sample
from anomaly_bench.data.masks import decode_mask
from anomaly_bench.data.remembered import file_digests
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.protocol import Scores, to_tensor
from anomaly_bench.runs.job import identity, make_job
from anomaly_bench.runs.runner import Runner
from anomaly_bench.testing.dataset_checks import DATASET_CHECKS

SIDE = 48
XYZ = Plane("xyz", 3, "float32", "nearest")
DEPTH = Plane("depth", 1, "float32", "nearest")
SPOT = (slice(10, 22), slice(20, 32))


@dataclass(frozen=True)
class Small:
    """A dataset of one category, "only", listed beforehand."""

    made: Task
    root: Path
    name: str = "small"
    title: str = "Small"
    categories: dict[str, str | None] = field(default_factory=lambda: {"only": None, "absent": None})

    @property
    def available(self) -> list[str]:
        return [self.made.name]

    def task(self, category: str) -> Task:
        if category != self.made.name:
            raise DataError(f"no category {category} in {self.root}")
        return self.made

    def digests(self, task: Task) -> dict[Path, tuple[int, str]]:
        return file_digests(task.files, self.root)


def surface(number, defective):
    """(SIDE, SIDE, 3) coordinates with a hole of zeros; a defect is a bump."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    height = 500 + np.random.default_rng(number).normal(0, 0.1, (SIDE, SIDE)).astype(np.float32)
    height[SPOT] += 20 * defective
    points = np.stack([columns, rows, height], axis=-1)
    points[:4] = 0
    return points


def scans(name, title, data_root):
    """RGB and float coordinates in separate files, class ids in the masks, a validation set."""
    root = Path(data_root)

    def part(split, label, first, count):
        made = []
        for number in range(first, first + count):
            rgb, xyz, mask = (root / split / kind / f"{number}.{suffix}" for kind, suffix in SCAN_FILES)
            if not rgb.exists():
                save(picture(number, SIDE), rgb)
                xyz.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(xyz, surface(number, label is not None), photometric="rgb")
                ids = np.zeros((SIDE, SIDE), np.uint8)
                ids[SPOT] = 253 * (label is not None)
                save(ids, mask)
            sources = Source(rgb), Source(xyz, reader="tiff"), Source(xyz, reader="depth")
            masks = (Source(mask),) if split == "test" else ()
            made.append(Sample(f"{split}/rgb/{number}.png", label, sources, masks))
        return tuple(made)

    tested = part("test", None, 20, 3) + part("test", "hole", 30, 3)
    planes = (RGB, XYZ, DEPTH)
    task = Task("only", None, part("train", None, 0, 5), {"test": tested}, part("validation", None, 10, 2), planes)
    return Small(task, root, name, title)


SCAN_FILES = (("rgb", "png"), ("xyz", "tiff"), ("gt", "png"))
readers.READERS["depth"] = lambda source: readers.read_tiff(source)[..., 2]  # as a dataset's module would add it


def clips(name, title, data_root):
    """Clips of grey frames (T, H, W) in npy files, with masks (T, H, W) beside them."""
    root = Path(data_root)

    def part(clip, labels):
        frames = np.stack([picture(number, SIDE)[..., 0] for number in range(len(labels))])
        masks = np.zeros(frames.shape, np.bool_)
        masks[np.array(labels, bool), SPOT[0], SPOT[1]] = True
        frames[masks] = 255
        for kind, array in (("frames", frames), ("masks", masks)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / kind / f"{clip}.npy", array)
        for number, label in enumerate(labels):
            row = str(number)
            image = (Source(root / "frames" / f"{clip}.npy", row, "npy"),)
            mask = (Source(root / "masks" / f"{clip}.npy", row, "npy"),) if clip != "train" else ()
            yield Sample(f"{clip}/{number:03}", "odd" if label else None, image, mask, clip)

    fit = tuple(part("train", [0] * 5))
    return Small(Task("only", None, fit, {"test": (*part("01", [0, 1, 1]), *part("02", [0, 0, 1]))}), root, name, title)


def arrays(name, title, data_root):
    """Images of 32 x 32 pixels in one npz file, many in each array, without masks."""
    file = Path(data_root, "all.npz")
    if not file.exists():
        made = {split: np.stack([picture(first + n, 32) for n in range(6)]) for split, first in (("fit", 0), ("t", 50))}
        made["t"][3:, 4:12, 4:12] = (255, 0, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **made)
    fit, tested = (
        tuple(Sample(f"{split}/{n}", label(n), (Source(file, f"{split}/{n}", "npz"),)) for n in range(6))
        for split, label in (("fit", lambda n: None), ("t", lambda n: "truck" if n > 2 else None))
    )
    return Small(Task("only", None, fit, {"test": tested}), file, name, title)


def scenes(name, title, data_root):
    """Several masks for one image, as in MVTec LOCO AD, and two test sets."""
    root = Path(data_root)

    def image(split, number, label=None):
        pixels, masks = picture(number, SIDE), ()
        if label is not None:
            for place, column in enumerate((4, 30)):
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[8:14, column : column + 10] = 200 + place
                pixels[mask > 0] = (255, 0, 0)
                path = root / "ground_truth" / label / f"{number}" / f"{place:03}.png"
                save(mask, path)
                masks += (Source(path),)
        path = root / split / (label or "good") / f"{number}.png"
        save(pixels, path)
        return Sample(path.relative_to(root).as_posix(), label, (Source(path),), masks)

    good = tuple(image("test", number) for number in range(20, 23))
    tests = {
        kind: (*good, *(image("test", number, kind) for number in range(first, first + 3)))
        for kind, first in (("logical", 30), ("structural", 40))
    }
    return Small(Task("only", None, tuple(image("train", number) for number in range(5)), tests), root, name, title)


class Deviation(torch.nn.Module):
    """The distance of each pixel from the mean training image, over all channels."""

    def build(self, shapes):
        self.register_buffer("mean", torch.zeros(shapes[0]))

    def fit(self, normals):
        images = torch.cat(list(normals.images(4)))
        self.mean.copy_(images.mean(dim=0))
        self.facts = {"validation": 0 if normals.validation is None else len(normals.validation)}

    def score(self, images):
        check_fitted(self)
        maps = (images - self.mean).square().sum(dim=1)
        return Scores(maps.amax(dim=(1, 2)), maps)


class Brightest(torch.nn.Module):
    """Zero-shot: how much of an image is bright."""

    def build(self, shapes):
        pass

    def fit(self, normals):
        assert normals.pixels.shape == (0, 32, 32, 3)

    def score(self, images):
        return Scores(images.amax(dim=(1, 2, 3)), images.mean(dim=1))


def method(kind, **keys):
    about = {"title": kind.__name__, "revision": 1}
    return {"name": kind.__name__.lower(), "_target_": f"{__name__}.{kind.__name__}", "about": about} | {
        "uses_backbone": False,
        **keys,
    }


def config(tmp_path, dataset, chosen=None, *words, side=SIDE):
    words = (f"input.resize={side}", f"results={tmp_path / 'results'}", f"data_root={tmp_path / 'data'}", *words)
    made = compose("config", ["speed=false", "method.dimensions=20", "category=only", *words])
    made["dataset"] = {
        "name": dataset.__name__,
        "title": dataset.__name__,
        "_target_": f"{__name__}.{dataset.__name__}",
    }
    return made | ({} if chosen is None else {"method": chosen})


def run(*args, **keys):
    """The records of a run by test set; a second run computes nothing."""
    made = config(*args, **keys)
    summary = Runner(made, Reporter()).run()
    assert not summary.failed, summary.failed
    times = {path: path.stat().st_mtime_ns for path in Path(made["results"]).rglob("*.json")}
    again = Runner(made, Reporter()).run()
    assert [record.fingerprint for record in again.records] == [record.fingerprint for record in summary.records]
    assert times == {path: path.stat().st_mtime_ns for path in Path(made["results"]).rglob("*.json")}
    return {record.test: record for record in summary.records}


@pytest.mark.parametrize("dataset", [scans, clips, arrays, scenes], ids=lambda dataset: dataset.__name__)
def test_each_dataset_fulfils_the_contract(dataset, tmp_path):
    made = dataset("mine", "Mine", tmp_path)
    for check in DATASET_CHECKS:
        check(made)


def test_method_reads_the_planes_named_in_its_yaml(tmp_path):
    rgb = run(tmp_path, scans)["test"]
    assert rgb.metrics["image_auroc"]["value"] < 1, "the defects are invisible in colour"
    depth = run(tmp_path, scans, method(Deviation, planes=["depth"]))["test"]
    assert depth.value("image_auroc") == depth.value("pixel_auroc") == 1
    assert depth.cost["validation"] == 2
    assert depth.counts == {"fit": 5, "test": 6, "defects": 3, "maps": 6, "regions": 3, "lost_regions": 0}
    pictures = sorted((tmp_path / "results" / depth.path.with_suffix("")).glob("*.png"))
    assert len(pictures) == 6
    both = config(tmp_path, scans, method(Deviation, planes=["xyz", "rgb"]))
    job = Runner(both, Reporter()).job("only")
    pixels = job.pixels(job.task.fit)
    assert (pixels.shape, pixels.dtype) == ((5, SIDE, SIDE, 6), np.float32)
    assert np.array_equal(pixels[2, ..., :3], surface(2, False))
    assert np.array_equal(pixels[2, ..., 3:], picture(2, SIDE) / np.float32(255))
    assert torch.equal(to_tensor(pixels[:1])[0, :3], torch.from_numpy(surface(0, False)).permute(2, 0, 1))
    assert job.image_bytes == pixels.nbytes * 13 // 5
    assert len({rgb.fingerprint, depth.fingerprint, job.expected["test"].fingerprint}) == 3
    assert run(tmp_path, scans, both["method"])["test"].value("pixel_auroc") == 1


def test_a_validation_set_of_its_own_gives_the_thresholds(tmp_path):
    chosen = method(Deviation, planes=["depth"])
    record = run(tmp_path, scans, chosen, "holdout=0.2", "max_false_alarms=0.4")["test"]
    assert (record.counts["fit"], record.cost["validation"]) == (5, 0), "none is split off, and no fit sees them"
    assert [each["file"] for each in record.held_out] == ["validation/rgb/10.png", "validation/rgb/11.png"]
    assert record.thresholds["pixel"] == max(each["peak"] for each in record.held_out)
    assert record.fingerprint != run(tmp_path, scans, chosen)["test"].fingerprint


def test_only_planes_in_use_are_hashed(tmp_path):
    before = run(tmp_path, scans, method(Deviation))["test"].fingerprint
    tifffile.imwrite(tmp_path / "data" / "train" / "xyz" / "0.tiff", surface(99, False), photometric="rgb")
    assert run(tmp_path, scans, method(Deviation))["test"].fingerprint == before
    save(picture(99, SIDE), tmp_path / "data" / "validation" / "rgb" / "10.png")
    assert run(tmp_path, scans, method(Deviation))["test"].fingerprint != before


@pytest.mark.parametrize(
    ("dataset", "keys", "message"),
    [
        (
            clips,
            {"planes": ["depth"]},
            r"method=deviation reads the planes depth; the images of only have \(channels\): rgb \(3\)",
        ),
        (scans, {"planes": []}, r"reads the planes none; the images of only have \(channels\): rgb \(3\), xyz \(3\)"),
        (
            scans,
            {"planes": ["rgb", "depth"], "uses_backbone": True},
            r"backbone=lite0 takes 3 channels; .*rgb, depth of",
        ),
    ],
)
def test_incompatible_planes_are_rejected_before_the_fit(dataset, keys, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        Runner(config(tmp_path, dataset, method(Deviation, **keys)), Reporter()).run()


def test_holes_are_not_interpolated(tmp_path):
    job = Runner(config(tmp_path, scans, method(Deviation, planes=["xyz"]), side=32), Reporter()).job("only")
    heights = job.pixels(job.task.fit)[..., 2]
    assert set(np.unique(heights < 400)) == {False, True}
    assert ((heights == 0) | (heights > 490)).all()


def test_frames_of_clips(tmp_path):
    record = run(tmp_path, clips)["test"]
    assert [image["file"] for image in record.images] == [f"{clip}/00{n}" for clip in ("01", "02") for n in range(3)]
    assert [image["clip"] for image in record.images] == ["01"] * 3 + ["02"] * 3
    assert record.value("pixel_auroc") > 0.9
    job = Runner(config(tmp_path, clips), Reporter()).job("only")
    masks = job.masks(job.task.tests["test"])
    assert masks.any(axis=(1, 2)).tolist() == [False, True, True, False, False, True]
    assert masks[1, SPOT[0], SPOT[1]].all()
    assert len(job.digests) == 5, "one for each file, not for each frame"


def test_many_images_in_one_file(tmp_path):
    record = run(tmp_path, arrays, side=32)["test"]
    assert record.counts["fit"] == 6
    assert record.value("image_auroc") == 1
    assert record.value("pixel_auroc") is None
    job = Runner(config(tmp_path, arrays, side=32), Reporter()).job("only")
    assert len(job.digests) == 1
    assert np.array_equal(job.pixels(job.task.fit)[4], picture(4, 32))
    assert len({tuple(identity(image, job.digests)) for image in job.task.samples}) == 12


def test_several_masks_per_image_are_merged_and_kept(tmp_path):
    made = run(tmp_path, scenes)
    assert list(made) == ["logical", "structural"]
    assert all(record.value("pixel_auroc") > 0.9 for record in made.values())
    job = Runner(config(tmp_path, scenes), Reporter()).job("only")
    image = job.task.tests["logical"][3]
    united = job.masks(job.task.tests["logical"])[3]
    single = [readers.read_source(mask) for mask in image.masks]
    assert [int(each.max()) for each in single] == [200, 201]
    assert np.array_equal(united, (single[0] > 0) | (single[1] > 0))


def test_task_without_training_images_needs_a_zero_shot_method(tmp_path):
    made = config(tmp_path, arrays, method(Brightest, zero_shot=True), side=32)
    runner = Runner(made, Reporter())
    runner.dataset = replace(runner.dataset, made=replace(runner.dataset.made, fit=()))
    summary = runner.run()
    assert not summary.failed
    assert summary.records[0].counts["fit"] == 0
    assert records.load_all(tmp_path / "results")[0][0].value("image_auroc") == 1
    refused = Runner({**made, "method": method(Deviation)}, Reporter())
    refused.dataset = runner.dataset
    assert "no training images, but method=deviation learns from normal images" in refused.run().failed["only"]


def test_image_in_a_zip_archive(tmp_path):
    save(picture(1), tmp_path / "image.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "image.png", "train/0.png")
    image = Sample("train/0.png", None, (Source(tmp_path / "all.zip", "train/0.png"),))
    assert np.array_equal(decode_sample(image, (RGB,), (48, 48)).values, picture(1))
    with pytest.raises(DataError, match=r"all\.zip\[train/1\.png\]: cannot be decoded .*no item named"):
        readers.read_source(Source(tmp_path / "all.zip", "train/1.png"))


def faults(tmp_path):
    save(picture(1), tmp_path / "image.png")
    tifffile.imwrite(tmp_path / "small.tiff", surface(1, False)[:40], photometric="rgb")
    tifffile.imwrite(tmp_path / "wide.tiff", np.zeros((48, 48, 5), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(7))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "mask.png")
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("file", "member", "reader", "message"),
    [
        ("small.tiff", "", "tiff", r"small\.tiff: 48x40 pixels, but its image it has 48x48; expected the same size"),
        ("wide.tiff", "", "tiff", r"5 channels of float32; expected 3 of float32, the plane xyz"),
        ("flat.npy", "", "npy", r"an array \(7,\); expected \(H, W\) or \(H, W, C\)"),
        ("flat.npy", "9", "npy", r"flat\.npy\[9\]: cannot be decoded \(index 9 is out of bounds"),
        ("object.npy", "", "npy", r"object\.npy: cannot be decoded"),
        ("image.png", "", "tiff", r"image\.png: cannot be decoded"),
        ("image.png", "", "tif", r"no reader tif; did you mean tiff"),
    ],
)
def test_unreadable_file_is_named(file, member, reader, message, tmp_path):
    files = faults(tmp_path)
    image = Sample("it", None, (Source(files["image.png"]), Source(files[file], member, reader)))
    with pytest.raises(DataError, match=message):
        decode_sample(image, (RGB, XYZ), (48, 48))
    with pytest.raises(DataError, match=r"mask\.png: 30x20 pixels, but its image it has 48x48"):
        decode_mask(Sample("it", "spot", image.sources, (Source(files["mask.png"]),)), (48, 48))


def test_make_job_reports_missing_categories(tmp_path):
    runner = Runner(config(tmp_path, arrays, side=32), Reporter())
    with pytest.raises(DataError, match="no category absent"):
        make_job(runner.config, runner.settings, runner.dataset, runner.weights, "absent")
