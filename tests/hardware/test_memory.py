"""Free memory, its limits, and what a job needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_category

from anomaly_bench.backbones import build
from anomaly_bench.backbones.backbone import Peak
from anomaly_bench.config import compose, instantiate
from anomaly_bench.config.settings import read_settings
from anomaly_bench.console import Reporter
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import TooLarge, ran_out, reason
from anomaly_bench.hardware import memory
from anomaly_bench.runs.evaluator import LIBRARY_BYTES, Evaluator
from anomaly_bench.runs.job import make_job


def test_job_that_does_not_fit_is_refused_with_size_and_options(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 10**9)
    memory.require(10**9, None, "the bank", "method.ratio=0.01")
    with pytest.raises(TooLarge, match=r"the bank needs 2500 MB of memory, 1000 MB are free: method.ratio=0.01"):
        memory.require(25 * 10**8, None, "the bank", "method.ratio=0.01")


def test_nothing_is_refused_if_free_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: None)
    memory.require(10**18, None, "the bank", "method.ratio=0.01")


def test_free_memory_is_known_here():
    free = memory.free()
    assert free is None or 10**7 < free < 10**14


@pytest.fixture
def groups(tmp_path):
    """Writes a control group's files; returns the mount."""

    def write(folder: str, **files: str) -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name.replace("__", ".")).write_text(text + "\n")
        return tmp_path

    return write


def own(folder: Path, *lines: str) -> Path:
    (folder / "own").write_text("".join(f"{line}\n" for line in lines))
    return folder / "own"


def test_cgroup_v2_limits_of_all_ancestors(groups):
    stat = "anon 5\nactive_file 10\ninactive_file 20"
    groups("", memory__stat="active_file 1\ninactive_file 1")  # the root has no limit
    groups("job", memory__max="1000", memory__current="600", memory__stat=stat)
    mount = groups("job/step", memory__max="max", memory__current="600", memory__stat=stat)
    assert memory.group_free(mount, own(mount, "0::/job/step")) == [430]
    groups("job/step", memory__max="50")
    assert memory.group_free(mount, own(mount, "0::/job/step")) == [0, 430]


def test_cgroup_v1_usage_includes_children(groups):
    stat = "active_file 1\ninactive_file 2\ntotal_active_file 100\ntotal_inactive_file 200"
    files = {"memory__usage_in_bytes": "700", "memory__stat": stat}
    mount = groups("memory/job", memory__limit_in_bytes="1000", **files)
    assert memory.group_free(mount, own(mount, "8:cpu:/x", "4:memory:/job", "0::/")) == [600]


def test_container_sees_its_own_cgroup_as_root(groups):
    mount = groups("", memory__max="1000", memory__current="400", memory__stat="active_file 0\ninactive_file 50")
    assert memory.group_free(mount, own(mount, "0::/docker/0123")) == [650]


def test_no_cgroups_no_limit(tmp_path):
    assert memory.group_free(tmp_path, tmp_path / "none") == []


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux'")
def test_real_cgroup_limits_free_memory():
    """A process in a new control group of 300 MB sees less than that."""
    for folder in (memory.CONTROL_GROUPS / "memory", memory.CONTROL_GROUPS):
        group = folder / f"anomaly-bench-{os.getpid()}"
        limit = "memory.limit_in_bytes" if folder.name == "memory" else "memory.max"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(300 * 10**6))
        except OSError:
            group.rmdir()
            continue
        break
    else:
        pytest.skip("this user may not make a control group here")
    code = (
        f"import os, pathlib; pathlib.Path({str(group)!r}, 'cgroup.procs').write_text(str(os.getpid()));"
        "from anomaly_bench.hardware import memory; print(memory.free())"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    assert 10**8 < int(done.stdout) < 300 * 10**6


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error, known):
    assert ran_out(error) == known
    assert ("ran out of memory" in reason(error)) == known


def test_peak_counts_simultaneously_live_memory():
    with Peak() as peak:
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1  # 8000
        view = b.view(10, 100)
        del a, b
        assert peak.now == 4000
        view + 1  # 8000
        del view
    assert (peak.now, peak.most) == (0, 8000)


def test_peak_of_a_network_is_the_same_on_the_meta_device():
    backbone = instantiate.construct(compose.compose("config", [])["backbone"], "backbone", levels=[1, 2, 3])
    shapes, most = backbone.infer_shapes((64, 96))
    assert shapes == [(24, 16, 24), (40, 8, 12), (112, 4, 6)]
    with Peak() as peak:
        levels = backbone(torch.rand(1, 3, 64, 96))
    assert [level.shape[1:] for level in levels] == shapes
    assert 0.8 * peak.most <= most <= peak.most


def evaluator(*words: str) -> Evaluator:
    config = compose.compose("config", ["dataset=folder", "backbone.weights=random", *words])
    return Evaluator(config, build.find_weights(config), read_settings(config), Reporter())


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (["method.dimensions=20"], 16 * 16 * (20 * 20 + 20) * 4 + 20 * 8),
        (["method=mahalanobis_ad", "method.levels=[1,2]"], (24 * 24 + 24 + 40 * 40 + 40) * 4),
        (["method=patchcore"], 0),  # a memory bank is none before the fit
    ],
)
def test_statistics_are_known_before_the_fit(words, stored):
    before = torch.random.get_rng_state()
    found, image = evaluator("input.resize=64", *words).footprint(3)
    assert found == stored
    assert image > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_memory_parts_of_a_job_are_named(tmp_path, monkeypatch):
    make_category(tmp_path / "data" / "cog", train=4, good=2, defects=1, side=32)
    words = ("input.resize=[96,128]", "method.dimensions=100", f"data_root={tmp_path / 'data'}")
    made = evaluator(*words)
    dataset = open_dataset(made.config["dataset"], made.settings.data_root)
    job = make_job(made.config, made.settings, dataset, build.find_weights(made.config), "cog")
    assert job.image_bytes == 7 * 96 * 128 * 3
    monkeypatch.setattr(memory, "free", lambda device: 10**7)
    statistics = 24 * 32 * (100 * 100 + 100) * 4  # 31 MB
    batch = 32 * made.footprint(3)[1]  # of the timing
    needed = statistics + batch + job.image_bytes + LIBRARY_BYTES
    with pytest.raises(
        TooLarge,
        match=rf"cog at 128x96 pixels \(statistics {statistics / 1e6:.0f}, a batch {batch / 1e6:.0f}, libraries 200\) "
        rf"needs {needed / 1e6:.0f} MB of memory, 10 MB are free: use a smaller",
    ):
        made.require_memory(job)


def test_a_memory_bank_counts(tmp_path):
    make_category(tmp_path / "data" / "cog", train=4, good=2, defects=1, side=32)
    made = evaluator("method=patchcore", "method.ratio=0.5", "input.resize=64", f"data_root={tmp_path / 'data'}")
    dataset = open_dataset(made.config["dataset"], made.settings.data_root)
    job = make_job(made.config, made.settings, dataset, build.find_weights(made.config), "cog")
    ((_, parts),) = made.needs(job)
    patches = 4 * 8 * 8
    assert parts["fitting"] == (patches + patches // 2) * 1024 * 4 + patches * (128 * 4 + 16)
