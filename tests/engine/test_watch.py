"""News of a failure between members, here threads of one process; and over a cable that is cut."""

import ctypes
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
import torch.distributed as dist

from wsbcn_d2.engine.faults import Failure
from wsbcn_d2.engine.watch import Watch

pytestmark = pytest.mark.timeout(120)

CAUSE = Failure("rank 2", "raised KeyError: 1", "Traceback …\n  KeyError: 1", 0)
CONSEQUENCE = Failure("rank 1", "raised RuntimeError: Connection closed by peer", "", 2)


def member(store, name, hub=False, on_failure=None, fault_timeout=10.0):
    watch = Watch(
        name,
        lambda: store,
        hub=hub,
        hosts=["127.0.0.1"],
        fault_timeout=fault_timeout,
        on_failure=on_failure,
    )
    watch.start(wait=True)
    return watch


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def members(store):
    """The hub, rank 0, and ranks 1 and 2."""
    watches = [member(store, f"rank {rank}", hub=rank == 0) for rank in range(3)]
    yield watches
    for watch in reversed(watches):
        watch.close()


def be_patient(watches):
    """Let the members wait for a better explanation for longer than any test runs."""
    for watch in watches:
        watch.patience = 60.0


def verdicts(watches, within=10.0):
    end = time.monotonic() + within
    while any(watch.verdict is None for watch in watches) and time.monotonic() < end:
        time.sleep(0.01)
    return [watch.verdict for watch in watches]


@pytest.mark.parametrize("reporter", [0, 2])
def test_a_failure_of_any_is_known_to_all(members, reporter):
    be_patient(members)
    begun = time.monotonic()
    assert members[reporter].report(CAUSE) == CAUSE
    assert verdicts(members) == [CAUSE] * 3
    assert time.monotonic() - begun < members[0].patience  # nobody waits after a first cause


def test_a_cause_that_comes_later_than_its_consequence_is_the_verdict(members):
    be_patient(members)
    answers = {}

    def report_consequence():
        answers[1] = members[1].report(CONSEQUENCE)

    thread = threading.Thread(target=report_consequence)
    thread.start()
    time.sleep(0.3)
    assert verdicts(members, 0) == [None] * 3  # something better may come
    members[2].report(CAUSE)
    thread.join()
    assert answers == {1: CAUSE}
    assert verdicts(members) == [CAUSE] * 3


def test_a_consequence_alone_is_the_verdict_in_the_end(members):
    assert members[1].report(CONSEQUENCE) == CONSEQUENCE
    assert verdicts(members) == [CONSEQUENCE] * 3


def test_a_member_whose_connection_ends_without_a_word_is_gone(members):
    loop, writer = members[2]._loop, members[2]._hub_writer
    loop.call_soon_threadsafe(writer.transport.abort)
    gone = Failure.gone("rank 2")
    assert verdicts(members[:2]) == [gone] * 2


def test_one_that_comes_late_learns_of_it_at_once(members, store):
    members[2].report(CAUSE)
    late = member(store, "rank 3")
    assert verdicts([late]) == [CAUSE]
    late.close()


def test_the_hub_stays_until_the_others_have_left(members):
    thread = threading.Thread(target=members[0].close)
    thread.start()
    members[1].close()
    thread.join(0.3)
    assert thread.is_alive()
    members[2].close()
    thread.join(5)
    assert not thread.is_alive()
    assert verdicts(members, 0) == [None] * 3


def test_those_told_of_a_failure_act_on_it_and_the_one_that_failed_does_not(store):
    told = []
    watches = [
        member(store, f"rank {rank}", hub=rank == 0, on_failure=lambda f, r=rank: told.append(r))
        for rank in range(3)
    ]
    watches[2].report(CAUSE)
    end = time.monotonic() + 30
    while len(told) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(watches[2].patience)  # the third would have acted by now
    assert sorted(told) == [0, 1]
    for watch in reversed(watches):
        watch.close()


def test_strangers_are_turned_away(members, store):
    address = json.loads(store.get("wsbcn_d2/watch"))
    for line in (b"\n", b"GET / HTTP/1.1\n", b'{"token": "guess", "name": "x"}\n', b"5\n"):
        with socket.create_connection(("127.0.0.1", address["port"])) as stranger:
            stranger.sendall(line)
            stranger.settimeout(5)
            assert stranger.recv(100) == b""
    assert verdicts(members, 0) == [None] * 3
    members[1].report(CAUSE)
    assert verdicts(members) == [CAUSE] * 3


def test_a_hub_that_cannot_be_reached_is_a_warning_and_no_failure(store, caplog, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = {"hosts": ["127.0.0.1"], "port": port, "token": "x", "name": "rank 0"}
    store.set("wsbcn_d2/watch", json.dumps(address))
    warnings = []
    monkeypatch.setattr(
        "wsbcn_d2.engine.watch.logger.warning", lambda m, *args: warnings.append(m % args)
    )
    watch = member(store, "rank 1")
    assert len(warnings) == 1 and f"port {port} of 127.0.0.1" in warnings[0]
    assert watch.report(CAUSE) == CAUSE
    watch.close()
    assert watch.verdict is None


def _in_namespace(name, folder, address, hub):
    """A member on a machine of its own, which writes what it learns."""
    with open(f"/run/netns/{name}") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0x40000000) == 0
    watch = Watch(
        name,
        lambda: dist.FileStore(f"{folder}/store", 2),
        hub=hub,
        hosts=[address],
        fault_timeout=20.0,
    )
    watch.start(wait=True)
    with open(f"{folder}/{name}.ready", "w"):
        pass
    while watch.verdict is None:
        time.sleep(0.05)
    with open(f"{folder}/{name}", "w") as file:
        file.write(f"{time.time()} {watch.verdict.who} {watch.verdict.what}")
    os._exit(0)


@pytest.fixture
def cable():
    """Two network namespaces, and a cable between them that the fixture's value can cut."""
    names = [f"wsbcn{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments, check=True):
        return subprocess.run(["ip", *arguments], capture_output=True, check=check)

    if (
        not shutil.which("ip")
        or os.geteuid()
        or ip("netns", "add", names[0], check=False).returncode
    ):
        pytest.skip("needs root and network namespaces")
    try:
        ip("netns", "add", names[1])
        ends = [f"v{name[5:]}" for name in names]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.99.7.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
        yield names, lambda: ip("-n", names[1], "link", "set", ends[1], "down")
    finally:
        for name in names:
            ip("netns", "delete", name, check=False)


@pytest.mark.slow
def test_a_machine_that_is_cut_off_is_noticed_in_half_of_the_timeout(cable, tmp_path):
    names, cut = cable
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_in_namespace, args=(name, tmp_path, "10.99.7.1", name == names[0]))
        for name in names
    ]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + 60
        while not all((tmp_path / f"{name}.ready").exists() for name in names):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(15)  # longer than half of the time-out: silence is no failure
        assert not any((tmp_path / name).exists() for name in names)
        cut()
        begun = time.time()
        for process in processes:
            process.join(60)
        for name, other in (names, names[::-1]):
            moment, who, what = (tmp_path / name).read_text().split(" ", 2)
            assert who == other and "gone without a word" in what
            assert float(moment) - begun < 15, (name, float(moment) - begun)
    finally:
        for process in processes:
            process.kill()
