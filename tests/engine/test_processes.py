"""The same training on 1, 2 and 4 processes; stopping and resuming on several."""

import copy
import os
import signal

import pytest
import torch
from detectron2.utils import comm

from tests.engine.tiny_training import differing, float64, prepare, training
from wsbcn_d2.engine import Trainer, launch
from wsbcn_d2.engine.preemption import EXIT_STOPPED, TrainingStopped

BATCH = "dataloader.train.total_batch_size=4"
# However many processes share a step's images and random numbers, each micro-batch has the same
# gradient, and only the order of their sum differs: in float64 some 1e-16 of its terms, on any
# processor. A wrong image, sample, divisor or term changes many digits more.
TOLERANCE = 1e-10


def train_in_float64(folder, start=None):
    """Train; with ``start``, take each step from the weights which that run had before it.

    Returns:
        for each step, the weights before it and its gradients.
    """
    steps = []
    run_step = Trainer.run_step

    def recording(self):
        model = getattr(self.model, "module", self.model)
        step = {"weights": copy.deepcopy(model.state_dict())}
        if start is not None:
            model.load_state_dict(start[self.iter]["weights"])
        run_step(self)
        step["gradients"] = {name: p.grad.clone() for name, p in model.named_parameters()}
        steps.append(step)

    Trainer.run_step = recording
    try:
        with float64():
            training(folder, f"{comm.get_world_size()} processes", BATCH, "optimizer.lr=0.01")
    finally:
        Trainer.run_step = run_step
    return steps


def compare_steps(folder):
    """Write which weights and gradients of this rank are not those of one process."""
    one = torch.load(folder / "steps of one.pth", weights_only=True)
    several = train_in_float64(folder, start=one)
    wrong = [] if len(several) == len(one) == 6 else [f"{len(several)} steps"]
    for i, (expected, found) in enumerate(zip(one, several, strict=True)):
        for kind in expected:
            # Of all parameters: the terms of a single one may cancel.
            scale = max(tensor.abs().max() for tensor in expected[kind].values())
            for name, tensor in expected[kind].items():
                error = (found[kind][name] - tensor).abs().max() / scale
                if not (scale > 0 and error <= TOLERANCE):
                    wrong.append(f"step {i}, {kind} of {name}: {error:.1e}")
    (folder / f"wrong {comm.get_rank()} of {comm.get_world_size()}").write_text("\n".join(wrong))


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
    compare_steps(folder)
    result = stop(folder, rank=1, iteration=2)
    (folder / f"stopped{comm.get_rank()}").write_text("\n".join(result))


def on_four(folder):
    compare_steps(folder)
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
    torch.save(train_in_float64(folder), folder / "steps of one.pth")


@pytest.fixture(scope="module")
def two(folder, one):
    launch(on_two, 2, args=(folder,), device="cpu")


@pytest.fixture(scope="module")
def four(folder, one):
    launch(on_four, 4, args=(folder,), device="cpu")


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_step_does_not_depend_on_the_number_of_processes(folder, world_size, request):
    request.getfixturevalue({2: "two", 4: "four"}[world_size])
    final = folder / f"{world_size} processes" / "model_final.pth"
    hooks = torch.load(final, weights_only=True)["trainer"]["hooks"]
    assert hooks["DataPosition"]["world_size"] == world_size
    wrong = [(folder / f"wrong {rank} of {world_size}").read_text() for rank in range(world_size)]
    assert wrong == [""] * world_size


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_loses_nothing(folder, two):
    assert [(folder / f"stopped{rank}").read_text() for rank in range(2)] == ["", ""]


def test_a_resumed_run_on_four_processes_has_the_same_bits(folder, four):
    assert [(folder / f"resumed{rank}").read_text() for rank in range(4)] == [""] * 4
