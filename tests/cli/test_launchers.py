"""Launchers: errors before the launch, and each job's share of the cores."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from anomaly_bench.cli import launchers
from anomaly_bench.config.settings import conf_folder
from anomaly_bench.hardware import devices


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(launchers, "cores", lambda: 8)


@pytest.mark.parametrize(
    ("name", "words", "threads"),
    [
        ("joblib", {"n_jobs": 2}, 4),
        ("joblib", {"n_jobs": 3}, 2),
        ("joblib", {"n_jobs": 16}, 1),
        ("joblib", {"n_jobs": -1}, 1),
        ("joblib", {"n_jobs": -7}, 4),
        ("ray", {"ray": {"remote": {"num_cpus": 3}}}, 3),
        ("ray", {"ray": {"remote": {}}}, 1),
        ("submitit_local", {"cpus_per_task": 2}, 2),
        ("submitit_slurm", {"cpus_per_task": 5}, 5),
        ("submitit_slurm", {"cpus_per_task": None}, 8),
    ],
)
def test_threads_of_a_job(name, words, threads, eight_cores):
    assert launchers.share(name, OmegaConf.create(words)) == threads


def swept(name, mode="MULTIRUN"):
    from hydra.types import RunMode

    choices = {"hydra/launcher": name}
    return OmegaConf.create(
        {"mode": RunMode[mode], "runtime": {"choices": choices}, "launcher": {"n_jobs": 4, "cpus_per_task": 4}}
    )


@pytest.mark.parametrize(
    ("hydra", "given", "threads"),
    [
        (swept("joblib"), None, 2),
        (swept("joblib"), 7, 7),
        (swept("joblib", "RUN"), None, None),
        (swept("basic"), None, None),
    ],
)
def test_explicit_threads_win_and_single_runs_use_all_cores(hydra, given, threads, eight_cores):
    values = {"threads": given}
    launchers.settle(values, hydra)
    assert values == {"threads": threads}


def test_cores_of_a_slurm_job(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    there = devices.cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert devices.cores() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4096")
    assert devices.cores() == there


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 2), (4, 2), (16, 4), (64, 16)])
def test_number_of_processes_on_a_cpu(cores, jobs, monkeypatch):
    monkeypatch.setattr(launchers, "cores", lambda: cores)
    monkeypatch.setattr("anomaly_bench.hardware.devices.GPU_NODES", ())
    monkeypatch.setattr("sys.platform", "linux")
    assert launchers.processes() == jobs


@pytest.mark.parametrize("name", launchers.PLUGINS)
def test_missing_plugin(name, command, monkeypatch):
    monkeypatch.setattr(launchers, "installed", lambda module: False)
    status, out, err = command("-m", f"hydra/launcher={name}", "seed=0,1")
    assert (status, out) == (2, "")
    extra = launchers.PLUGINS[name][1]
    expected = f"error: hydra/launcher={name}: its plugin is not installed; run "
    assert err == f"{expected}pip install '.[{extra}]' in the folder of anomaly-bench\n"


def test_whether_a_plugin_is_installed():
    assert not launchers.installed("no_such_launcher")
    assert launchers.installed("anomaly_bench_sweeper")


def test_launcher_without_a_sweep(command, monkeypatch):
    monkeypatch.setattr(launchers, "installed", lambda module: True)
    status, _, err = command("hydra/launcher=joblib")
    assert status == 2
    assert err == "error: hydra/launcher=joblib: has no effect on a single run; expected -m, as in -m seed=0,1,2\n"


def test_misspelt_launcher(command):
    status, _, err = command("-m", "hydra/launcher=jobblib", "seed=0,1")
    assert (status, err) == (2, "error: hydra/launcher=jobblib: no such hydra/launcher; did you mean joblib?\n")


def test_machine_without_slurm(command, monkeypatch):
    monkeypatch.setattr(launchers, "installed", lambda module: True)
    monkeypatch.setenv("PATH", "")
    status, _, err = command("-m", "hydra/launcher=submitit_slurm", "seed=0,1")
    assert status == 2
    assert err.startswith("error: hydra/launcher=submitit_slurm: found no srun here; run it on")


@pytest.mark.parametrize("name", launchers.PLUGINS)
def test_launcher_defaults_are_valid_and_can_be_overridden(name):
    if not launchers.installed(launchers.PLUGINS[name][0]):
        pytest.skip(f"needs the extra {launchers.PLUGINS[name][1]}")
    own = {
        "joblib": "hydra.launcher.n_jobs=3",
        "ray": "hydra.launcher.ray.remote.num_cpus=3",
        "submitit_local": "hydra.launcher.cpus_per_task=3",
        "submitit_slurm": "hydra.launcher.partition=debug",
    }[name]
    words = launchers.prepare([f"hydra/launcher={name}", own, "-m"], launches=False)
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        made = compose("config", [word for word in words if word != "-m"], return_hydra_config=True)
    key, _, value = own.partition("=")
    assert str(OmegaConf.select(made, key)) == value
    defaults = OmegaConf.load(conf_folder() / "hydra" / "launcher_defaults" / f"{name}.yaml")
    assert defaults.keys() <= made.hydra.launcher.keys()


def test_unknown_launcher_is_left_to_hydra():
    assert launchers.prepare(["hydra/launcher=other", "-m"], launches=True) == ["hydra/launcher=other", "-m"]


def test_why_a_launcher_gave_up():
    assert launchers.lost(RuntimeError("a worker was killed. It may be\n this or that")) == "a worker was killed"
    assert launchers.lost(RuntimeError()) == "RuntimeError"
