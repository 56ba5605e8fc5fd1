"""The speed protocol's counting; durations themselves are never asserted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from anomaly_bench.hardware import devices, timing

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by one second each time it is read."""
    monkeypatch.setattr(timing, "clock", itertools.count().__next__)


def test_at_least_five_calls_after_the_warm_up(ticking):
    calls = []
    samples = timing.in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 0, lambda done: None
    )
    assert [len(each) for each in samples.values()] == [5, 5]
    assert calls == ["a", "b"] * (timing.WARM_UP + 5), "method and backbone take turns"


def test_at_most_300_calls(monkeypatch):
    monkeypatch.setattr(timing, "clock", lambda: 0.0)
    assert len(timing.in_turn({"a": lambda: None}, CPU, 1, lambda done: None)["a"]) == 300


def test_calls_stop_when_the_time_is_up(ticking):
    # read twice in each of the first five rounds; then once more in the loop's condition, at 11, 14, ... 29, 32
    assert len(timing.in_turn({"a": lambda: None}, CPU, 30, lambda done: None)["a"]) == 5 + 7


def test_progress_ends_at_half_of_the_percents(ticking):
    for seconds in (0, 30, 10**6):
        said = []
        timing.in_turn({"a": lambda: None}, CPU, seconds, said.append)
        assert sum(said) == 50
        assert min(said) >= 0


def test_percentiles_need_enough_calls():
    samples = [float(value) for value in range(99)]
    assert timing.percentile(samples, 50) == 49
    assert timing.percentile(samples, 99) is None
    assert timing.percentile([*samples, 99.0], 99) == pytest.approx(98.01)
    assert timing.percentile(samples[:19], 95) is None
    assert timing.percentile(samples[:20], 95) is not None


def test_speed_entry(monkeypatch):
    monkeypatch.setattr(timing, "milliseconds", lambda call, device: call() or 20.0)

    def run(call, device):
        call()
        return 20.0

    monkeypatch.setattr(timing, "milliseconds", run)
    entry = timing.measure({"": len, "backbone_": len}, torch.zeros(8, 3, 4, 4), CPU, seconds=0)
    assert entry["batch_size"] == 8
    assert entry["latency_ms"] == 20
    assert entry["fps"] == pytest.approx(8 / 0.020)
    assert entry["backbone_fps"] == pytest.approx(8 / 0.020)
    assert entry["latency_p99_ms"] is None
    assert "backbone_fps" not in timing.measure({"": len}, torch.zeros(2, 3, 4, 4), CPU, seconds=0)


def test_throughput_of_single_images_is_not_timed_again(monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(timing, "milliseconds", lambda call, device: calls.append(call()) or 20.0)
    entry = timing.measure({"": len}, torch.zeros(1, 3, 4, 4), CPU, seconds=0, advance=said.append)
    assert len(calls) == timing.LEAST_CALLS
    assert (entry["latency_ms"], entry["fps"], entry["batch_size"]) == (20, pytest.approx(50), 1)
    assert sum(said) == 100


def test_peak_memory_is_reset():
    timing.reset_peaks(CPU)
    first = timing.peak_ram_mb()
    if first is None:
        pytest.skip("this system cannot reset its memory peak")
    block = np.ones(200_000_000, np.uint8)
    second = timing.peak_ram_mb()
    assert second - first > 150
    del block
    timing.reset_peaks(CPU)
    assert timing.peak_ram_mb() < second - 100


def test_stopwatch_stops():
    with timing.stopwatch(CPU) as elapsed:
        pass
    assert elapsed() == elapsed()


def test_mac_cpu_and_gpu_have_different_names():
    """With one name, their speeds would be confused."""
    assert devices.device_name("mps") == f"GPU of {devices.device_name('cpu')}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_events():
    device = torch.device("cuda")
    x = torch.rand(2000, 2000, device=device)
    assert timing.milliseconds(lambda: x @ x, device) > 0
    assert devices.device_name("cuda")
