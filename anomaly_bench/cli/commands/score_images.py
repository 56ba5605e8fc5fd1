"""`anomaly-bench score model=DIR images=DIR out=DIR`: score any folder of images with a fitted model.

    out/scores.csv              of each image: its path below `images`, its raw score (higher = more anomalous), its
                                percentile among held-out normal images, the verdict at their threshold, its rank
    out/maps/<image>.npy        its anomaly map, float32 (H, W) of the model's input (within the crop, if it has one)
    out/overlays/<image>.png    the heat map over the image, outlined at the model's pixel threshold if it has one

Images are read as in a run: turned as their EXIF says, grey repeated, alpha dropped, 16 bits scaled to 8, resized and
cropped as when the model was fitted. The same files in the same batches get bit-identical scores. The whole folder
shares one colour scale (`common_scale`, or the key `scale`), so overlays are drawn at the end, from the maps on disk:
memory holds two batches of images, the names and the scores. No torch at the top: a wrong folder is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from anomaly_bench.config.settings import existing_folder, megapixels, new_folder, share, truth, whole_number
from anomaly_bench.console import Reporter, log_file
from anomaly_bench.data.findings import Finding
from anomaly_bench.data.readers import limit_pixels
from anomaly_bench.errors import UsageError, shorten
from anomaly_bench.files import image_files, other_files, relative, subfolders, tree
from anomaly_bench.hardware import sharing
from anomaly_bench.hardware.devices import cores
from anomaly_bench.runs.folder_scoring import Folder, Wanted, thresholds_at


def score_images(values: Mapping[str, Any], folders: Sequence[Path] = ()) -> bool:
    """Score every image of a folder; True: all of them could be read.

    Args:
        folders: the user's own configuration, whose classes a model may name.

    Raises:
        UsageError: no model, no image, weights that are not the model's, or an `out` that cannot be used.
    """
    wanted = read_wanted(values)
    limit_pixels(megapixels(values))
    folders_read = list(tree(wanted.images, links=False))
    files = images_in("images", wanted.images, folders_read)
    normal = (
        []
        if wanted.calibrate is None
        else images_in("calibrate", wanted.calibrate, list(tree(wanted.calibrate, links=False)))
    )
    from anomaly_bench.hardware import torch_setup
    from anomaly_bench.runs import saved_model

    about = saved_model.read_about(wanted.model, folders)
    rate = None if values["max_false_alarms"] is None else share(values, "max_false_alarms")
    if not normal:
        about["thresholds"] = thresholds_at(about, rate)
    device = torch_setup.set_up(wanted.device, wanted.threads, about["precision"])
    method = saved_model.load_model(wanted.model, device, wanted.weights, tuple(folders), recorded=True)
    new_folder(values, "out")
    reporter = Reporter()
    linked = [each for folder in folders_read for each in subfolders(folder) if each.is_symlink()]
    if linked:
        reporter.warn(f"{len(linked)} links to folders are not followed: {shorten(map(str, linked))}")
    if others := [relative(file, wanted.images) for each in folders_read for file in other_files(each)]:
        reporter.warn(f"images: {Finding('unknown', tuple(others))}")
    with sharing.computing(), log_file(wanted.out / "score.log"), ThreadPoolExecutor(wanted.threads) as pool:
        try:
            folder = Folder(wanted, files, about, reporter, pool)
            if wanted.calibrate is not None:
                folder.calibrate(method, device, wanted.calibrate, normal, rate)
            return folder.score(method, device)
        except OSError as error:  # for an image it would be a DataError
            raise UsageError(f"out={wanted.out}: cannot be written ({error.strerror or error})") from error


def images_in(key: str, folder: Path, subfolders: Sequence[Path]) -> list[Path]:
    """Every image of these folders; UsageError: there is none."""
    files = [file for each in subfolders for file in image_files(each)]
    if not files:
        raise UsageError(f"{key}={folder}: no image in it or its subfolders; expected png, jpg, tif, bmp, ...")
    return files


def read_calibrate(values: Mapping[str, Any], images: Path) -> Path | None:
    """The folder of normal images for thresholds, which have to be others than those scored."""
    if values["calibrate"] is None:
        return None
    calibrate = existing_folder(values, "calibrate", "a folder of normal images")
    ours, theirs = calibrate.resolve(), images.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise UsageError(
            f"calibrate={calibrate} and images={images}: one is within the other; thresholds need normal images other "
            "than those that are judged"
        )
    return calibrate


def read_wanted(values: Mapping[str, Any]) -> Wanted:
    """Check the keys."""
    images = existing_folder(values, "images", "a folder of images to score")
    if values["out"] is None:
        raise UsageError("out=DIR is missing: expected a new folder for scores.csv, maps and overlays")
    out = Path(str(values["out"])).expanduser()
    ours, theirs = out.resolve(), images.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours / "overlays"):
        raise UsageError(f"out={out} and images={images}: overlays would lie among the images; give out another folder")
    return Wanted(
        model=existing_folder(values, "model", "a folder written by save_model=true"),
        images=images,
        calibrate=read_calibrate(values, images),
        out=out,
        weights=None if values["weights"] is None else str(values["weights"]),
        save_maps=truth(values, "save_maps"),
        save_overlays=truth(values, "save_overlays"),
        scale=read_scale(values["scale"]),
        device=str(values["device"]),
        threads=cores() if values["threads"] is None else whole_number(values, "threads", 1),
        batch_size=whole_number(values, "batch_size", 1),
    )


def read_scale(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
    if not numbers or not value[0] < value[1]:
        raise UsageError(f"scale={value}: expected the lowest and the highest map value, such as [0.5,12]")
    return float(value[0]), float(value[1])
