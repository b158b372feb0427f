"""The radius of sparse SN, and the batch average."""

import copy
import random
import types

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from tests.engine.tiny_training import differing, prepare, training
from wsbcn_d2.engine import BatchAverage, SparsityRamp
from wsbcn_d2.norms import SparseSwitchNorm1d, SparseSwitchNorm2d, SwitchNorm2d


def after(hook, iteration, max_iter):
    hook.trainer = types.SimpleNamespace(iter=iteration, max_iter=max_iter)
    return hook


@pytest.mark.parametrize(("end", "full_from"), [(1.0, 9), (0.5, 4), (0.01, 1)])
def test_the_radius_grows_to_each_layers_circumradius(end, full_from):
    model = nn.Sequential(SparseSwitchNorm2d(4), nn.BatchNorm2d(4), SparseSwitchNorm1d(4))
    hook = SparsityRamp(model, end)
    radii = []
    for iteration in range(10):
        after(hook, iteration, 10).before_step()
        radii.append([float(model[0].radius), float(model[2].radius)])
    radii = torch.tensor(radii)
    assert radii[0].tolist() == [0, 0]
    assert (radii.diff(dim=0) >= 0).all()
    full = torch.tensor([(2 / 3) ** 0.5, 0.5**0.5])
    assert torch.equal((radii[:, 0] == radii[-1, 0]).nonzero()[0], torch.tensor([full_from]))
    torch.testing.assert_close(radii[-1], full)


def test_at_the_end_of_the_ramp_every_ratio_is_fixed():
    torch.manual_seed(0)
    layer = SparseSwitchNorm2d(4)
    nn.init.normal_(layer.mean_weight)
    nn.init.normal_(layer.var_weight)
    hook = SparsityRamp(layer)
    for iteration in range(4):
        after(hook, iteration, 4).before_step()
        layer(torch.randn(2, 4, 3, 3))
    assert layer.mean_fixed >= 0 and layer.var_fixed >= 0


@pytest.mark.parametrize("end", [0, 1.5])
def test_an_end_outside_the_training_is_refused(end):
    with pytest.raises(ValueError, match="end"):
        SparsityRamp(nn.Identity(), end)


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = SwitchNorm2d(3)

    def forward(self, batch):
        get_event_storage().put_scalar("loss", 100.0)
        return self.norm(batch)


def mean_of(batches):
    return torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)


def test_the_batch_average_stays_after_the_last_step_and_logs_no_loss():
    torch.manual_seed(0)
    model = WithLoss()
    batches = [torch.randn(2, 3, 4, 4) for _ in range(5)]
    hook = BatchAverage(model, 3, lambda: batches)
    with EventStorage() as storage:
        after(hook, 8, 10).after_step()
        assert torch.equal(model.norm.running_mean, torch.zeros(3))
        after(hook, 9, 10).after_step()
    assert hook.for_evaluation() is model
    torch.testing.assert_close(model.norm.running_mean, mean_of(batches[:3]))
    assert "loss" not in storage.latest()


def test_an_evaluation_before_the_last_step_has_batch_averages_and_the_training_none_of_it():
    torch.manual_seed(0)
    model = WithLoss()
    batches = [torch.randn(2, 3, 4, 4) for _ in range(5)]

    def drawing():  # a loader that uses up random numbers, as augmentations do
        for batch in batches:
            random.random(), np.random.rand(), torch.rand(1)
            yield batch

    with EventStorage() as storage:
        model(batches[4])
        before = copy.deepcopy(model.state_dict())
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        hook = after(BatchAverage(model, 3, drawing), 3, 10)
        evaluated = hook.for_evaluation()
        assert set(storage.latest()) == {"loss"}
    torch.testing.assert_close(evaluated.norm.running_mean, mean_of(batches[:3]))
    assert evaluated is not model and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_training_with_batch_averages_is_the_training_without(tmp_path):
    prepare(tmp_path)
    two = ["dataloader.train.total_batch_size=2", "train.images_per_gpu=2"]
    two += ["train.eval_period=2", "train.checkpointer.max_to_keep=9"]
    without = training(tmp_path, "without", *two, norm="SN")
    averaged = training(tmp_path, "averaged", *two, "train.batch_average_iters=2", norm="SN")
    folders = tmp_path / "without", tmp_path / "averaged"
    for name in ("model_0000001.pth", "model_0000003.pth"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert differing(one["model"], other["model"]) == []
        assert differing(one["trainer"]["optimizer"], other["trainer"]["optimizer"]) == []
    # The last checkpoint has the averages, and nothing else is another.
    changed = {name.rpartition(".")[2] for name in differing(without["model"], averaged["model"])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_model_without_sparse_layers_is_left_alone():
    with EventStorage() as storage:
        after(SparsityRamp(nn.BatchNorm2d(2)), 1, 2).before_step()
    assert not storage.latest()
