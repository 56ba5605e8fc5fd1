"""Sweeps: finished jobs are skipped, failures are reported and stop no others, equivalent jobs run once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading

import pytest
import timm
import torch
from conftest import time_briefly

from anomaly_bench import records

WORDS = ("dataset=folder", "input.resize=32", "speed=false", "gallery=0", "threads=1", "method.dimensions=5")


@pytest.fixture
def sweep(tree, tmp_path):
    """Overrides of quick jobs, and their results folder."""
    results = tmp_path / "results"
    return ["method.levels=[1,2]", *WORDS, f"data_root={tree}", f"results={results}"], results


def corrupt(tree) -> None:
    (tree / "cog" / "train" / "good" / "002.png").write_bytes(b"no picture")


def stamps(results):
    return {path: path.stat().st_mtime_ns for path in (results / "records").rglob("*.json")}


def row(text: str, *starts: str) -> list[str]:
    """The numbers in the table row that starts with these cells."""
    for line in text.splitlines():
        cells = line.split()
        if tuple(cells[: len(starts)]) == starts and all(cell.isdigit() for cell in cells[len(starts) :]):
            return cells[len(starts) :]
    raise AssertionError(f"no row {starts} in\n{text}")


def test_sweep_skips_finished_jobs_and_prints_tables_once(sweep, command):
    words, results = sweep
    status, first, err = command("-m", *words, "seed=0,1")
    assert status == 0, err
    assert first.count("mean of all") == 1
    assert "Mean of 2 seeds" in first
    assert row(err, "padim", "lite0") == ["4", "0", "0", "0"]
    assert "padim lite0 s1 [2/2] mat: image AUROC" in err
    before = stamps(results)
    status, second, err = command("-m", *words, "seed=0,1,2")
    assert status == 0, err
    assert row(err, "padim", "lite0") == ["2", "4", "0", "0"]
    assert "3 jobs: 2 have nothing to do, launching 1" in err
    assert "Mean of 3 seeds" in second
    assert before.items() <= stamps(results).items()


@pytest.mark.slow
def test_a_finished_sweep_imports_no_torch(sweep, command):
    words, _ = sweep
    command("-m", *words, "seed=0,1")
    code = (
        "import sys; from anomaly_bench.cli.main import command; status = command(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    for call in (["-m"], ["status"]):
        done = subprocess.run([sys.executable, "-c", code, *call, *words, "seed=0,1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_failure_is_stored_with_cause_traceback_and_configuration(sweep, command, tree):
    words, results = sweep
    healthy = (tree / "cog" / "train" / "good" / "002.png").read_bytes()
    corrupt(tree)
    status, out, err = command("-m", *words, "seed=0,1")
    assert status == 1
    assert row(err, "padim", "lite0") == ["2", "0", "2", "0"]
    assert "failed: seed=1: cog: " in err
    assert "Traceback" not in out + err
    files = list((results / "failed").rglob("*.json"))
    assert len(files) == 2
    stored = json.loads(files[0].read_text())
    assert "002.png" in stored["reason"]
    assert "Traceback (most recent call last)" in stored["traceback"]
    assert stored["config"]["method"]["dimensions"] == 5
    (tree / "cog" / "train" / "good" / "002.png").write_bytes(healthy)
    status, _, err = command("-m", *words, "seed=0,1")
    assert status == 0, err
    assert row(err, "padim", "lite0") == ["2", "2", "0", "0"]
    assert not (results / "failed").exists()


def test_status_and_retry(sweep, command, tree, monkeypatch):
    words, results = sweep
    status, out, _ = command("status", *words, "seed=0,1")
    assert status == 1
    assert "2 jobs: 0 done, 0 failed, 4 missing" in out
    assert not results.exists(), "status writes nothing"
    monkeypatch.setattr("anomaly_bench.runs.evaluator.Evaluator.fit", broken)
    command("-m", *words, "seed=0", "category=cog")
    monkeypatch.undo()
    status, out, _ = command("status", *words, "seed=0,1")
    assert status == 1
    assert row(out, "padim", "lite0", "seed=0") == ["0", "1", "1"]
    assert row(out, "padim", "lite0", "seed=1") == ["0", "0", "2"]
    assert "failed: seed=0: cog: RuntimeError: the planted fault" in out
    status, _, err = command("-m", *words, "seed=0,1", "retry=failed")
    assert status == 1, "the missing ones are still missing"
    assert row(err, "padim", "lite0") == ["1", "0", "0", "3"]
    assert [record.task for record in records.load_all(results)[0]] == ["cog"]
    assert command(*words, "retry=failed")[0] == 0
    assert len(records.load_all(results)[0]) == 1


def test_retry_finds_a_failure_after_its_cause_was_repaired(sweep, command, tree, tmp_path):
    """An image, a folder and weights: all but the last change the job's fingerprint, or it had none."""
    words, results = sweep
    weights = tmp_path / "weights.pth"
    words = [*words, f"backbone.weights={weights}"]
    image, healthy = tree / "cog/train/good/002.png", (tree / "cog/train/good/002.png").read_bytes()
    retry = ("-m", *words, "seed=0,1", "retry=failed")
    status, _, err = command("-m", *words, "seed=0")
    assert status == 1
    assert "weights.pth: no such file" in err
    assert row(err, "padim", "lite0") == ["0", "0", "1", "0"]
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    image.write_bytes(b"no picture")
    (tree / "mat").rename(tree / "hidden")
    status, _, err = command(*retry, "category=cog")
    assert status == 1
    assert row(err, "padim", "lite0") == ["0", "0", "1", "1"], "seed=1 was never tried"
    image.write_bytes(healthy)
    (tree / "hidden").rename(tree / "mat")
    status, out, _ = command("status", *words, "seed=0,1")
    assert status == 1
    assert row(out, "padim", "lite0", "seed=0") == ["0", "2", "0"]
    assert row(out, "padim", "lite0", "seed=1") == ["0", "0", "2"]
    status, _, err = command(*retry)
    assert status == 1, "those of seed=1 are still missing"
    assert row(err, "padim", "lite0") == ["2", "0", "0", "2"]
    assert {record.seed for record in records.load_all(results)[0]} == {0}
    assert not (results / "failed").exists()


def test_retry_finds_a_category_that_had_no_folder(sweep, command, tree):
    words, results = sweep
    words = [word for word in words if not word.startswith("dataset")] + ["dataset=mvtec", "category=[bottle,cable]"]
    (tree / "cog").rename(tree / "bottle")
    assert command(*words)[0] == 1
    (tree / "mat").rename(tree / "cable")
    status, _, err = command(*words, "retry=failed")
    assert status == 0, err
    assert {record.task for record in records.load_all(results)[0]} == {"bottle", "cable"}


def test_failures_before_the_first_job_are_listed_with_method_and_backbone(sweep, command):
    words, _ = sweep
    words = [*words, "backbone.weights=/no/such/file"]
    for call in (("-m", *words, "backbone=lite0,r18"), ("status", *words, "backbone=lite0,r18")):
        status, out, err = command(*call)
        assert status == 1
        text = err if call[0] == "-m" else out
        changed = [] if call[0] == "-m" else ["backbone.weights=/no/such/file"]
        for backbone in ("lite0", "r18"):
            assert row(text, "padim", backbone, *changed)[-2:] != ["0", "0"]
        assert text.count("backbone.weights=/no/such/file: no such file") >= 2


def test_status_says_what_is_there_for_another_speed(sweep, command, monkeypatch):
    words, _ = sweep
    time_briefly(monkeypatch)
    timed = [*(word for word in words if word != "speed=false"), "category=cog"]
    assert command(*timed, "batch_size=2")[0] == 0
    status, out, _ = command("status", *timed, "batch_size=3")
    assert status == 1
    assert row(out, "padim", "lite0") == ["0", "0", "1"]
    assert re.search(
        r"missing: cog: has a record, without a speed on .*, batch 3, fp32 \(there: .*, batch 2, fp32\)", out
    )
    assert command("status", *timed, "batch_size=3", "speed=false")[0] == 0
    assert "has a record" not in command("status", *timed, "seed=1")[1]


def test_nothing_is_written_for_a_job_that_another_run_has_taken_over(sweep, command, monkeypatch):
    """As after a SIGSTOP longer than a lease lasts."""
    from anomaly_bench.runs.evaluator import Evaluator

    words, results = sweep
    evaluate = Evaluator.evaluate

    def stopped(self, job):
        (lease,) = (results / "leases").glob("*.json")
        lease.write_text(json.dumps({"host": "elsewhere", "process": 1, "started": "1"}))
        return evaluate(self, job)

    monkeypatch.setattr(Evaluator, "evaluate", stopped)
    kept = [word for word in words if not word.startswith("gallery=")]
    status, _, err = command(*kept, "category=cog", "wait=false", "save_maps=true", "save_model=true", "gallery=2")
    assert status == 1
    assert "taken over by another run, as this one stood still; nothing is written" in err
    assert records.load_all(results) == ([], [])
    assert len(list((results / "leases").glob("*.json"))) == 1, "the other's"
    suffixes = {path.suffix for path in results.rglob("*") if path.is_file()}
    assert suffixes.isdisjoint({".npy", ".safetensors", ".yaml", ".png"}), "maps and model would be of another process"
    assert not (results / ".staging").exists()


def broken(*_):
    raise RuntimeError("the planted fault")


def test_fail_fast_stops_run_and_sweep(sweep, command, tree):
    words, results = sweep
    corrupt(tree)
    assert command(*words, "fail_fast=true")[0] == 1
    assert records.load_all(results)[0] == []
    status, _, err = command("-m", *words, "seed=0,1,2", "fail_fast=true")
    assert status == 1
    assert row(err, "padim", "lite0") == ["0", "0", "1", "5"]


def test_invalid_configuration_fails_alone(sweep, command):
    words, _ = sweep
    status, _, err = command("-m", *words, "batch_size=0,4")
    assert status == 1
    assert row(err, "padim", "lite0") == ["2", "0", "1", "0"]
    assert "failed: batch_size=0: expected a whole number of at least 1" in err
    status, _, err = command("-m", *words[1:], "method.levels=[1],[9]", "category=cog")
    assert status == 1
    assert "no level 9" in err
    assert row(err, "padim", "lite0") == ["1", "0", "1", "0"]


def test_a_method_that_reads_other_planes_fails_alone(sweep, command):
    words, _ = sweep
    plain = [word for word in words if not word.startswith("method.")]
    status, _, err = command("-m", *plain, "method=variation_model,voxel_vm", "category=cog")
    assert status == 1
    assert row(err, "variation_model", "none") == ["1", "0", "0", "0"]
    assert row(err, "voxel_vm", "none") == ["0", "0", "1", "0"]
    assert "failed: method=voxel_vm: method=voxel_vm reads the planes rgb, xyz; the images of cog have" in err
    status, out, _ = command("status", *plain, "method=variation_model,voxel_vm", "category=cog")
    assert status == 1
    assert "voxel_vm reads the planes" in out


def test_equivalent_jobs_run_once(sweep, command):
    words, results = sweep
    words = [word for word in words if not word.startswith("method.")]
    words += ["input.resize=128", "method=ae_l2", "method.epochs=1", "method.samples=2", "category=cog"]
    status, _, err = command("-m", *words, "backbone=lite0,lite1")
    assert status == 0, err
    assert "1 jobs, 1 equivalent to others" in err
    assert len(records.load_all(results)[0]) == 1
    assert command("-m", *words, "seed=0,0", "backbone=lite0")[0] == 0
    assert len(records.load_all(results)[0]) == 1


@pytest.mark.slow
def test_concurrent_runs_do_each_job_once(sweep, tmp_path):
    words, results = sweep
    code = """
import sys
from anomaly_bench.cli.main import command
from anomaly_bench.runs.evaluator import Evaluator
fit, notes = Evaluator.fit, sys.argv[1]
def noted(self, job):
    with open(notes, "a") as file:
        file.write(f"{job.task.name} {self.settings.seed}\\n")
    return fit(self, job)
Evaluator.fit = noted
sys.exit(command(sys.argv[2:]))
"""
    call = [sys.executable, "-c", code, tmp_path / "fits", "-m", *words, "seed=0,1,2,3"]
    both = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    fits = (tmp_path / "fits").read_text().splitlines()
    assert sorted(fits) == sorted(f"{name} {seed}" for name in ("cog", "mat") for seed in range(4))
    assert len(records.load_all(results)[0]) == 8
    assert not (results / "leases").exists()


def test_run_waits_for_a_job_in_progress_elsewhere(sweep, command, monkeypatch):
    from anomaly_bench.runs import leases

    words, results = sweep
    assert command(*words, "category=mat")[0] == 0
    (record,) = records.load_all(results)[0]
    (results / record.path).unlink()
    held, over = threading.Event(), threading.Event()

    def work() -> None:
        with leases.claim(results, "--".join(record.path.with_suffix("").parts[1:])):
            held.set()
            over.wait()

    other = threading.Thread(target=work, daemon=True)
    other.start()
    held.wait()
    status, _, err = command(*words, "wait=false")
    assert status == 1
    assert "[2/2] mat: another run is working on it\n" in err

    def slept(_: float) -> None:
        over.set()
        other.join()

    monkeypatch.setattr("anomaly_bench.runs.runner.time.sleep", slept)  # it looks again once the other has ended
    status, _, err = command(*words)
    assert status == 0, err
    assert over.is_set()
    assert err.count("working on it; waiting") == 1
    assert len(records.load_all(results)[0]) == 2


def test_invalid_sweep_keys(sweep, command):
    words, _ = sweep
    assert "retry=no: expected one of all, failed" in command(*words, "retry=no")[2]
    assert "fail_fast=1: expected true or false" in command(*words, "fail_fast=1")[2]
    assert command("-m", *words, "method=padim,padin")[0] == 2
    assert command("status", *words, "method=padin")[0] == 2
