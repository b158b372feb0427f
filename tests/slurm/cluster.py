"""A real SLURM of two nodes on this machine: Debian's packages, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["NODES", "PATIENCE", "Cluster", "missing", "wait_for"]

NODES = ("wsbcn1", "wsbcn2")
_PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "runuser")

# For machines that have much else to do: how many times the usual time everything may take.
PATIENCE = float(os.environ.get("SLURM_TESTS_PATIENCE", "1"))

# More CPUs than there are: two jobs of four processes fit side by side.
_CONFIG = """\
ClusterName=wsbcn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=20
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return (
            f"not installed: {', '.join(absent)} "
            "(apt-get install --no-install-recommends slurm-wlm munge)"
        )
    return ""


def wait_for(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Poll until ``condition`` is true. Raises TimeoutError, which says ``what`` was not."""
    until = time.monotonic() + PATIENCE * timeout
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.3)


class Cluster:
    """The cluster, between `start` and `stop`.

    Attributes:
        folder: of configuration, state and the daemons' logs.
        environment: for the processes that use it; jobs see no GPU.
    """

    def __init__(self) -> None:
        # Not pytest's folder: munge's user must enter it, and a socket's path is short.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = ""

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        self._add_hosts()
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        shutil.chown(munge, "munge", "munge")
        as_munge = ("runuser", "-u", "munge", "--")
        key = f"{munge}/key"
        subprocess.run([*as_munge, "mungekey", "--create", f"--keyfile={key}"], check=True)
        options = [f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--key-file={key}"]
        options += [f"--log-file={munge}/log", f"--seed-file={munge}/seed"]
        self._start("munged", *as_munge, "munged", "--foreground", *options)
        wait_for((munge / "socket").exists, "munged's socket")
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=4000 State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        config = _CONFIG.format(
            host=host,
            ports=ports,
            folder=self.folder,
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "state").mkdir()
        self._start("slurmctld", "slurmctld", "-D")
        for name in NODES:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, and wait until the node takes jobs."""
        (self.folder / name).mkdir(exist_ok=True)
        self._start(name, "slurmd", "-D", "-N", name)
        # Not idle for long, with jobs in the queue.
        up = ("idle", "mixed", "allocated")
        wait_for(lambda: self.node_state(name) in up, f"node {name} up")

    def kill_node(self, name: str) -> None:
        """As a power cut: no daemon, and no process of a job that it had started."""
        _kill(self._daemons.pop(name))
        self._kill_processes(name)

    def node_state(self, name: str) -> str:
        """Such as ``idle`` or ``down``; ``*`` behind it: does not answer."""
        return self.run("sinfo", "-h", "-n", name, "-o", "%T", check=False).strip()

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands; returns its output."""
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 60,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        text = self.run("scontrol", "show", "job", job_id, check=False)
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def processes(self, variable: str) -> list[int]:
        """Processes of jobs, and the daemons' helpers of steps, with a NAME=VALUE of SLURM's."""
        wanted = {variable.encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode()}
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found

    def _kill_processes(self, node: str) -> None:
        for pid in self.processes(f"SLURMD_NODENAME={node}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cancel_all(self) -> None:
        """End every job, and wait until they are gone."""
        self.run("scancel", "--state=RUNNING", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        wait_for(lambda: not self.run("squeue", "-h", check=False).strip(), "an empty queue")

    def stop(self) -> None:
        """Stop everything, and leave nothing behind."""
        if "slurmctld" in self._daemons:
            self.run("scancel", "--signal=KILL", "--user=root", check=False)
            self.run("scancel", "--user=root", check=False)
        for name in NODES:
            self._kill_processes(name)
        for process in reversed(self._daemons.values()):
            _kill(process)
        self._daemons = {}
        if self._hosts:
            Path("/etc/hosts").write_text(self._hosts)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add_hosts(self) -> None:
        """Node names must resolve: rank 0's is the address of the rendezvous."""
        hosts = Path("/etc/hosts")
        self._hosts = hosts.read_text()
        line = f"127.0.0.1 {' '.join(NODES)}"
        kept = [old for old in self._hosts.splitlines() if old != line]
        self._hosts = "\n".join(kept) + "\n"
        hosts.write_text(f"{self._hosts}{line}\n")

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    # runuser, before munged, ends when its child has.
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
