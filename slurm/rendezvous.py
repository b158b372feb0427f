"""Where the processes of a job meet: at a store that rank 0 holds.

Rank 0 opens the store before torch asks for it and keeps it, as torchrun's agent does; so no port
is found free and then taken by somebody else. Where it is, rank 0 tells those who ask at one of a
few ports that follow from the job's number: the first that is free. Whatever else listens there,
such as another job on the same node, is told apart by its answer.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import zlib
from datetime import timedelta

import torch.distributed as dist

__all__ = ["PORTS_TRIED", "RendezvousError", "export", "meet", "ports_of", "resolve"]

PORTS_TRIED = 10
_GREETING = "wsbcn_d2-rendezvous"


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
        attempt: told apart from other jobs and earlier attempts by this word.
        timeout: seconds for finding it.

    Raises:
        RendezvousError: no port is free; or rank 0 was not found.
    """
    resolve(host)
    if rank > 0:
        port = _find(rank, host, job, attempt, timeout)
        return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
    # A port of the system's choice.
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    listener = _listen(host, job)
    answer = f"{_GREETING} {attempt} {store.port}\n".encode()
    threading.Thread(target=_answer, args=(listener, answer), daemon=True).start()
    return store


def _listen(host: str, job: str) -> socket.socket:
    for port in ports_of(job):
        try:
            return socket.create_server(("", port))
        except OSError:
            continue
    ports = ", ".join(map(str, ports_of(job)))
    raise RendezvousError(f"all ports that job {job} may use on {host} are in use: {ports}")


def _answer(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
        except OSError:  # who asked has gone
            time.sleep(0.1)


def _find(rank: int, host: str, job: str, attempt: str, timeout: float) -> int:
    """The port of the attempt's store."""
    until = time.monotonic() + timeout
    seen = "nothing listens there"
    while time.monotonic() < until:
        for port in ports_of(job):
            try:
                with socket.create_connection((host, port), timeout=2) as connection:
                    words = connection.makefile().readline().split()
            except ConnectionRefusedError:
                continue
            except (OSError, ValueError) as error:
                seen = f"port {port}: {error}"
                continue
            if words[:2] == [_GREETING, attempt]:
                return int(words[2])
            seen = f"something else listens on port {port}"
        time.sleep(0.5)
    raise RendezvousError(
        f"rank {rank} on {socket.gethostname()} did not find rank 0 on {host} within {timeout:g} "
        f"seconds, on port {ports_of(job)[0]} and the following ({seen}). A firewall between the "
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
