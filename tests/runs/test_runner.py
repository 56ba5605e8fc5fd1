"""Whole runs on small folders: resuming, failures, interruption, files kept, work never repeated."""

from __future__ import annotations

import csv
import json
import pickle
import platform
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import picture, save, time_briefly
from sklearn.metrics import roc_auc_score

import anomaly_bench
from anomaly_bench import mapped, records
from anomaly_bench.cache import cache_root
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import apart
from anomaly_bench.metrics import ranking
from anomaly_bench.protocol import to_tensor
from anomaly_bench.runs import evaluator, job, saved_model

SMALL = ("dataset=folder", "input.resize=64", "speed=false", "gallery=0", "method.dimensions=20")


@pytest.fixture
def small(tree, tmp_path):
    """Overrides of a quick run, and its results folder."""
    return [*SMALL, f"data_root={tree}", f"results={tmp_path / 'results'}"], tmp_path / "results"


def files(results):
    return sorted(path for path in (results / "records").rglob("*") if path.is_file())


def test_first_and_second_call(small, command):
    words, results = small
    status, first, err = command(*words)
    assert status == 0, err
    assert "[2/2] mat: image AUROC" in err
    before = {path: path.stat().st_mtime_ns for path in files(results)}
    assert len(before) == 2
    status, second, err = command(*words)
    assert (status, second) == (0, first), "a finished run prints the same tables"
    assert "already done" in err
    assert before == {path: path.stat().st_mtime_ns for path in files(results)}
    rows = list(csv.DictReader((results / "results.csv").open()))
    assert [row["category"] for row in rows] == ["cog", "mat"]
    tables = sorted(path.name for path in (results / "tables").rglob("*.*"))
    assert tables == ["complexity.md", "complexity.tex", "per_class.md", "per_class.tex"]


def test_a_finished_run_imports_no_torch(small, command):
    words, _ = small
    command(*words)
    code = (
        "import sys; from anomaly_bench.cli.main import command; status = command(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_while_torch_is_imported_a_process_of_its_own_decodes(small, command, monkeypatch, empty_cache):
    words, results = small
    command(*words, f"results={results.parent / 'other'}")
    (store,) = cache_root().glob("store/*")
    shutil.rmtree(store)
    started = []

    def waiting(calls):
        started.append(apart.call_apart(calls))
        assert started[-1].wait(60) == 0
        return started[-1]

    monkeypatch.setattr(job, "sys", SimpleNamespace(modules={}))  # as if torch had not been imported
    monkeypatch.setattr(job, "call_apart", waiting)
    assert command(*words, "category=cog")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in store.iterdir() if path.suffix == ".npy"}
    assert len(started) == 1
    assert len(before) == 3, "training images, test images and masks"
    assert command(*words, "category=cog", "overwrite=true")[0] == 0
    assert len(started) == 1, "all is known"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for error in (pickle.PicklingError, OSError):
        shutil.rmtree(store)
        monkeypatch.setattr(job, "call_apart", failing(error))
        assert command(*words, "category=cog", "overwrite=true")[0] == 0


def failing(error):
    def fails(calls):
        raise error

    return fails


def test_closed_stdout_loses_no_table(small, command):
    words, results = small
    command(*words)
    shutil.rmtree(results / "tables")
    code = "import sys; from anomaly_bench.cli.main import main; main()"
    with subprocess.Popen([sys.executable, "-uc", code, *words], stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 0
    assert len(list((results / "tables").rglob("*.*"))) == 4


def test_record_has_all_required_contents(small, command):
    words, results = small
    command(*words, "category=cog")
    (record,) = records.load_all(results)[0]
    labels = [image["defect"] is not None for image in record.images]
    assert record.value("image_auroc") == pytest.approx(
        roc_auc_score(labels, [image["score"] for image in record.images])
    )
    assert record.counts == {"fit": 6, "test": 6, "defects": 3, "maps": 6, "regions": 3, "lost_regions": 0}
    assert record.size["stored_mb"] == pytest.approx((16 * 16 * (20 * 20 + 20) * 4 + 20 * 8) / 1e6)
    assert record.size["extra_params"] == 0
    assert record.cost["fit_s"] > 0
    text = json.dumps(record.__dict__)
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(results.parent) not in text, "no path of this machine in a record"


@pytest.mark.slow
def test_each_setting_that_matters_makes_its_own_record(small, command):
    words, results = small
    variants = ["seed=0", "seed=1", "method.eps=0.1", "input.crop=48", "precision=bf16", "backbone.weights=random"]
    variants.append("backbone.modules.2=blocks.2.0")
    for number, variant in enumerate(variants, 1):
        assert command(*words, "category=cog", variant)[0] == 0
        assert len(files(results)) == number, variant
    command(*words, "category=cog", "batch_size=2", "threads=1")  # these change no score
    command(*words, "category=cog", "backbone.modules.head=conv_head")  # a level the method does not read
    assert len(files(results)) == len(variants)


def test_a_changed_image_makes_a_new_record(small, command, tree):
    words, results = small
    command(*words, "category=cog")
    save(picture(999), tree / "cog" / "train" / "good" / "000.png")
    command(*words, "category=cog")
    assert len(files(results)) == 2


def test_images_left_out_of_a_finished_category_are_named(small, command, tree):
    words, _ = small
    save(picture(998), tree / "cog" / "test" / "early.png")
    assert "left out (1): test/early.png" in command(*words, "category=cog")[2]
    assert "left out" not in command(*words, "category=cog")[2], "it was said, and is in the record"
    save(picture(999), tree / "cog" / "train" / "good" / "camera" / "late.png")
    err = command(*words, "category=cog")[2]
    assert "already done" in err
    assert (
        "warning: cog: images that no folder of the layout holds: left out (2): test/early.png, train/good/cam" in err
    )


def test_without_masks_there_are_image_metrics_only(small, command, tree):
    words, results = small
    shutil.rmtree(tree / "cog" / "ground_truth")
    assert command(*words, "category=cog")[0] == 0
    (record,) = records.load_all(results)[0]
    assert record.value("image_auroc") is not None
    assert record.value("pixel_auroc") is record.value("pro") is None


def test_single_category_matches_the_full_run(small, command, tmp_path):
    words, results = small
    command(*words)
    command(*words, "category=mat", f"results={tmp_path / 'alone'}")
    together = [record for record in records.load_all(results)[0] if record.task == "mat"]
    (alone,) = records.load_all(tmp_path / "alone")[0]
    assert (together[0].fingerprint, together[0].images) == (alone.fingerprint, alone.images)


def test_overwrite_computes_again(small, command):
    words, results = small
    command(*words, "category=cog")
    (path,) = files(results)
    before = path.stat().st_mtime_ns
    command(*words, "category=cog", "overwrite=true")
    assert path.stat().st_mtime_ns > before


def test_overwrite_reads_every_file_again(small, command, tree):
    """Even where a file system tells nothing of a change."""
    words, results = small
    assert command(*words, "category=cog")[0] == 0
    (before,) = records.load_all(results)[0]
    for memory in (cache_root() / "digests").iterdir():
        memory.write_text(re.sub('"[0-9a-f]{64}"', f'"{"0" * 64}"', memory.read_text()))
    assert command(*words, "category=cog", "overwrite=true")[0] == 0
    (after,) = records.load_all(results)[0]
    assert after.hashes == before.hashes


def test_records_of_changed_images_are_not_averaged(small, command, tree):
    words, results = small
    assert command(*words, "category=cog")[0] == 0
    save(picture(999), tree / "cog" / "train" / "good" / "000.png")
    assert command(*words, "category=cog", "seed=1")[0] == 0
    one, two = sorted(records.load_all(results)[0], key=lambda record: record.seed)
    assert one.hashes["test"] == two.hashes["test"]
    assert one.hashes["fit"] != two.hashes["fit"]
    out = command("tables", f"results={results}", "table=summary")[1]
    assert "other training images of cog than unmarked values" in out
    assert "PaDiM (other images)" in out


def test_speed_is_added_to_a_record_that_lacks_it(small, command, monkeypatch):
    words, results = small
    time_briefly(monkeypatch)
    command(*words, "category=cog")
    status, _, err = command(*words, "category=cog", "speed=true", "batch_size=3", "threads=2")
    assert status == 0, err
    (record,) = records.load_all(results)[0]
    (entry,) = record.speed
    assert (entry["batch_size"], entry["threads"]) == (3, 2)
    assert min(entry["latency_ms"], entry["backbone_latency_ms"], entry["fps"]) > 0
    assert "already done" in command(*words, "category=cog", "speed=true", "batch_size=3", "threads=2")[2]
    command(*words, "category=cog", "speed=true", "batch_size=3", "threads=1")
    assert [entry["threads"] for entry in records.load_all(results)[0][0].speed] == [2, 1]


def test_maps_model_and_gallery(small, command, tree):
    words, results = small
    assert command(*words, "category=cog", "save_maps=true", "save_model=true", "gallery=4")[0] == 0
    (record,) = records.load_all(results)[0]
    folder = results / record.path.with_suffix("")
    maps = np.load(folder / "maps.npy")
    assert maps.shape == (6, 64, 64)
    assert [float(each.max()) for each in maps] == pytest.approx([image["score"] for image in record.images])
    names = sorted(path.name for path in folder.glob("*.png"))
    assert [name.split("-test")[0] for name in names] == ["alarm-1", "alarm-2", "miss-1", "miss-2"]
    method = saved_model.load_model(folder)
    from PIL import Image

    image = Image.open(tree / "cog" / record.images[4]["file"]).resize((64, 64), Image.Resampling.BILINEAR)
    score = method.score(to_tensor(np.asarray(image)[None])).image
    assert float(score) == pytest.approx(record.images[4]["score"], rel=1e-5)
    with pytest.raises(UsageError, match=r"no model\.yaml"):
        saved_model.load_model(results)


def test_a_long_test_set_is_kept_in_files_with_the_same_numbers(small, command, monkeypatch):
    words, results = small
    words = (*words, "category=cog", "save_maps=true", "gallery=4", "overwrite=true")

    def run():
        assert command(*words)[0] == 0
        (record,) = records.load_all(results)[0]
        folder = results / record.path.with_suffix("")
        return record, np.load(folder / "maps.npy"), {path.name: path.read_bytes() for path in folder.glob("*.png")}

    record, maps, pictures = run()
    monkeypatch.setattr(mapped, "LARGE", 0)
    monkeypatch.setattr(ranking, "SORTED", 2 * 64 * 64)  # three runs of two images
    again, maps_again, pictures_again = run()
    assert again.images == record.images
    assert np.array_equal(maps_again, maps)
    assert pictures_again == pictures
    for name, entry in record.metrics.items():
        assert again.value(name) == pytest.approx(entry["value"], abs=1e-12), name


def test_missing_requested_files_are_written(small, command):
    words, results = small
    command(*words, "category=cog")
    command(*words, "category=cog", "save_maps=true")
    assert len(list(results.rglob("maps.npy"))) == 1


def test_failing_method_gives_one_line(small, command, monkeypatch):
    words, _ = small

    def broken(self, job):
        raise RuntimeError("the method broke")

    monkeypatch.setattr(evaluator.Evaluator, "fit", broken)
    status, _, err = command(*words)
    assert status == 1
    assert err.count("the method broke") == 2
    assert "Traceback" not in err


def test_ctrl_c_keeps_finished_work(small, command, monkeypatch):
    words, results = small
    whole = evaluator.Evaluator.evaluate

    def interrupted(self, job):
        if job.task.name == "mat":
            raise KeyboardInterrupt
        return whole(self, job)

    monkeypatch.setattr(evaluator.Evaluator, "evaluate", interrupted)
    status, _, err = command(*words)
    assert status == 130
    assert "interrupted" in err
    assert [record.task for record in records.load_all(results)[0]] == ["cog"]


@pytest.mark.slow
def test_kill_loses_only_the_category_in_progress(small, tmp_path):
    words, results = small
    code = "import sys; from anomaly_bench.cli.main import command; sys.exit(command(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(results.rglob("cog-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in results.rglob("cog-*.json")}
    assert done
    again = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "cog: already done" in again.stderr
    assert done == {path.name: path.stat().st_mtime_ns for path in results.rglob("cog-*.json")}
    assert len(records.load_all(results)[0]) == 2


def test_multirun(small, command):
    words, results = small
    status, _, err = command("-m", *words, "category=cog", "seed=0,1")
    assert status == 0, err
    assert sorted(record.seed for record in records.load_all(results)[0]) == [0, 1]


def test_python_api(small, tree):
    _, results = small
    made = anomaly_bench.evaluate(
        "input.resize=64", "method.dimensions=20", method="padim", dataset="folder", data_root=tree, results=results,
        category=["cog"], speed=False, gallery=0,
    )  # fmt: skip
    assert [record.task for record in made] == ["cog"]
    assert records.load_all(results)[0] == made
    with pytest.raises(UsageError, match="no such method; did you mean padim"):
        anomaly_bench.evaluate(method="padin")


def test_hydra_leaves_nothing_behind(small, command, tmp_path, monkeypatch):
    words, results = small
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command(*words, "category=cog")
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in results.iterdir()} == {
        "records",
        "results.csv",
        ".results.csv.lock",
        ".leases.lock",
        "tables",
        "logs",
    }


@pytest.mark.slow
def test_synthetic_is_neither_trivial_nor_hopeless(tmp_path):
    made = anomaly_bench.evaluate(results=tmp_path, speed=False, gallery=0)
    assert [record.task for record in made] == ["weave", "granite", "gear", "biscuit"]
    for record in made:
        assert 0.80 <= record.value("image_auroc") <= 0.98, record.task


@pytest.mark.real
@pytest.mark.slow
def test_bottle_reaches_the_expected_scores(real, command, tmp_path):
    """One seed on real images; the final figures are means over three seeds in results/."""
    status, _, err = command(
        "dataset=mvtec", f"data_root={real}", "category=bottle", "input.crop=224", "speed=false", "gallery=0",
        f"results={tmp_path}",
    )  # fmt: skip
    assert status == 0, err
    (record,) = records.load_all(tmp_path)[0]
    assert record.counts["fit"] == 209
    assert record.value("image_auroc") >= 0.988
    assert record.value("pixel_auroc") >= 0.965
    assert record.value("pro") >= 0.891
