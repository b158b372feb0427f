"""Where the processes of a job meet: at a store of rank 0's; its port follows from the job.

Rank 0 opens the store before torch asks for it and keeps it, as torchrun's agent does; so no port
is found free and then taken by somebody else. Another job's store on the same node is recognized
by what it answers, and the next port is tried.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from datetime import timedelta

import torch.distributed as dist

__all__ = ["PORTS_TRIED", "RendezvousError", "export", "meet", "ports_of", "resolve"]

PORTS_TRIED = 10
_KEY = "wsbcn_d2/job"


class RendezvousError(RuntimeError):
    """The processes of a job cannot find each other; says which, and why."""


def ports_of(job: str) -> list[int]:
    """The ports at which a job's processes look for rank 0, in this order.

    Below 32768, where Linux begins to hand out ports to outgoing connections.
    """
    start = zlib.crc32(job.encode())
    return [10000 + (start + 1999 * i) % 20000 for i in range(PORTS_TRIED)]


def resolve(host: str, timeout: float = 30) -> str:
    """The address of a host.

    Raises:
        RendezvousError: it has none, still after ``timeout`` seconds.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            if time.monotonic() > until:
                raise RendezvousError(
                    f"{socket.gethostname()} cannot resolve the name {host!r} of the job's first "
                    f"node ({error}). The nodes' names must be in DNS or in /etc/hosts of all "
                    "nodes; or set MASTER_ADDR in the profile's env"
                ) from error
        time.sleep(1)


def meet(rank: int, host: str, job: str, attempt: str, timeout: float) -> dist.TCPStore:
    """Open (rank 0) or find (others) the store of an attempt of a job.

    Args:
        rank: of this process.
        host: of rank 0.
        job: its number decides the ports.
        attempt: told apart from other jobs and earlier attempts by this.
        timeout: seconds for finding it.

    Raises:
        RendezvousError: no port is free; or rank 0 was not found.
    """
    resolve(host)
    return _open(host, job, attempt) if rank == 0 else _find(rank, host, job, attempt, timeout)


def _open(host: str, job: str, attempt: str) -> dist.TCPStore:
    for port in ports_of(job):
        try:
            store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False)
        except (dist.DistError, RuntimeError):
            continue
        store.set(_KEY, attempt)
        return store
    ports = ", ".join(map(str, ports_of(job)))
    raise RendezvousError(f"all ports that job {job} may use on {host} are in use: {ports}")


def _find(rank: int, host: str, job: str, attempt: str, timeout: float) -> dist.TCPStore:
    until = time.monotonic() + timeout
    seen = "nothing listens there"
    while time.monotonic() < until:
        for port in ports_of(job):
            try:
                # A quick no, where TCPStore would try again until its time-out.
                socket.create_connection((host, port), timeout=2).close()
                store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
                if store.get(_KEY).decode() == attempt:
                    return store
                seen = "other jobs listen there"
            except ConnectionRefusedError:
                continue
            except (OSError, dist.DistError, RuntimeError) as error:
                seen = str(error).splitlines()[0]
        time.sleep(0.5)
    raise RendezvousError(
        f"rank {rank} on {socket.gethostname()} did not find rank 0 on {host} within {timeout:g} "
        f"seconds, on ports {ports_of(job)[0]} and following ({seen}). A firewall between the "
        "nodes? Or has rank 0 failed: see its log"
    )


def export(
    store: dist.TCPStore, host: str, rank: int, world_size: int, local_rank: int, local_size: int
) -> None:
    """Set the variables that torchrun sets, for a store that rank 0 has opened."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        LOCAL_WORLD_SIZE=str(local_size),
        MASTER_ADDR=host,
        MASTER_PORT=str(store.port),
        # The store is there: torch only connects, rank 0 too.
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
