"""A run that is killed and resumed is, bit for bit, the run that was never interrupted."""

import logging
import multiprocessing
import os
import shutil
import signal
import traceback

import pytest
import torch

from tests.engine.tiny_training import differing, prepare, training
from wsbcn_d2.config.batch import BatchPlan
from wsbcn_d2.engine import Trainer
from wsbcn_d2.engine.resume import DataPosition

# Norm, overrides, and where the run is killed: in which iteration, after how many micro-batches.
RUNS = {
    "accumulated": (
        "BN",
        ["dataloader.train.total_batch_size=2", "train.correct_momentum=True"],
        (3, 1),
    ),
    "averaged_bfloat16_clipped_two_workers": (
        "BCN",
        [
            "dataloader.train.total_batch_size=4",
            "train.images_per_gpu=2",
            "dataloader.train.num_workers=2",
            "train.ema.enabled=True",
            "train.amp.enabled=True",
            "train.clip_grad.enabled=True",
        ],
        (4, 0),
    ),
    "before_the_first_checkpoint": (
        "SN_IN_LN",
        ["dataloader.train.total_batch_size=1", "train.max_iter=3"],
        (1, 0),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder)
    return folder


def kill_all(folder):
    """Start each of the runs in a process that kills itself."""
    for name, (norm, overrides, (iteration, micro_batches)) in RUNS.items():
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            continue
        calls = []
        backward = Trainer.backward

        def killing(self, loss, calls=calls, at=(iteration, micro_batches), backward=backward):
            calls.append(self.iter)
            if self.iter == at[0] and calls.count(self.iter) > at[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            backward(self, loss)

        Trainer.backward = killing
        try:
            training(folder, f"killed_{name}", *overrides, norm=norm)
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # it should not have come here


@pytest.fixture(scope="module")
def killed(folder):
    # A new process, as one that has computed gradients on a GPU machine cannot fork any more.
    process = multiprocessing.get_context("spawn").Process(target=kill_all, args=(folder,))
    process.start()
    process.join(200)
    assert process.exitcode == 0


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(folder, killed, name):
    norm, overrides, (iteration, _) = RUNS[name]
    output = folder / f"killed_{name}"
    assert not (output / "model_final.pth").exists()
    assert (output / "last_checkpoint").exists() == (iteration >= 2)
    whole = training(folder, name, *overrides, norm=norm)
    resumed = training(folder, output.name, *overrides, norm=norm, resume=True)
    assert differing(whole, resumed) == []
    # Everything is compared, and something was trained between the checkpoints.
    assert ("ema" in whole) == ("train.ema.enabled=True" in overrides)
    assert all("momentum_buffer" in s for s in whole["trainer"]["optimizer"]["state"].values())
    earlier = torch.load(min((folder / name).glob("model_0*.pth")), weights_only=True)
    assert len(differing(earlier["model"], whole["model"])) > 50


def keep(folder, run, iteration, output):
    """A copy of ``run`` as it was when it had just saved ``iteration``."""
    name = f"model_{iteration:07d}.pth"
    (folder / output).mkdir()
    shutil.copy(folder / run / name, folder / output / name)
    (folder / output / "last_checkpoint").write_text(name)


@pytest.fixture(scope="module")
def drawn(folder):
    """A run whose seed was drawn."""
    return training(folder, "drawn", "dataloader.train.total_batch_size=2", "train.seed=-1")


@pytest.mark.parametrize("name", ["DataPosition", "Progress"])  # the second in version 0.1.0
def test_a_seed_that_was_drawn_is_kept(folder, drawn, name):
    keep(folder, "drawn", 3, name)
    path = folder / name / "model_0000003.pth"
    state = torch.load(path, weights_only=True)
    hooks = state["trainer"]["hooks"]
    hooks[name] = hooks.pop("DataPosition")
    torch.save(state, path)
    again = training(
        folder, name, "dataloader.train.total_batch_size=2", "train.seed=-1", resume=True
    )
    assert differing(drawn, again) == []
    assert drawn["trainer"]["hooks"]["DataPosition"]["seed"] >= 0


def test_an_older_checkpoint_loads_and_says_what_it_lacks(folder, drawn, caplog):
    keep(folder, "drawn", 3, "old")
    path = folder / "old" / "model_0000003.pth"
    state = torch.load(path, weights_only=True)
    del state["trainer"]["hooks"]
    torch.save(state, path)
    caplog.set_level(logging.WARNING)
    resumed = training(
        folder, "old", "dataloader.train.total_batch_size=2", "train.seed=-1", resume=True
    )
    assert "does not say how far its run was in the data: taking 4 steps of 2" in caplog.text
    assert resumed["trainer"]["hooks"]["DataPosition"]["position"] == 12
    assert len(differing(drawn["model"], resumed["model"])) > 50


def test_another_total_batch_goes_on_from_the_same_image(folder, drawn, caplog):
    keep(folder, "drawn", 3, "other batch")
    caplog.set_level(logging.WARNING)
    resumed = training(
        folder, "other batch", "dataloader.train.total_batch_size=3", "train.seed=-1", resume=True
    )
    assert "2 images a step and goes on with 3, from the same image (position 8)" in caplog.text
    assert resumed["trainer"]["hooks"]["DataPosition"]["position"] == 8 + 2 * 3


def test_without_exact_resume_detectron2s_loader_is_used(folder):
    state = training(
        folder, "inexact", "dataloader.train.total_batch_size=2", "train.exact_resume=False",
        "train.max_iter=2",
    )  # fmt: skip
    assert state["iteration"] == 1


SAVED = {
    "seed": 5, "position": 32, "total_batch_size": 8, "images_per_gpu": 2, "world_size": 4,
    "num_samples": 10,
}  # fmt: skip


def resume(caplog, plan, seed=5, saved=SAVED):
    progress = DataPosition(plan)
    progress.load_state_dict(saved)
    caplog.clear()
    progress.begin(seed, 4)
    return progress


def test_an_unchanged_run_resumes_without_a_warning(caplog):
    progress = resume(caplog, BatchPlan(8, 2, 4), seed=-1)
    progress.check_dataset(10)
    assert (progress.seed, progress.position, caplog.text) == (5, 32, "")
    progress.after_step()
    assert progress.state_dict() == {**SAVED, "position": 40}


@pytest.mark.parametrize(
    ("plan", "seed", "message"),
    [
        (BatchPlan(8, 2, 2), 5, "began on 4 process(es) and goes on on 2: the same images"),
        (BatchPlan(8, 1, 4), 5, "began with 2 image(s) a micro-batch and goes on with 1"),
        (BatchPlan(16, 2, 4), 5, "began with 8 images a step and goes on with 16"),
        (BatchPlan(8, 2, 4), 6, "began with seed 5 and goes on with 6"),
    ],
)
def test_what_is_no_longer_exact_is_said(caplog, plan, seed, message):
    progress = resume(caplog, plan, seed)
    assert message in caplog.text and len(caplog.records) == 1
    assert progress.position == 32 and progress.seed == seed


def test_another_dataset_is_noticed(caplog):
    resume(caplog, BatchPlan(8, 2, 4)).check_dataset(11)
    assert "had 10 images when the run began, and now has 11" in caplog.text
