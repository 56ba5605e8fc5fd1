"""Calls in a process of their own."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from anomaly_bench.hardware.apart import call_apart


def test_functions_are_called_in_turn_up_to_one_that_fails(tmp_path, capfd):
    touches = [functools.partial(Path.touch, tmp_path / name) for name in "ab"]
    lost, fails = functools.partial(print, "lost"), functools.partial(Path.rmdir, tmp_path)
    process = call_apart([lost, touches[0], fails, touches[1]])
    assert process.wait(60) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert capfd.readouterr() == ("", "")


def test_much_is_handed_over(tmp_path):
    """More than a pipe holds."""
    values = np.arange(10**6)
    assert call_apart([functools.partial(np.save, tmp_path / "values.npy", values)]).wait(60) == 0
    assert (np.load(tmp_path / "values.npy") == values).all()


def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert call_apart([]).wait(60) == 0
