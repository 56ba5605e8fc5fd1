"""`score model=DIR`: any folder of images, scored as in the run; failures are named and do not stop the rest."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_category, picture, save
from PIL import Image, ImageDraw

from anomaly_bench import heatmap, records
from anomaly_bench.cli.commands import score_images
from anomaly_bench.cli.main import command as call
from anomaly_bench.data import overlays as overlays_module
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.decoding import decode_image
from anomaly_bench.metrics import thresholds
from anomaly_bench.protocol import to_tensor
from anomaly_bench.records.gallery import OUTLINE
from anomaly_bench.runs import folder_scoring, saved_model

SETTINGS = ("dataset=folder", "input.resize=64", "input.crop=48", "speed=false", "gallery=0", "save_model=true")


SETTINGS += ("input.filter=nearest", "threads=1")


LOAD_ONCE = functools.cache(saved_model.load_model)
METHODS = {"padim": ("method.dimensions=20",), "patchcore": ("method.ratio=0.1",), "mahalanobis_ad": ()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of images, and for each method its record and its model's folder."""
    root = tmp_path_factory.mktemp("models")
    make_category(root / "data" / "cog")
    made = {}
    for method, words in METHODS.items():
        keys = [f"method={method}", *words, f"data_root={root / 'data'}", f"results={root / method}"]
        assert call([*SETTINGS, *keys, "save_maps=true"]) == 0
        (record,) = records.load_all(root / method)[0]
        made[method] = record, root / method / record.path.with_suffix("")
    return root / "data", made


@pytest.fixture
def padim(models, monkeypatch):
    """The model's folder as an argument, and the test images; the model is loaded once for all tests."""
    root, made = models
    monkeypatch.setattr(saved_model, "load_model", LOAD_ONCE)
    monkeypatch.setattr(score_images, "cores", lambda: 1)
    return f"model={made['padim'][1]}", root / "cog" / "test"


def rows(out):
    with (out / "scores.csv").open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    return {row["file"]: float(row["score"]) for row in found}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_maps_are_bit_identical_to_the_run(models, method, command, tmp_path):
    root, made = models
    record, folder = made[method]
    out = tmp_path / "out"
    status, text, err = command(
        "score", f"model={folder}", f"images={root / 'cog' / 'test'}", f"out={out}", "threads=1"
    )
    assert status == 0, err
    assert rows(out) == {each["file"].removeprefix("test/"): each["score"] for each in record.images}
    assert text.startswith(f"6 of 6 images scored by {record.titles['method']} on Lite0: {out / 'scores.csv'}\n")
    best = max(record.images, key=lambda each: each["score"])
    assert text.splitlines()[1].startswith("no verdicts: the model was fitted without holdout=0.2; calibrate=DIR")
    assert text.splitlines()[2].split() == ["rank", "score", "percentile", "verdict", "image"]
    assert text.splitlines()[3].split() == ["1", f"{best['score']:.6g}", best["file"].removeprefix("test/")]
    if method == "mahalanobis_ad":
        assert "makes no maps: only scores are written" in err
        assert {path.name for path in out.iterdir()} == {"scores.csv", "score.log"}
        return
    kept = np.load(folder / "maps.npy")
    for each, expected in zip(record.images, kept, strict=True):
        name = each["file"].removeprefix("test/").removesuffix(".png")
        values = np.load(out / "maps" / f"{name}.npy")
        assert values.dtype == np.float32
        assert np.array_equal(values, expected)
        with Image.open(out / "overlays" / f"{name}.png") as overlay:
            assert (overlay.mode, overlay.size) == ("RGB", (48, 48))
    assert len(files(out)) == 6 + 6 + 3  # maps, overlays, and scores.csv, score.log, maps/about.json


def test_every_image_format_is_read_as_by_the_dataset(padim, models, command, tmp_path):
    model, _ = padim
    images, out = tmp_path / "images", tmp_path / "out"
    pixels = picture(7, 60)
    for name in ("a.png", "a.jpg", "deep/er/b.bmp", "deep/b.TIF", 'odd, "name"/c.webp', ".hidden.png", ".hid/d.png"):
        save(pixels, images / name)
    Image.fromarray(pixels).convert("L").save(images / "grey.png")
    Image.fromarray(pixels).convert("RGBA").save(images / "alpha.png")
    Image.fromarray(np.asarray(Image.fromarray(pixels).convert("L")).astype(np.uint16) * 257).save(images / "wide.png")
    Image.fromarray(pixels).resize((90, 33)).save(images / "flat.gif")
    (images / "notes.txt").write_text("not an image")
    status, _, err = command("score", model, f"images={images}", f"out={out}", "batch_size=4")
    assert status == 0, err
    found = rows(out)
    shown = ["a.jpg", "a.png", "alpha.png", "flat.gif", "grey.png", "wide.png"]
    assert list(found) == [*shown, "deep/b.TIF", "deep/er/b.bmp", 'odd, "name"/c.webp']
    assert found["wide.png"] == found["grey.png"]
    assert found["alpha.png"] == found["a.png"] != found["a.jpg"]
    method = saved_model.load_model(models[1]["padim"][1])
    for name, value in found.items():
        read = decode_image(Source(images / name), (64, 64), "nearest").values[8:56, 8:56]
        with torch.no_grad():
            assert float(method.score(to_tensor(read[None])).image) == pytest.approx(value, rel=1e-5)
    maps = files(out / "maps")
    assert {"a.png.npy", "a.jpg.npy", "grey.npy", "deep/er/b.npy", 'odd, "name"/c.npy'} < set(maps)
    assert [name.removesuffix(".npy") for name in maps if name != "about.json"] == [
        name.removesuffix(".png") for name in files(out / "overlays")
    ]
    with Image.open(out / "overlays" / "flat.png") as overlay:
        assert overlay.size == (90, 33), "the image's own aspect ratio"


def test_what_is_noticed_is_said_as_in_a_run(padim, models, command, tmp_path):
    model, _ = padim
    images, out = tmp_path / "images", tmp_path / "out"
    upright = Image.fromarray(picture(7, 60)[:40])
    save(np.asarray(upright), images / "upright.png")
    sideways = Image.Exif()
    sideways[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(images / "turned.png", exif=sideways)
    save(np.full((50, 50, 3), 9, np.uint8), images / "blank.png")
    (images / "deep").mkdir()
    (images / "deep" / "phone.heic").write_bytes(b"x")
    status, _, err = command("score", model, f"images={images}", f"out={out}")
    assert status == 0, err
    assert "images: read 3 images\n" in err
    assert "images: files turned upright, as their EXIF says (1): turned.png\n" in err
    assert "warning: images: images of one colour (1): blank.png\n" in err
    assert "warning: images: files of no known image format: left out (1): deep/phone.heic\n" in err
    found = rows(out)
    assert found["turned.png"] == pytest.approx(found["upright.png"], rel=1e-5)
    train = models[0] / "cog" / "train"
    status, _, err = command("score", model, f"images={train}", f"calibrate={images}", f"out={tmp_path / 'again'}")
    assert "warning: calibrate: images of one colour (1): blank.png\n" in err


def test_one_unreadable_image_does_not_stop_the_others(padim, command, tmp_path):
    model, test = padim
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(test, images)
    (images / "good" / "001.png").write_bytes(b"not a picture")
    (images / "spot" / "001.png").write_bytes((images / "spot" / "002.png").read_bytes()[:900])
    status, text, err = command("score", model, f"images={images}", f"out={out}", "batch_size=2")
    assert status == 1
    assert text.startswith("4 of 6 images scored")
    assert err.count("error: ") == 2
    assert f"{images / 'good' / '001.png'}: cannot be decoded" in err
    assert f"{images / 'spot' / '001.png'}: cannot be decoded" in err
    assert "Traceback" not in err
    assert "Traceback" in (out / "score.log").read_text()
    command("score", model, f"images={test}", f"out={tmp_path / 'whole'}")
    whole = rows(tmp_path / "whole")
    assert rows(out) == {file: pytest.approx(whole[file], rel=1e-5) for file in whole if "001" not in file}
    assert len(files(out / "overlays")) == 4


def test_a_batch_without_a_readable_image(padim, command, tmp_path):
    model, _ = padim
    images, out = tmp_path / "images", tmp_path / "out"
    save(picture(1), images / "b.png")
    (images / "a.png").write_bytes(b"")
    assert command("score", model, f"images={images}", f"out={out}", "batch_size=1")[0] == 1
    assert list(rows(out)) == ["b.png"]
    (images / "b.png").write_bytes(b"")
    status, text, _ = command("score", model, f"images={images}", f"out={out}", "overwrite=true")
    assert (status, rows(out)) == (1, {})
    assert text.startswith("0 of 2 images")


def test_any_decoder_error_names_the_file(padim, command, tmp_path, monkeypatch):
    """Any error of a decoder names the file; a full disk is not an image's fault and ends the run."""
    model, test = padim

    def broken(source, size, filter, bits):
        if source.path.name == "001.png":
            raise IndexError("out of range")
        return decode_image(source, size, filter, bits)

    monkeypatch.setattr(folder_scoring.decoding, "decode_image", broken)
    status, _, err = command("score", model, f"images={test}", f"out={tmp_path / 'out'}", "save_overlays=false")
    assert status == 1
    assert err.count("001.png: cannot be decoded (IndexError('out of range'))") == 2

    def full(path, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    status, _, err = command("score", model, f"images={test}", f"out={tmp_path / 'full'}")
    assert status == 2
    assert f"error: out={tmp_path / 'full'}: cannot be written (No space left on device)" in err


@pytest.mark.parametrize(("maps", "overlays"), [(True, False), (False, True), (False, False)])
def test_maps_and_overlays_can_be_switched_off(padim, command, tmp_path, maps, overlays):
    model, test = padim
    out = tmp_path / "out"
    words = [f"save_maps={str(maps).lower()}", f"save_overlays={str(overlays).lower()}"]
    status, _, err = command("score", model, f"images={test}", f"out={out}", *words)
    assert status == 0, err
    wanted = [name for name, kept in (("maps", maps), ("overlays", overlays)) if kept]
    assert {path.name for path in out.iterdir()} == {"scores.csv", "score.log", *wanted}


def test_scale_is_given_or_derived_from_the_folder(padim, command, tmp_path):
    model, test = padim
    pictures = {}
    for name, words in {"own": [], "given": ["scale=[0,1e6]"], "again": []}.items():
        status, _, err = command("score", model, f"images={test}", f"out={tmp_path / name}", *words)
        assert status == 0, err
        assert ("0 (dark) to 1e+06 (light)" in err) == (name == "given")
        pictures[name] = np.asarray(Image.open(tmp_path / name / "overlays" / "spot" / "000.png")).astype(int)
    assert np.array_equal(pictures["own"], pictures["again"])
    original = np.asarray(Image.open(test / "spot" / "000.png")).astype(int)
    assert np.abs(pictures["given"] - original).max() <= 1, "nothing is drawn far below the scale"
    assert np.abs(pictures["own"] - original).max() > 50


def test_common_scale():
    assert overlays_module.common_scale([(1.0, 5.0)]) == (1.0, 5.0)
    ends = [(0.0, 10.0), (1.0, 11.0), (2.0, 12.0), (3.0, 13.0), (4.0, 900.0)]  # the fence: 13 + 1.5 (13 - 11)
    assert overlays_module.common_scale(ends) == (2.0, 13.0)
    assert overlays_module.common_scale([*ends[:4], (4.0, 16.0)]) == (2.0, 16.0)
    assert overlays_module.common_scale([(0.5, 0.5)] * 3) == (0.5, 0.5)


def test_overlay_is_drawn_only_within_the_crop(tmp_path):
    save(np.full((100, 200, 3), 100, np.uint8), tmp_path / "image.png")
    values = np.zeros((40, 40), np.float32)
    values[:, 20:] = 9
    picture = np.asarray(overlays_module.overlay(tmp_path / "image.png", values, 0, 9, (50, 50), (40, 40)))
    assert picture.shape == (100, 200, 3)
    top = np.round((1 - overlays_module.OPACITY) * 100 + overlays_module.OPACITY * heatmap.HEAT[-1])
    assert np.abs(picture[10:90, 110:180] - top).max() <= 2
    inside = np.zeros((100, 200), bool)
    inside[10:90, 98:180] = True  # the two columns left of the middle are blended
    assert (picture[~inside] == 100).all()
    flat = np.asarray(overlays_module.overlay(tmp_path / "image.png", values * 0, 0, 0, (50, 50), None))
    assert (flat == 100).all()


def outlined(picture):
    return np.all(np.asarray(picture) == OUTLINE, axis=-1)


def test_an_overlay_outlines_what_is_above_the_threshold(tmp_path):
    save(np.full((100, 200, 3), 100, np.uint8), tmp_path / "image.png")
    values = np.zeros((40, 40), np.float32)
    values[:20, 10:30] = 9  # up to the upper edge of the crop, which is at (10, 20) of (100, 200) and 80 x 160 large
    keys = ((50, 50), (40, 40))
    shown = outlined(overlays_module.overlay(tmp_path / "image.png", values, 0, 9, *keys, threshold=4.5))
    rows, columns = np.nonzero(shown)
    edges = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
    assert np.abs(edges - (10, 50, 60, 140)).max() <= 2
    assert not shown[15:45, 66:134].any()
    for threshold in (9.0, None):
        assert not outlined(overlays_module.overlay(tmp_path / "image.png", values, 0, 9, *keys, threshold)).any()


def test_a_model_of_held_out_images_outlines_defects(models, command, tmp_path):
    root, _ = models
    run = [f"data_root={root}", f"results={tmp_path / 'r'}", "holdout=0.5", "max_false_alarms=0.3"]
    status, _, err = command(*SETTINGS, *METHODS["padim"], *run)
    assert status == 0, err
    (record,) = records.load_all(tmp_path / "r")[0]
    folder = tmp_path / "r" / record.path.with_suffix("")
    words = ["score", f"model={folder}", f"images={root / 'cog' / 'test'}"]
    status, _, err = command(*words, f"out={tmp_path / 'out'}")
    assert status == 0, err
    threshold = record.thresholds["pixel"]
    assert f"overlays: outlines at {threshold:.4g} (3 held-out images; max_false_alarms=0.3 needs 4" in err
    for name in (f"{kind}/{number:03}" for kind in ("good", "spot") for number in range(3)):
        above = (np.load(tmp_path / "out" / "maps" / f"{name}.npy") > threshold).any()
        assert outlined(Image.open(tmp_path / "out" / "overlays" / f"{name}.png")).any() == above
        assert above or name.startswith("good")
    assert_verdicts(tmp_path / "out", record.held_out, record.thresholds["image"])
    middle = sorted(each["peak"] for each in record.held_out)[1]
    status, _, err = command(*words, f"out={tmp_path / 'other'}", "max_false_alarms=0.6")
    assert f"overlays: outlines at {middle:.4g} (at most 60% false alarms, by 3 held-out normal images)" in err
    assert "no outlines (3 held-out images" in command(*words, f"out={tmp_path / 'few'}", "max_false_alarms=0.05")[2]


def assert_verdicts(out, held_out, threshold):
    """Percentiles, verdicts and ranks of scores.csv, worked out again from the held-out images."""
    with (out / "scores.csv").open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    scores = [float(row["score"]) for row in found]
    for row, score in zip(found, scores, strict=True):
        below = sum(each["score"] <= score for each in held_out)
        assert float(row["percentile"]) == pytest.approx(100 * below / len(held_out), abs=1e-4)
        assert row["verdict"] == ("defective" if score > threshold else "normal")
        assert int(row["rank"]) == 1 + sum(other > score for other in scores)
    assert {row["verdict"] for row in found if row["file"].startswith("spot")} == {"defective"}


def test_calibration_by_normal_images_of_ones_own(padim, models, command, tmp_path):
    model, test = padim
    train = models[0] / "cog" / "train" / "good"
    words = ["score", model, f"images={test}", "save_overlays=false", "save_maps=false"]
    status, text, err = command(*words, f"out={tmp_path / 'a'}", f"calibrate={train}", "max_false_alarms=0.4")
    assert status == 0, err
    count = len(list(train.iterdir()))
    assert command("score", model, f"images={train}", f"out={tmp_path / 'n'}", "save_maps=false")[0] == 0
    normal = sorted(rows(tmp_path / "n").values())
    threshold = thresholds.threshold_of(normal, 0.4)
    assert_verdicts(tmp_path / "a", [{"score": score} for score in normal], threshold)
    lines = text.splitlines()
    alarms = [name for name, score in rows(tmp_path / "a").items() if score > threshold]
    assert lines[1] == (
        f"{len(alarms)} of 6 judged defective: score above {threshold:.6g} (at most 40% false alarms, by {count} "
        "held-out normal images)"
    )
    false = sum(name.startswith("good") for name in alarms)
    assert lines[-3].split() == ["folder", "images", "judged", "defective", "judged", "normal"]
    assert lines[-2].split() == ["defective", "3", str(len(alarms) - false), str(3 - len(alarms) + false)]
    assert lines[-1].split() == ["normal", "(good)", "3", str(false), str(3 - false)]
    status, text, err = command(*words, f"out={tmp_path / 'b'}", f"calibrate={train}")
    assert status == 0, "too few images for the rate: a warning"
    assert f"{count} held-out images; max_false_alarms=0.05 needs 20: no threshold keeps this rate" in err
    assert text.splitlines()[1].startswith("no verdicts (")
    status, _, err = command(*words, f"out={tmp_path / 'c'}", f"calibrate={test / 'good'}")
    assert status == 2
    assert "one is within the other" in err


def test_overlay_size_is_limited(tmp_path):
    save(np.zeros((10, 3 * overlays_module.LONGEST_SIDE, 3), np.uint8), tmp_path / "image.png")
    picture = overlays_module.overlay(tmp_path / "image.png", np.ones((8, 8), np.float32), 0, 1, (8, 8), None)
    assert picture.size == (overlays_module.LONGEST_SIDE, 3)


def test_at_most_two_parts_are_in_progress():
    started, lock = [], threading.Lock()

    def work(item):
        with lock:
            started.append(item)
        return item

    with ThreadPoolExecutor(4) as pool:
        seen = []
        for part, futures in folder_scoring.ahead(pool, work, folder_scoring.chunks(range(100), 7)):
            seen += [future.result() for future in futures]
            assert len(started) <= len(seen) + 7, "more than the next part was started"
            assert list(part) == seen[-len(part) :]
    assert seen == list(range(100))


def test_interruption_keeps_finished_parts(padim, command, tmp_path, monkeypatch):
    from anomaly_bench.runs import evaluator

    model, test = padim
    whole, calls = evaluator.score_batch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(evaluator, "score_batch", interrupted)
    out = tmp_path / "out"
    status, _, err = command("score", model, f"images={test}", f"out={out}", "batch_size=2", "save_maps=false")
    assert status == 130
    assert f"4 of 6 scores are in {out / 'scores.csv.part'}" in err
    assert not (out / "scores.csv").exists()
    assert len((out / "scores.csv.part").read_text().splitlines()) == 5
    assert {path.name for path in out.iterdir()} == {"scores.csv.part", "score.log"}, "no temporary maps are left"


def test_symlink_to_a_parent_folder_does_not_loop(padim, command, tmp_path):
    model, _ = padim
    save(picture(1), tmp_path / "images" / "deep" / "a.png")
    try:
        (tmp_path / "images" / "deep" / "up").symlink_to(tmp_path / "images", target_is_directory=True)
    except OSError:
        pytest.skip("this system has no symbolic links")
    assert command("score", model, f"images={tmp_path / 'images'}", f"out={tmp_path / 'out'}")[0] == 0
    assert list(rows(tmp_path / "out")) == ["deep/a.png"]


def test_file_name_that_is_not_utf8(padim, command, tmp_path):
    model, _ = padim
    save(picture(1), tmp_path / "images" / "a.png")
    try:
        os.rename(tmp_path / "images" / "a.png", os.fsencode(tmp_path / "images") + b"/\xff.png")
    except OSError:
        pytest.skip("this system's names are UTF-8")
    status, text, _ = command("score", model, f"images={tmp_path / 'images'}", f"out={tmp_path / 'out'}")
    assert status == 0
    assert r"\udcff.png" in text
    assert b"\n\xff.png," in (tmp_path / "out" / "scores.csv").read_bytes()


def test_wrong_usage(padim, models, command, tmp_path):
    model, test = padim
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    shutil.copytree(models[1]["padim"][1], tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    shutil.copytree(models[1]["padim"][1], tmp_path / "strange")
    (tmp_path / "strange" / "model.yaml").write_text("method: {}")
    shutil.copytree(models[1]["padim"][1], tmp_path / "none_read")
    (tmp_path / "none_read" / "model.yaml").write_text(
        "{schema: 2, method: {name: padim, about: {title: PaDiM, revision: 1}}, backbone: null, "
        "weights_sha256: {}, precision: fp32, input: {resize: [64, 64], crop: null}}"
    )
    images, out = f"images={test}", f"out={tmp_path / 'out'}"
    results = models[1]["padim"][1].parents[3]
    cases = {
        (): "expected either model=DIR images=DIR out=DIR, or maps=DIR",
        (model, f"maps={tmp_path}"): "expected either",
        ("-m", model, images, out): "score: takes no --multirun",
        (model, images): "out=DIR is missing",
        (model, out): "images=DIR is missing: expected a folder of images to score",
        (model, images, out, "metric=[pro]"): "metric has no effect with model=DIR",
        (model, images, out, "input.resize=64"): "input has no effect with model=DIR",
        (model, images, out, "batch_size=0"): "batch_size=0: expected a whole number of at least 1",
        (model, images, out, "scale=[2,1]"): "scale=[2, 1]: expected the lowest and the highest map value",
        (model, images, out, "max_false_alarms=2"): "max_false_alarms=2: expected a share between 0 and 1, as 0.2",
        (model, images, out, "max_false_alarms=0.1"): "fitted without held-out images; fit it with holdout=0.2",
        (model, images, out, "save_mapss=true"): "save_mapss: no such key; did you mean save_maps",
        (model, images, out, "device=cuda:7"): "device=cuda:7: this machine has cpu",
        (f"model={tmp_path / 'none'}", images, out): "no such folder; expected a folder written by save_model=true",
        (f"model={tmp_path}", images, out): "no model.yaml and model.safetensors",
        (f"model={results}", images, out): f"there is one in {models[1]['padim'][1]}",
        (f"model={tmp_path / 'torn'}", images, out): "model.safetensors is damaged",
        (f"model={tmp_path / 'strange'}", images, out): "model.yaml: lacks backbone, weights_sha256, precision, input",
        (f"model={tmp_path / 'none_read'}", images, out, "weights=x.pth"): "reads no network, expected one",
        (model, f"images={tmp_path / 'none'}", out): "no such folder; expected a folder of images",
        (model, f"images={test / 'good' / '000.png'}", out): "not a folder; expected a folder of images",
        (model, f"images={tmp_path / 'empty'}", out): "no image in it or its subfolders; expected png, jpg",
        (model, images, f"out={test / 'out'}"): "overlays would lie among the images",
        (model, images, f"out={test}"): "overlays would lie among the images",
        (model, images, f"out={tmp_path / 'full'}"): "not empty; give a new folder, or overwrite=true",
        (model, images, f"out={tmp_path / 'full' / 'file'}"): "cannot be written",
    }
    for words, message in cases.items():
        status, text, err = command("score", *words)
        assert (status, text) == (2, ""), (words, err)
        assert message in err, (words, err)
        assert len(err.strip().splitlines()) == 1, (words, err)


def test_other_weights_are_refused_but_moved_ones_accepted(models, command, tmp_path):
    import timm

    root, _ = models
    for seed, name in enumerate(("fitted.pth", "other.pth")):
        torch.manual_seed(seed)
        torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / name)
    words = [f"data_root={root}", f"results={tmp_path / 'results'}", "method.dimensions=20"]
    assert command(*SETTINGS, *words, f"backbone.weights={tmp_path / 'fitted.pth'}")[0] == 0
    (record,) = records.load_all(tmp_path / "results")[0]
    model = f"model={tmp_path / 'results' / record.path.with_suffix('')}"
    images, out = f"images={root / 'cog' / 'test' / 'spot'}", tmp_path / "out"
    (tmp_path / "fitted.pth").rename(tmp_path / "moved.pth")
    for words in ((), (f"weights={tmp_path / 'other.pth'}",)):
        status, _, err = command("score", model, images, f"out={out}", *words)
        assert status == 2
        assert "made with weights of lite0 with sha256" in err
        assert "pass weights=FILE" in err
    assert not out.exists(), "nothing is written before the model is loaded"
    status, _, err = command("score", model, images, f"out={out}", f"weights={tmp_path / 'moved.pth'}")
    assert status == 0, err
    assert list(rows(out).values()) == pytest.approx([each["score"] for each in record.images if each["defect"]])


def test_overlay_of_a_large_16_bit_image(padim, command, tmp_path):
    """The overlay reads a large 16-bit image as the model does."""
    model, _ = padim
    canvas = Image.new("L", (1500, 600), 90)
    ImageDraw.Draw(canvas).ellipse((500, 200, 700, 400), fill=200)
    wide = np.asarray(canvas).astype(np.uint16) * 257
    (tmp_path / "images").mkdir()
    Image.fromarray(wide).save(tmp_path / "images" / "wide.tiff")
    assert (
        command("score", model, f"images={tmp_path / 'images'}", f"out={tmp_path / 'out'}", "scale=[1e6,2e6]")[0] == 0
    )
    with Image.open(Path(tmp_path, "out", "overlays", "wide.png")) as overlay:
        assert overlay.size == (1024, 410)
        assert overlay.getpixel((410, 205)) == (200, 200, 200)
