"""A small kill storm; `make kills` is the large one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs signals and /proc")
def test_no_record_is_lost_or_computed_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ["--kills", "8", "--tasks", "6", "--others", "1"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), *words], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("no record lost, none twice: ")
    assert "SIGKILL 8" in last
    assert "SIGSTOP beyond the lease 1" in last
