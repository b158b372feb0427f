"""Signals that stop a training, and those that a launcher hands on."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest

from wsbcn_d2.engine.preemption import EXIT_STOPPED, StopOnSignal, TrainingStopped, forward_signals


def started(save, max_iter=10):
    hook = StopOnSignal([signal.SIGUSR2], save)
    hook.trainer = types.SimpleNamespace(iter=4, max_iter=max_iter)
    hook.before_train()
    return hook


def test_without_a_signal_nothing_is_saved():
    hook = started(lambda: pytest.fail("saved"))
    hook.after_step()
    hook.after_train()


def test_a_signal_saves_and_stops_with_the_status_that_asks_for_another_try():
    before = signal.getsignal(signal.SIGUSR2)
    hook = started(lambda: "out/model_4.pth")
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(TrainingStopped) as stopped:
            hook.after_step()
    finally:
        hook.after_train()
    assert stopped.value.code == EXIT_STOPPED == os.EX_TEMPFAIL
    assert (stopped.value.iteration, stopped.value.checkpoint) == (4, "out/model_4.pth")
    assert signal.getsignal(signal.SIGUSR2) == before


def test_after_the_last_step_the_training_ends_as_usual():
    hook = started(lambda: pytest.fail("saved"), max_iter=5)
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        hook.after_step()
    finally:
        hook.after_train()


def test_a_launcher_hands_signals_on_and_stays():
    code = (
        "import multiprocessing, signal, time\n"
        "from wsbcn_d2.engine.preemption import forward_signals\n"
        "def child():\n"
        "    signal.signal(signal.SIGUSR2, lambda *_: exit(75))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "process = multiprocessing.get_context('fork').Process(target=child)\n"
        "with forward_signals([signal.SIGUSR2]):\n"
        "    process.start()\n"
        "    process.join()\n"
        "print('child:', process.exitcode)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "ready\n"
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.communicate(timeout=60)[0] == "child: 75\n"
    assert launcher.returncode == 0


def test_signals_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGUSR2)
    with forward_signals([signal.SIGUSR2]):
        os.kill(os.getpid(), signal.SIGUSR2)  # no children: nothing happens
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGUSR2) == before
