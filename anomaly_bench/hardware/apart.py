"""Work in a process of its own, which shares neither Python's lock nor memory with this one."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

CODE = "import pickle, sys; packed = sys.stdin.buffer.read(); [call() for call in pickle.loads(packed)]"


def call_apart(calls: Sequence[Callable[[], Any]]) -> subprocess.Popen[bytes]:
    """Begin to call functions in turn in a new process, up to one that fails; what they return or print is lost.

    Args:
        calls: are pickled, so that their module must be importable there.

    Raises:
        OSError: no process can be started. Those of pickle.
    """
    packed = pickle.dumps(list(calls))
    command = [sys.executable, "-P", "-c", CODE]  # -P: nothing is imported from the current folder
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
    threading.Thread(target=process.communicate, args=(packed,), daemon=True).start()
    return process
