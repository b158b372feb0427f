"""News of a failure, for processes of several machines.

Each process (or each machine's launcher, for the processes that it started) keeps a connection
open to one of them. When a process dies, of whatever and however busy it was, its system closes
its connection; keepalive notices a system that is gone. So nobody sends signs of life, which a
long evaluation, or anything else that keeps Python busy, would hold up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch.distributed import Store

from .faults import Failure, first_cause

__all__ = ["Watch"]

logger = logging.getLogger(__name__)

_KEY = "wsbcn_d2/watch"
_LONGEST_LINE = 2**20


class Watch:
    """One member's end of it. Every member learns of the first failure of any.

    Args:
        name: this member, as it is to be called when it fails.
        open_store: returns the job's store, in which the hub leaves its address. It may wait for
            the others; it is called in a thread.
        hub: whether this is the one that the others connect to.
        hosts: names or addresses of the hub's machine. The hub's own come first.
        fault_timeout: seconds within which a failure must have ended all processes.
        on_failure: called in a thread, some moments after another member failed.

    Attributes:
        verdict: the first failure of the job, once it is known.
    """

    def __init__(
        self,
        name: str,
        open_store: Callable[[], Store],
        *,
        hub: bool,
        hosts: Sequence[str],
        fault_timeout: float,
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        self.name = name
        self.verdict: Failure | None = None
        self._open_store = open_store
        self._hub = hub
        self._hosts = list(hosts)
        self._fault_timeout = fault_timeout
        self._on_failure = on_failure
        # How long a better explanation may take, and the last words of a process that ends.
        self.patience = min(2.0, fault_timeout / 10)
        self._failures: list[Failure] = []
        self._members: dict[asyncio.StreamWriter, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()
        self._ready = threading.Event()
        self._decided = threading.Event()
        self._thread = threading.Thread(target=self._start, name="watch", daemon=True)

    def start(self, wait: bool) -> None:
        """Connect, in a thread; with ``wait``, return when that is done or failed."""
        self._thread.start()
        if wait:
            self._ready.wait()

    def report(self, failure: Failure) -> Failure:
        """Tell the others, and return what is taken for the first cause: perhaps not this."""
        if not self._call(self._consider, failure):
            return failure
        self._decided.wait(3 * self.patience)
        return self.verdict or failure

    def close(self) -> None:
        """Leave. The hub stays until the others have left, or shortly after a failure."""
        # One that is just connecting would seem to be gone.
        self._ready.wait(self.patience)
        if self._call(self._closing.set):
            self._thread.join()

    def _call(self, function: Callable[..., None], *args: Any) -> bool:
        loop = self._loop
        if loop is None:  # still waiting for the others, or could not reach them
            return False
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # it has ended
            return False
        return True

    def _start(self) -> None:
        try:
            store = self._open_store()
            asyncio.run(self._listen(store) if self._hub else self._follow(store))
        except Exception as error:
            logger.warning(
                "%s cannot be told of failures elsewhere (%s); only the collectives' time-out will",
                self.name,
                error,
            )
        finally:
            self._loop = None
            self._ready.set()

    # --- the hub ---

    async def _listen(self, store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        self._token = secrets.token_hex(16)
        server = await asyncio.start_server(self._serve, sock=_listening(), limit=_LONGEST_LINE)
        address = {
            "hosts": self._hosts,
            "port": server.sockets[0].getsockname()[1],
            "token": self._token,
            "name": self.name,
        }
        store.set(_KEY, json.dumps(address))
        self._ready.set()
        await self._closing.wait()
        while self._members and self.verdict is None:
            await asyncio.sleep(0.05)
        # Time for the verdict to arrive: a connection that is closed early may drop it.
        while self._members and self.verdict is not None:
            await asyncio.sleep(0.05)
            if self._loop.time() > self._verdict_time + self.patience:
                break
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = await asyncio.wait_for(_receive(reader), 10)
        except (OSError, ValueError, asyncio.TimeoutError):
            hello = {}
        if not secrets.compare_digest(str(hello.get("token")), self._token):
            writer.close()  # none of ours
            return
        self._keep_alive(writer)
        name = str(hello["name"])
        self._members[writer] = name
        _send(writer, {"welcome": self._token})
        if self.verdict is not None:
            _send(writer, {"failure": asdict(self.verdict)})
        message: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            while message := await _receive(reader):
                if "bye" in message:
                    break
                self._consider(Failure(**message["failure"]))
        if not message:
            self._consider(Failure.gone(name))
        del self._members[writer]
        writer.close()

    # --- the others ---

    async def _follow(self, store: Store) -> None:
        # The store's own time-out, which is also that of the processes' first meeting.
        address = json.loads(store.get(_KEY))
        reader, writer = await self._connect(address)
        self._loop = asyncio.get_running_loop()
        self._hub_writer = writer
        self._ready.set()
        news = asyncio.ensure_future(self._read(reader, str(address["name"])))
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait([news, closing], return_when=asyncio.FIRST_COMPLETED)
        if self.verdict is not None and not closing.done():
            # The process ends now, by `on_failure` or by whoever looks at the verdict.
            await closing
        _send(writer, {"bye": True})
        with suppress(OSError):
            await writer.drain()
        writer.close()

    async def _connect(
        self, address: dict[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        problems = []
        for host in dict.fromkeys([*address["hosts"], *self._hosts]):
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(host, address["port"], limit=_LONGEST_LINE), 10
                )
                self._keep_alive(writer)
                _send(writer, {"token": address["token"], "name": self.name})
                welcome = await asyncio.wait_for(_receive(reader), 10)
                if welcome.get("welcome") == address["token"]:
                    return reader, writer
                problems.append(f"{host}: another service")
                writer.close()
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                problems.append(f"{host}: {error or type(error).__name__}")
        raise ConnectionError(f"port {address['port']} of {'; '.join(problems)}")

    async def _read(self, reader: asyncio.StreamReader, hub: str) -> None:
        with suppress(OSError, ValueError):
            while message := await _receive(reader):
                self._settle(Failure(**message["failure"]))
        if self.verdict is None:
            # This process may have failed of it already; then the hub is the better explanation.
            self._settle(first_cause([*self._failures, Failure.gone(hub)]))

    # --- both ---

    def _consider(self, failure: Failure) -> None:
        """A failure of this member, or at the hub of any."""
        assert self._loop is not None
        self._failures.append(failure)
        if self._hub:
            delay = 0.0 if failure.weight == 0 else self.patience
        else:
            _send(self._hub_writer, {"failure": asdict(failure)})
            delay = 2 * self.patience  # should the hub not answer
        self._loop.call_later(delay, lambda: self._settle(first_cause(self._failures)))

    def _settle(self, failure: Failure) -> None:
        if self.verdict is not None:
            return
        assert self._loop is not None
        self.verdict = failure
        self._verdict_time = self._loop.time()
        for writer in self._members:
            _send(writer, {"failure": asdict(failure)})
        self._decided.set()
        if self._on_failure is not None and failure.who != self.name:
            self._loop.call_later(self.patience / 2, self._on_failure, failure)

    def _keep_alive(self, writer: asyncio.StreamWriter) -> None:
        """Have the system notice within half of the time-out that the other one is gone."""
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Linux; elsewhere the system's own times hold.
        for name, value in (
            ("TCP_KEEPIDLE", self._fault_timeout / 6),
            ("TCP_KEEPINTVL", self._fault_timeout / 12),
            ("TCP_KEEPCNT", 4),
            ("TCP_USER_TIMEOUT", 1000 * self._fault_timeout / 2),
        ):
            if hasattr(socket, name):
                option = getattr(socket, name)
                connection.setsockopt(socket.IPPROTO_TCP, option, max(1, int(value)))


def _listening() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # known to the library, switched off on the machine
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    # A connection that is lost is noticed by the one who reads from it.
    with suppress(OSError, RuntimeError):
        writer.write(json.dumps(message).encode() + b"\n")


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message; {} when the connection was closed."""
    line = await reader.readline()
    message = json.loads(line) if line.endswith(b"\n") else {}
    return message if isinstance(message, dict) else {}
