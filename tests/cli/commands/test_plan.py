"""Plans: memory and disk from shapes, time from earlier records, early refusals; nothing is computed."""

from __future__ import annotations

import pytest
import torch
from test_build import record as made

from anomaly_bench import records
from anomaly_bench.hardware import memory, timing
from anomaly_bench.runs import planning

WORDS = ("dataset=folder", "input.resize=32", "speed=false", "gallery=0", "threads=1", "method.dimensions=5")


@pytest.fixture
def words(tree, tmp_path):
    return ["method.levels=[1,2]", *WORDS, f"data_root={tree}", f"results={tmp_path / 'results'}"]


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith("padim")]


def test_plan_uses_shapes_then_records(words, command, tmp_path):
    timing.reset_peaks(torch.device("cpu"))  # what earlier tests left is no part of a plan
    status, out, err = command("plan", *words, "seed=0,1")
    assert status == 0, err
    assert not (tmp_path / "results").exists(), "a plan writes nothing"
    for seed, row in enumerate(rows(out)):
        assert row[:4] == ["padim", "lite0", f"seed={seed}", "2"]
        assert row[6:] == ["?", "shapes", "no", "record", "yet"]
        guessed = int(row[4])
    assert "2 jobs: 0 records exist, 4 to make: unknown time" in out
    assert command(*words, "category=cog")[0] == 0
    (measured,) = (record.cost["peak_ram_mb"] for record in records.load_all(tmp_path / "results")[0])
    assert measured is None or abs(guessed / measured - 1) < 0.3, "most of it is what Python and torch take"
    status, out, _ = command("plan", *words, "seed=0,1")
    assert status == 0
    first, second = rows(out)
    assert (first[3], second[3]) == ("1", "2")
    assert first[-4:] == ["1", "records", "1", "records"]
    assert "2 jobs: 1 records exist, 3 to make:" in out
    assert command(*words)[0] == 0
    assert command("plan", *words)[1].strip() == "1 jobs: all 2 records exist"


def test_time_grows_with_images_and_epochs(words, command, tmp_path, monkeypatch):
    assert command(*words)[0] == 0
    results = tmp_path / "results"
    for record in records.load_all(results)[0]:
        record.cost |= {"fit_s": 12.0, "score_s": 3.0}
        records.save(record, results)
    # 6 training images in 12 s, 6 test images in 3 s; two categories like these
    assert rows(command("plan", *words, "seed=1")[1])[0][5:7] == ["30", "s"]
    monkeypatch.setattr("anomaly_bench.hardware.timing.SECONDS", 45)
    out = command("plan", *words, "seed=1", "speed=true")[1]
    assert rows(out)[0][5:7] == ["4", "min"]  # 30 s + 2 categories x 2 timings x 45 s = 210 s


def test_job_that_cannot_fit_is_refused_with_a_remedy(words, command, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device=None: 100_000_000)
    status, out, _ = command("plan", *words, "seed=0")
    assert status == 1
    (line,) = [line for line in out.splitlines() if "cog at 32x32" in line]
    assert line.startswith("refused: ")
    assert "100 MB are free: use a smaller input.resize" in line
    monkeypatch.undo()
    monkeypatch.setattr(planning, "free_disk", lambda: 1000)
    status, out, _ = command("plan", *words)
    assert status == 1
    assert "MB of disk, 0 MB are free: free some, or set ANOMALY_BENCH_CACHE" in out


def test_disk_for_features_only_where_jobs_share_them(words, command, monkeypatch):
    counted = []
    disk = planning.disk
    monkeypatch.setattr(planning, "disk", lambda *parts: counted.append(disk(*parts)) or counted[-1])
    for change in (["cache=off"], [], ["cache=on"], ["-m", "seed=0,1"]):
        assert command("plan", *words, *change)[0] == 0
    off, alone, on = counted[0], counted[2], counted[4]  # of two categories each
    assert off == alone < on
    assert set(counted[6:]) == set(counted[4:6])


def test_invalid_configuration_is_refused(words, command):
    status, out, _ = command("plan", *words[1:], "method.levels=[9]")
    assert status == 1
    assert "refused: cog: method.levels" in out or "no level 9" in out
    status, out, _ = command("plan", *words, "batch_size=0,4")
    assert status == 1
    assert "failed: batch_size=0: expected a whole number" in out


@pytest.mark.parametrize(
    ("training", "by_steps", "length"),
    [
        ({"epochs": 4, "steps": 28}, True, 28),
        ({"epochs": 4, "steps": 28}, False, 40),
        ({"epochs": 4, "steps": None}, True, None),
        ({}, False, 10),
    ],
)
def test_fitting_time_is_proportional_to_steps_or_to_epochs_of_10_images(training, by_steps, length):
    assert planning.length_of(made(training=training), by_steps) == length
