"""What each process of a job does: submitit unpickles this on the nodes."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from submitit.helpers import TorchDistributedEnvironment

from wsbcn_d2.engine.launch import end_process, is_consequence
from wsbcn_d2.engine.preemption import EXIT_STOPPED

from .run_folder import RunFolder

__all__ = ["TrainingTask", "meet"]


@dataclass
class TrainingTask:
    """One process of a script such as train_net.py, with torchrun's variables in its environment.

    job.sh starts the processes of a job, and requeues it when the script has stopped on a signal
    (`EXIT_STOPPED`). A process that fails notes its error in the run's events.

    Args:
        script: path of the script.
        arguments: of the script. ``--resume`` is added when the job is restarted.
        working_directory: where relative paths begin.
        rendezvous_timeout: seconds within which the processes must have met.
    """

    script: str
    arguments: list[str]
    working_directory: str = "."
    rendezvous_timeout: float = 300

    def __call__(self) -> None:
        os.chdir(self.working_directory)
        # submitit's handler would requeue the job, which job.sh does.
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        attempt = Path(os.environ["WSBCN_ATTEMPT"])
        job, _, restart = attempt.name.removeprefix("attempt_").rpartition(".")
        error, status = "", 0
        try:
            # Rank 0 holds the store: it must live as long as the processes talk to each other.
            store = meet(attempt, self.rendezvous_timeout)
            self._run_script(resume=restart != "0")
            del store
        except SystemExit as end:
            if end.code == EXIT_STOPPED:
                # Status 0: srun kills the other processes when the first one ends with another.
                (attempt / "stopped").touch()
            elif end.code not in (None, 0):
                error, status = str(end.code), 1
                print(error, file=sys.stderr)
        except Exception as failure:
            traceback.print_exc()
            status = 1
            if not is_consequence(failure):
                error = f"{type(failure).__name__}: {failure}"
        if error:
            rank, node = int(os.environ["SLURM_PROCID"]), socket.gethostname()
            words = {"rank": rank, "node": node, "error": error.strip().splitlines()[0]}
            # In a job of an array, the run's folder is behind a link.
            RunFolder(attempt.resolve().parents[1]).note("failed", job, int(restart), **words)
        end_process(status)

    def _run_script(self, resume: bool) -> None:
        """As ``python script arguments``."""
        more = ["--resume"] if resume and "--resume" not in self.arguments else []
        sys.argv = [self.script, *more, *self.arguments]
        sys.path.insert(0, str(Path(self.script).parent))
        runpy.run_path(self.script, run_name="__main__")


def meet(folder: Path, timeout: float) -> dist.TCPStore | None:
    """Find rank 0's store through a file in a shared folder, and set torchrun's variables for it.

    Rank 0 binds a port of the system's choice and keeps it, as torchrun's agent does: no port is
    found free and then taken by somebody else.

    Args:
        folder: of this start of the job, shared by the nodes.
        timeout: seconds to wait for rank 0.

    Returns:
        on rank 0 the store, which must outlive the process group.

    Raises:
        SystemExit: rank 0 was not found, or the name of its node has no address.
    """
    environment = TorchDistributedEnvironment()
    file = folder / "address"
    store = None
    if environment.rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        host = os.environ.get("MASTER_ADDR", environment.master_addr)
        written = file.with_suffix(".written")
        written.write_text(f"{host} {store.port}")
        written.replace(file)
    until = time.monotonic() + timeout
    while True:
        try:
            host, port = file.read_text().split()
            socket.getaddrinfo(host, port)
            break
        except OSError as error:
            if time.monotonic() > until:
                who = f"rank {environment.rank} on {socket.gethostname()}"
                sys.exit(
                    f"{who} cannot resolve the name of rank 0's node, {host!r} ({error}). The "
                    "nodes' names must be in DNS or in /etc/hosts of all nodes; or set MASTER_ADDR "
                    "in the profile's env"
                    if isinstance(error, socket.gaierror)
                    else f"{who} did not find rank 0 within {timeout:g} seconds ({error}). Has "
                    "rank 0 failed (see its log)? Do the nodes share the output folder?"
                )
        time.sleep(0.5)
    environment.master_addr, environment.master_port = host, int(port)
    environment.export(set_cuda_visible_devices=False, overwrite=True)
    # The store is there: torch only connects to it, on rank 0 too.
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    return store
