"""A Slurm of one node on loopback: controller, node and keys in a folder of its own, from Debian's packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue")


def missing() -> str:
    """What the machine lacks to start it; empty if nothing."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if lacking:
        return f"needs {', '.join(lacking)}: make system-deps"
    return "" if os.geteuid() == 0 else "needs to be root, to start slurmd"


class Slurm:
    """Daemons that are up from `start` to `stop`; `env` leads Slurm's commands to them."""

    def __init__(self, folder: Path, cores: int = 2) -> None:
        self.folder, self.processes = folder, []
        host = socket.gethostname().split(".")[0]
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)
        controller, node = free_port(), free_port()
        (folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=30
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
""",
            encoding="utf-8",
        )
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.host = host

    def start(self) -> None:
        """Start all, and wait until the node takes jobs. Raises `RuntimeError` with the logs where it does not."""
        munge = [
            f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("socket", "log-file", "pid-file", "seed-file")
        ]
        self._daemon("munged", "--foreground", "--force", f"--key-file={self.folder}/key", *munge)
        wait(lambda: (self.folder / "munge.socket").exists(), "munged", self.logs)
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", self.host)
        wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t"), "Slurm", self.logs)

    def ask(self, *words: str) -> str:
        """The output of one of Slurm's commands."""
        return subprocess.run(words, env=os.environ | self.env, capture_output=True, text=True, check=False).stdout

    def logs(self) -> str:
        """What the daemons have said."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.out"))

    def stop(self) -> None:
        """End the daemons, and what they have started."""
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def _daemon(self, name: str, *flags: str) -> None:
        out = (self.folder / f"{name}.out").open("wb")
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        self.processes.append(subprocess.Popen([path, *flags], env=os.environ | self.env, stdout=out, stderr=out))


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(is_so, what: str, logs=lambda: "", seconds: float = 60) -> None:
    """Wait until something is so. Raises `RuntimeError` where it takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds} s\n{logs()}")
        time.sleep(0.1)
