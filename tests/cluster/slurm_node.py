"""Slurm as one node on this machine: munged, slurmctld and slurmd, started and ended by process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

SETTINGS = """
ClusterName=anomalybench
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
NodeName={name} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def missing() -> str:
    """What a node needs and this machine lacks; "": nothing."""
    programs = [program for program in PROGRAMS if not shutil.which(program)]
    if programs:
        return f"needs {', '.join(programs)} (Debian's slurm-wlm and munge)"
    return "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "needs root"


@contextlib.contextmanager
def node(folder: Path) -> Iterator[None]:
    """A running cluster with the partition "debug", which Slurm's commands find by SLURM_CONF; `folder` is empty."""
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        with mock.patch.dict(os.environ, SLURM_CONF=str(folder / "slurm.conf")):
            start(folder, daemons)
            yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def start(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Write the configuration and start the three daemons as foreground child processes."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    name = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 512
    content = SETTINGS.format(name=name, folder=folder, ports=free_ports(2), cores=os.cpu_count(), memory=memory)
    (folder / "slurm.conf").write_text(content)
    munge = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge/pid"]
    munge += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed", "--foreground", "--force"]
    for words in (["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", name]):
        log = (folder / f"{words[0]}.out").open("wb")
        daemons.append(subprocess.Popen(words, stdout=log, stderr=log))
        log.close()
        if words[0] == "munged":
            await_((folder / "munge.socket").exists, folder, daemons)
    await_(lambda: "idle" in output("sinfo", "--noheader", "--format=%T"), folder, daemons)


def await_(
    condition: Callable[[], bool], folder: Path, daemons: list[subprocess.Popen[bytes]], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        gone = [str(daemon.args) for daemon in daemons if daemon.poll() is not None]
        if gone or time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in folder.glob("*.out"))
            raise RuntimeError(f"Slurm did not start ({gone or 'time is up'}):\n{logs}")
        time.sleep(0.1)


def output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout
