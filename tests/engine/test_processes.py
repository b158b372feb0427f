"""The same training on 1, 2 and 4 processes; stopping and resuming on several."""

import os
import signal

import pytest
import torch
from detectron2.utils import comm

from tests.engine.tiny_training import differing, prepare, training
from wsbcn_d2.engine import Trainer, launch
from wsbcn_d2.engine.preemption import EXIT_STOPPED, TrainingStopped

BATCH = "dataloader.train.total_batch_size=4"
STEPS = ["train.max_iter=20", "train.checkpointer.period=100", "optimizer.lr=0.01"]


def train_twenty_steps(folder):
    return training(folder, f"{comm.get_world_size()} processes", BATCH, *STEPS)


def stop(folder, rank, iteration):
    """Train with one rank signalled in an iteration; then resume."""
    run_step = Trainer.run_step

    def signalling(self):
        if self.iter == iteration and comm.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGUSR2)
        run_step(self)

    Trainer.run_step = signalling
    try:
        training(folder, "stopped", BATCH, norm="BN")
    except TrainingStopped as stopped:
        assert stopped.code == EXIT_STOPPED == 75
        assert stopped.iteration == iteration
        assert stopped.checkpoint == str(folder / "stopped" / f"model_{iteration:07d}.pth")
        assert torch.load(stopped.checkpoint, weights_only=True)["iteration"] == iteration
    else:
        raise AssertionError("the training was not stopped")
    finally:
        Trainer.run_step = run_step
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    resumed = training(folder, "stopped", BATCH, norm="BN", resume=True)
    return differing(training(folder, "whole", BATCH, norm="BN"), resumed)


def on_two(folder):
    train_twenty_steps(folder)
    result = stop(folder, rank=1, iteration=2)
    (folder / f"stopped{comm.get_rank()}").write_text("\n".join(result))


def on_four(folder):
    train_twenty_steps(folder)
    # One micro-batch on each: what the order of three additions may change, it would.
    whole = training(folder, "whole of 4", BATCH, norm="BCN")
    if comm.is_main_process():
        (folder / "part of 4").mkdir()
        name = "model_0000003.pth"
        os.link(folder / "whole of 4" / name, folder / "part of 4" / name)
        (folder / "part of 4" / "last_checkpoint").write_text(name)
    comm.synchronize()
    part = training(folder, "part of 4", BATCH, norm="BCN", resume=True)
    (folder / f"resumed{comm.get_rank()}").write_text("\n".join(differing(whole, part)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return train_twenty_steps(folder)


@pytest.fixture(scope="module")
def two(folder):
    launch(on_two, 2, args=(folder,), device="cpu")


@pytest.fixture(scope="module")
def four(folder):
    launch(on_four, 4, args=(folder,), device="cpu")


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_weights_do_not_depend_on_the_number_of_processes(folder, one, world_size, request):
    request.getfixturevalue({2: "two", 4: "four"}[world_size])
    file = folder / f"{world_size} processes" / "model_final.pth"
    several = torch.load(file, weights_only=True)
    start = training(folder, "start", BATCH, "train.max_iter=1", "optimizer.lr=0.0")
    assert several["trainer"]["hooks"]["Progress"]["world_size"] == world_size
    for name, weight in one["model"].items():
        moved = (weight - start["model"][name]).abs().max()
        error = (weight - several["model"][name]).abs().max()
        assert error <= 1e-6 + 1e-3 * moved, name


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_loses_nothing(folder, two):
    assert [(folder / f"stopped{rank}").read_text() for rank in range(2)] == ["", ""]


def test_a_resumed_run_on_four_processes_has_the_same_bits(folder, four):
    assert [(folder / f"resumed{rank}").read_text() for rank in range(4)] == [""] * 4
