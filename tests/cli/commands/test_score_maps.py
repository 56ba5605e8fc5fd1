"""`score maps=`: metrics from saved maps, ours or another program's, against the run's and references."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import make_category, picture, save
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_bench import records
from anomaly_bench.cli.main import command as call

SETTINGS = ("dataset=folder", "input.resize=64", "input.crop=48", "speed=false", "gallery=0", "save_maps=true")


SETTINGS += ("threads=1",)


FRAME = ("input.resize=64", "input.crop=48")
PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of two small categories and a results folder with saved maps of two methods."""
    root = tmp_path_factory.mktemp("made")
    for name in ("cog", "mat"):
        make_category(root / "data" / name)
    where = [f"data_root={root / 'data'}", f"results={root / 'results'}"]
    assert call([*SETTINGS, *where, "method=padim", "method.dimensions=20", "save_model=true"]) == 0
    assert call([*SETTINGS, *where, "method=patchcore", "method.ratio=0.1", "category=cog"]) == 0
    return root / "data", root / "results"


@pytest.fixture
def rescore(made, command):
    """Runs `score maps=` on the data of `made`."""

    def run(maps, *words):
        return command("score", f"maps={maps}", "dataset=folder", f"data_root={made[0]}", "threads=1", *words)

    return run


def rows(out):
    with (out / "metrics.csv").open(newline="") as stream:
        return {(row["maps"], row["category"]): row for row in csv.DictReader(stream)}


def values(row):
    return {
        name: float(row[name]) if row[name] else None for name in (*PIXEL, "image_auroc", "image_ap") if name in row
    }


def recorded(record):
    return {name: record.value(name) for name in (*PIXEL, "image_auroc", "image_ap")}


@pytest.fixture
def cog(made):
    """PaDiM's record of the category cog and its maps by image, 48x48 of a crop."""
    record = next(each for each in records.load_all(made[1])[0] if (each.task, each.method) == ("cog", "padim"))
    maps = np.load(made[1] / record.path.with_suffix("") / "maps.npy")
    return record, {each["file"].removesuffix(".png"): values for each, values in zip(record.images, maps, strict=True)}


def write(maps, folder, suffix=".npy"):
    """Write maps as another program would."""
    for name, values in maps.items():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npz":
            np.savez_compressed(path, map=values)
        elif suffix.lower() in (".tif", ".tiff"):
            tifffile.imwrite(path, values)
        else:
            np.save(path, values)
    return folder


def test_saved_maps_reproduce_the_recorded_metrics(made, rescore, tmp_path):
    found = records.load_all(made[1])[0]
    before = {path: path.read_bytes() for path in made[1].rglob("*.json")}
    status, text, err = rescore(made[1], f"out={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    again = rows(tmp_path / "out")
    assert len(again) == len(found) == 3
    for record in found:
        maker = f"{record.titles['method']} on Lite0, seed 0, input 64×64, crop 48×48"
        row = again[maker, record.task]
        assert values(row) == recorded(record)
        assert (row["images"], row["defects"], row["dataset"]) == ("6", "3", "data")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["revisions"] == {name: entry["revision"] for name, entry in found[0].metrics.items()}
    curves = {(each["maps"].split()[0], each["category"]): each["curves"] for each in content["results"]}
    assert curves == {(record.titles["method"], record.task): record.curves for record in found}
    assert text.count("(in %)") == 2
    assert "mean of all (1 of 2)" in text, "PatchCore has only one category"
    assert before == {path: path.read_bytes() for path in made[1].rglob("*.json")}, "records are unchanged"


def test_selected_record_category_and_metrics(made, rescore, cog):
    folder = made[1] / cog[0].path.with_suffix("")
    status, text, err = rescore(folder, "metric=pro")
    assert (status, err) == (0, "")
    assert f"{100 * cog[0].value('pro'):.1f}" in text
    assert "AUROC" not in text
    status, text, _ = rescore(made[1], "category=mat", "metric=[image_auroc,pro]")
    assert status == 0
    assert "PaDiM" in text
    assert "PatchCore" not in text


def test_no_torch_is_imported(made):
    code = (
        "import sys; from anomaly_bench.cli.main import command; status = command(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    words = ["score", f"maps={made[1]}", "dataset=folder", f"data_root={made[0]}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_outdated_record_is_reported_and_updated(made, rescore, cog, tmp_path):
    results = shutil.copytree(made[1], tmp_path / "results")
    whole, path = cog[0], results / cog[0].path
    metrics = {**whole.metrics, "pro": {"value": 0.5, "revision": 0}, "mine": {"value": 1.0, "revision": 1}}
    del metrics["pixel_ap"]
    records.write_record(replace(whole, metrics=metrics), path)
    status, _, err = rescore(results)
    assert status == 0
    assert err == f"warning: {path.stem}: pixel_ap, pro missing from the record or outdated; update=true fixes it\n"
    assert records.load(path).metrics == metrics
    status, _, err = rescore(results, "update=true")
    assert (status, err) == (0, f"{path.stem}: updated (pixel_ap, pro)\n")
    assert records.load(path) == replace(whole, metrics={**whole.metrics, "mine": metrics["mine"]})
    assert rescore(results, "update=true")[2] == ""


def test_value_that_is_not_reproduced(made, rescore, cog, tmp_path):
    results = shutil.copytree(made[1], tmp_path / "results")
    path = results / cog[0].path
    metrics = {**cog[0].metrics, "pro": {"value": 0.5, "revision": 1}, "pixel_ap": {"value": 0.5, "revision": 0}}
    records.write_record(replace(cog[0], metrics=metrics), path)
    _, _, err = rescore(results, "update=true")
    assert err == (
        f"warning: {path.stem}: pro not as recorded: masks or maps have changed since; the record is not updated\n"
    )
    assert records.load(path).metrics == metrics


def test_records_of_other_settings_get_separate_tables(made, rescore, cog, tmp_path):
    results = shutil.copytree(made[1], tmp_path / "results")
    config = {**cog[0].config, "method": {**cog[0].config["method"], "eps": 0.5}}
    other = replace(cog[0], config=config, fingerprint="0" * 64)
    records.save(other, results)
    shutil.copytree(results / cog[0].path.with_suffix(""), results / other.path.with_suffix(""))
    status, text, _ = rescore(results)
    assert status == 0
    assert text.count("PaDiM on Lite0, seed 0, input 64×64, crop 48×48, settings ") == 2


def test_records_whose_images_or_maps_have_changed(made, rescore, cog, tmp_path, command):
    results = shutil.copytree(made[1], tmp_path / "results")
    np.save(results / cog[0].path.with_suffix("") / "maps.npy", np.zeros((6, 64, 64), np.float32))
    status, text, err = rescore(results)
    assert status == 1
    assert "maps (6, 64, 64); expected (6, 48, 48): save_maps=true overwrite=true recreates them" in err
    assert "Traceback" not in err
    assert "mat" in text
    assert "PatchCore" in text
    data = shutil.copytree(made[0], tmp_path / "data")
    (data / "mat" / "test" / "good" / "000.png").unlink()
    status, _, err = command("score", f"maps={made[1]}", "dataset=folder", f"data_root={data}", "threads=1")
    assert status == 1
    assert "5 test images in" in err
    assert "differ from the record's 6; set data_root to the folder it was computed from" in err
    path = results / cog[0].path
    path.write_text(path.read_text()[:100])
    assert "not a record" in rescore(results)[2]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".tiff", ".TIFF"])
def test_map_files_of_a_run_reproduce_its_metrics(rescore, cog, tmp_path, suffix):
    record, maps = cog
    write(maps, tmp_path / "theirs" / "cog", suffix)
    status, _, err = rescore(tmp_path / "theirs", "category=cog", *FRAME, f"out={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    (row,) = rows(tmp_path / "out").values()
    assert values(row) == recorded(record)
    assert row["maps"] == f"maps in {tmp_path / 'theirs'}, compared at 64×64, crop 48×48"


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.uint8, np.int64])
def test_every_numeric_type_keeps_its_ranks(rescore, cog, tmp_path, kind):
    maps = {name: (values * 3).astype(kind)[None, :, :, None] for name, values in cog[1].items()}
    write(maps, tmp_path / "theirs" / "cog", ".tiff" if kind == np.float16 else ".npy")
    assert rescore(tmp_path / "theirs", "category=cog", *FRAME, f"out={tmp_path / 'out'}")[0] == 0
    (row,) = rows(tmp_path / "out").values()
    masks = np.array([mask_of(tmp_path, name, cog) for name in maps])
    assert float(row["pixel_auroc"]) == pytest.approx(
        roc_auc_score(masks.ravel(), np.array(list(maps.values())).ravel())
    )


def mask_of(tmp_path, name, cog):
    """The spot of `make_category`, resized and cropped as a run does."""
    mask = np.zeros((48, 48), np.uint8)
    mask[10:22, 20:32] = "spot" in name
    return np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST))[8:56, 8:56]


def test_native_and_mixed_image_sizes(rescore, made, command, tmp_path):
    """The default: maps are resized to their images, masks are not; all pixels count equally."""
    random, data = np.random.default_rng(0), tmp_path / "data"
    truth, found, scores = [], [], {}
    for number, (height, width) in enumerate([(40, 50), (48, 48), (50, 40), (33, 70)]):
        kind = "good" if number == 0 else "spot"
        name = f"test/{kind}/{number:03}"
        mask, small = np.zeros((height, width), np.uint8), random.random((10, 14), dtype=np.float32)
        mask[5:15, 8:20] = 255 * (kind == "spot")
        save(picture(number, 80)[:height, :width], data / "cog" / f"{name}.png")
        if kind == "spot":
            save(mask, data / "cog" / "ground_truth" / "spot" / f"{number:03}_mask.png")
            small[2:4, 3:5] += 0.5
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        write({name: small if number else np.asarray(large)}, tmp_path / "theirs" / "cog", ".tiff")
        truth.append(mask.ravel() > 0)
        found.append(np.asarray(large).ravel())
        scores[name] = (np.asarray(large).max(), kind == "spot")
    save(picture(9), data / "cog" / "train" / "good" / "000.png")
    words = ["dataset=folder", f"data_root={data}", f"out={tmp_path / 'out'}", "threads=1"]
    status, _, err = command("score", f"maps={tmp_path / 'theirs'}", *words)
    assert status == 0, err
    assert err.count("1 maps of 10×14 resized to") == 3
    (row,) = rows(tmp_path / "out").values()
    assert row["maps"].endswith("compared at the images' own size")
    truth, found = np.concatenate(truth), np.concatenate(found)
    assert float(row["pixel_auroc"]) == pytest.approx(roc_auc_score(truth, found))
    assert float(row["pixel_ap"]) == pytest.approx(average_precision_score(truth, found))
    best, labels = zip(*scores.values(), strict=True)
    assert float(row["image_auroc"]) == pytest.approx(roc_auc_score(labels, best))


def test_map_of_the_whole_image_is_cropped_like_it(rescore, cog, tmp_path):
    """Another program's maps of whole images are cropped as in the run."""
    whole = {name: np.pad(inner, 8, constant_values=1e6) for name, inner in cog[1].items()}  # nothing else counts
    write(whole, tmp_path / "theirs" / "cog")
    assert rescore(tmp_path / "theirs", "category=cog", *FRAME, f"out={tmp_path / 'out'}")[0] == 0
    (row,) = rows(tmp_path / "out").values()
    assert values(row) == recorded(cog[0])


@pytest.mark.parametrize("below", ["", "cog", "cog/test"])
def test_from_a_model_to_maps_to_metrics(rescore, made, command, tmp_path, below):
    """The maps and scores of `score model=` are used unchanged, whichever folder was scored."""
    record = next(each for each in records.load_all(made[1])[0] if (each.task, each.method) == ("cog", "padim"))
    model = made[1] / record.path.with_suffix("")
    out = tmp_path / "scored"
    words = [f"images={made[0] / below}", f"out={out}", "save_overlays=false", "threads=1"]
    assert command("score", f"model={model}", *words)[0] == 0
    status, _, err = rescore(out / "maps", "category=cog")
    assert status == 2
    assert "they cover only the centre of their images; give input.resize=[64,64] input.crop=[48,48]" in err
    keys = [f"scores={out / 'scores.csv'}", "category=cog", *FRAME, f"out={tmp_path / 'out'}"]
    status, _, err = rescore(out / "maps", *keys)
    assert (status, err) == (0, "")
    (row,) = rows(tmp_path / "out").values()
    same = {
        name: pytest.approx(value, abs=1e-4 if below != "cog/test" else 0) for name, value in recorded(record).items()
    }
    assert values(row) == same


def test_listed_scores_override_the_map_maximum(rescore, cog, tmp_path):
    record, maps = cog
    write(maps, tmp_path / "theirs" / "cog")
    listed = tmp_path / "scores.csv"
    lines = [f'"cog/{each["file"]}",{0 if each["defect"] else 1},x' for each in record.images]
    listed.write_text("\n".join(["file,score,note", *lines, "cog/other.png,5,x"]))
    words = ["category=cog", *FRAME, f"scores={listed}"]
    status, _, err = rescore(tmp_path / "theirs", *words, f"out={tmp_path / 'out'}")
    assert (status, err) == (0, "warning: cog: 1 scores have no test image and are ignored: cog/other.png\n")
    (row,) = rows(tmp_path / "out").values()
    assert float(row["image_auroc"]) == 0
    assert float(row["pro"]) == record.value("pro")
    for text, message in {
        "\n".join(["file,score", *lines[1:]]).replace(
            ",x", ""
        ): "1 of 6 test images are not in scores: test/good/000.png",
        "file,score\nelse.png,1": "6 of 6 test images are not in scores",
        "name,score\na,1": "not a CSV with the columns file, score",
        "file,score\na,high": "a has the score high; expected a finite number",
        "file,score\na": "line 2 has 1 cells, the first has 2",
        "file,score\na,1\na,2": "a is listed twice; expected one finite score each",
        "file,score\na,nan": "a has the score nan; expected a finite number",
    }.items():
        listed.write_text(text)
        status, _, err = rescore(tmp_path / "theirs", *words)
        assert status in (1, 2)
        assert message in err
        assert len(err.strip().splitlines()) == 1


def broken(maps, folder, name):
    """Corrupt one map."""
    path = folder / "test" / "spot" / "001.npy"
    values = np.array(maps["test/spot/001"])
    if name == "missing":
        path.unlink()
    elif name == "nan":
        values[3, 4] = np.nan
        np.save(path, values)
    elif name == "shape":
        np.save(path, np.zeros((3, 48, 48)))
    elif name == "size":
        np.save(path, np.zeros((50, 50)))
    elif name == "text":
        np.save(path, np.full((48, 48), "x"))
    elif name == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    elif name == "pickle":
        np.save(path, np.array([[{}]], dtype=object))
    elif name == "two":
        np.savez(path.with_suffix(".npz"), values)
    elif name == "arrays":
        path.unlink()
        np.savez(path.with_suffix(".npz"), a=values, b=values)
    elif name == "tiff":
        path.unlink()
        path.with_suffix(".tiff").write_bytes(b"II*\0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "1 of 6 test images have no map in {root}: test/spot/001.png; expected cog/test/good/000.npy"),
        ("nan", "{map}: 1 of 2304 values are NaN or infinite; expected finite ones"),
        ("shape", "{map}: an array (3, 48, 48) of float64; expected numbers (H, W)"),
        ("size", "{map}: a map of 50×50; expected 48×48 (input.crop) or 48×48, its image's own size"),
        ("text", "{map}: an array (48, 48) of <U1; expected numbers (H, W)"),
        ("damaged", "{map}: cannot be read ("),
        ("pickle", "{map}: cannot be read ("),
        ("two", "1 images have two maps: {map}, {stem}.npz; keep one"),
        ("arrays", "{stem}.npz: arrays a, b; expected one, the map"),
        ("tiff", "{stem}.tiff: cannot be read ("),
    ],
)
def test_faulty_map_gives_a_one_line_error(rescore, cog, tmp_path, name, message):
    root = tmp_path / "theirs"
    for category in ("cog", "mat"):
        write(cog[1], root / category)
    broken(cog[1], root / "cog", name)
    status, text, err = rescore(root, *FRAME)
    stem = root / "cog" / "test" / "spot" / "001"
    assert status == 1
    assert f"error: [1/2] cog: {message.format(root=root, map=f'{stem}.npy', stem=stem)}" in err
    assert len(err.strip().splitlines()) == 1
    assert "mean of all (1 of 2)" in text, "the other category has its metrics"


def test_several_bad_maps_give_one_line(rescore, cog, tmp_path):
    for name in cog[1]:
        write({name: cog[1][name] * np.inf}, tmp_path / "theirs" / "cog")
    status, _, err = rescore(tmp_path / "theirs", "category=cog", *FRAME)
    assert status == 1
    assert (
        "000.npy: 2304 of 2304 values are NaN or infinite; expected finite ones; 5 more of 6 maps cannot be used" in err
    )
    assert len(err.strip().splitlines()) == 1


def test_transposed_map_is_rejected(command, tmp_path):
    data = make_category(tmp_path / "data" / "cog", good=1, defects=1)
    for path in sorted(data.rglob("*.png")):
        Image.open(path).resize((60, 40)).save(path)
    write({"test/good/000": np.ones((60, 40)), "test/spot/000": np.ones((40, 60))}, tmp_path / "maps" / "cog")
    status, _, err = command("score", f"maps={tmp_path / 'maps'}", "dataset=folder", f"data_root={tmp_path / 'data'}")
    assert status == 1
    assert "a map of 60×40, its image has 40×60; transpose it: height comes first" in err


def test_extra_maps_are_reported_and_ignored(rescore, cog, tmp_path):
    write({**cog[1], "test/dent/000": cog[1]["test/spot/000"], "train/000": np.ones(3)}, tmp_path / "theirs" / "cog")
    status, _, err = rescore(tmp_path / "theirs", "category=cog", *FRAME)
    assert status == 0
    extra = tmp_path / "theirs" / "cog" / "test" / "dent" / "000.npy"
    assert err == f"warning: cog: 1 maps have no test image and are ignored: {extra}\n"


def test_pooled_metrics_are_over_the_images_of_all_categories(rescore, made, tmp_path):
    kept = [each for each in records.load_all(made[1])[0] if each.method == "padim"]
    status, text, _ = rescore(made[1], "pooled=true", f"out={tmp_path / 'out'}")
    assert status == 0
    assert "mean of all" in text
    assert "all 12 images pooled" in text
    found = {row: values(each) for row, each in rows(tmp_path / "out").items() if "PaDiM" in row[0]}
    pooled = next(each for (_, category), each in found.items() if category == "pooled")
    images = [image for record in kept for image in record.images]
    labels = [image["defect"] is not None for image in images]
    assert pooled["image_auroc"] == pytest.approx(roc_auc_score(labels, [image["score"] for image in images]))
    maps = np.concatenate([np.load(made[1] / each.path.with_suffix("") / "maps.npy") for each in kept])
    square = Image.open(made[0] / "cog" / "ground_truth" / "spot" / "000_mask.png")  # of all defects
    mask = np.asarray(square.resize((64, 64), Image.Resampling.NEAREST))[8:56, 8:56] > 0
    masks = np.stack([mask & label for label in labels])
    assert pooled["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    assert len(found) == 3


def test_categories_without_maps_are_named_once(rescore, cog, tmp_path):
    write(cog[1], tmp_path / "theirs" / "cog")
    status, text, err = rescore(tmp_path / "theirs", *FRAME)
    assert status == 1
    assert err == "warning: 1 categories have no images or no maps: mat\n"
    assert "mean of all (1 of 2)" in text


def test_images_sharing_a_stem_have_maps_with_their_suffix(command, tmp_path):
    data = make_category(tmp_path / "data" / "cog", good=2, defects=1)
    Image.open(data / "test" / "good" / "001.png").save(data / "test" / "good" / "000.bmp")
    maps = {name: picture(number)[..., 0] for number, name in enumerate(("good/000.png", "good/000.bmp", "good/001"))}
    write({**maps, "spot/000": np.full((48, 48), 300)}, tmp_path / "maps" / "cog" / "test")
    words = ["dataset=folder", f"data_root={tmp_path / 'data'}"]
    status, text, err = command("score", f"maps={tmp_path / 'maps'}", *words, "metric=image_auroc")
    assert (status, err) == (0, "")
    assert "100.0" in text
    (tmp_path / "maps" / "cog" / "test" / "good" / "000.png.npy").rename(tmp_path / "maps/cog/test/good/000.npy")
    assert "1 of 4 test images have no map" in command("score", f"maps={tmp_path / 'maps'}", *words)[2]


def test_undefined_metrics_are_dashes_noted_in_means(command, tmp_path):
    for name in ("cog", "mat"):
        make_category(tmp_path / "data" / name, good=2, defects=1)
        maps = {f"test/good/{number:03}": np.zeros((48, 48)) for number in range(2)}
        write({**maps, "test/spot/000": np.eye(48)}, tmp_path / "maps" / name)
    shutil.rmtree(tmp_path / "data" / "mat" / "ground_truth")
    words = ["dataset=folder", f"data_root={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]
    status, text, _ = command("score", f"maps={tmp_path / 'maps'}", *words, "metric=[image_auroc,pixel_auroc]")
    assert status == 0
    lines = {line.split("   ")[0].strip(): line.split()[-2:] for line in text.splitlines() if line}
    assert lines["mat"] == ["100.0", "–"]
    assert lines["mean of all"][1] == lines["cog"][1] + "[a]"
    assert "[a] mean of 1 of 2" in text
    assert [values(row)["pixel_auroc"] is None for row in rows(tmp_path / "out").values()] == [False, True]


def test_wrong_usage(rescore, made, cog, command, tmp_path):
    write(cog[1], tmp_path / "theirs" / "cog")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    theirs = tmp_path / "theirs"
    cases = {
        (theirs, "metric=[prro]"): "metric=prro: no such metric; did you mean pro",
        (theirs, "metric=[]"): "metric=[]: expected at least one",
        (theirs, "category=cock"): "category=cock: data has no such category or group; did you mean cog",
        (theirs, "input.crop=48"): "input.crop=48 needs input.resize",
        (theirs, "input.resize=5"): "input.resize=5: expected at least 32 pixels",
        (theirs, "scores=/no/such.csv"): "scores=/no/such.csv: cannot be read",
        (theirs, "update=true"): "update=true",
        (theirs, "pooled=true"): "pooled=true: maps=",
        (theirs, "labels=/no/such.csv"): "labels=/no/such.csv: cannot be read",
        (theirs, "save_maps=false"): "save_maps has no effect with maps=DIR",
        (theirs, "threads=0"): "threads=0",
        (theirs, "category=cog", f"out={tmp_path / 'full'}"): "not empty; give a new folder, or overwrite=true",
        (made[1], "input.resize=64"): "input.resize=64: ",
        (made[1], "scores=/no/such.csv"): "maps beside records, which set it already",
        (tmp_path / "none",): "no such folder; expected anomaly maps",
        (tmp_path / "empty",): "no maps in it; expected <category>/test/<defect>/<image> with one of .npy, .npz",
        (theirs / "cog",): "6 maps in it, but none of cog, mat",
    }
    for (maps, *words), message in cases.items():
        status, text, err = rescore(maps, *words)
        assert (status, text) == (2, ""), (words, err)
        assert message in err, (words, err)
        assert len(err.strip().splitlines()) == 1, (words, err)
    make_category(tmp_path / "other" / "cog")
    status, _, err = command("score", f"maps={made[1]}", "dataset=folder", f"data_root={tmp_path / 'other'}")
    assert status == 2
    assert "it has maps of data cog, data mat, none of other cog; set dataset and category" in err
    assert not Path("score.log").exists()
