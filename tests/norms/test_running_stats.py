"""The paper's batch average: running statistics averaged plainly."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.norms.oracles import pooled_positions, randomize, tensors
from wsbcn_d2.norms import (
    BatchChannelNorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncSwitchNorm2d,
    update_batch_average,
)


def batches(count: int) -> list[Tensor]:
    """Batches of different size: the average is plain all the same."""
    return [2 + tensors(k, (2 + k % 3, 4, 5, 3 + k), dtype=torch.float32)[0] for k in range(count)]


def plain_average(data: list[Tensor], unbiased: bool = False) -> tuple[Tensor, Tensor]:
    moments = [pooled_positions([b.double()]) for b in data]
    counts = [b.numel() / b.shape[1] for b in data]
    variances = [
        v * (n / (n - 1) if unbiased else 1) for (_, v), n in zip(moments, counts, strict=True)
    ]
    mean = torch.stack([m for m, _ in moments]).mean(0)
    return mean, torch.stack(variances).mean(0)


LAYERS = {
    "sn": (lambda: SwitchNorm2d(4), False),
    "sync_sn": (lambda: SyncSwitchNorm2d(4, momentum=0.3), False),
    "ssn": (lambda: SparseSwitchNorm2d(4, radius=0.3), False),
    "bcn_batch": (lambda: BatchChannelNorm2d(4, 2, statistics="batch"), True),
    "bcn_sync": (lambda: BatchChannelNorm2d(4, 2, statistics="sync"), True),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", LAYERS)
def test_it_averages_the_means_and_the_variances(family: str, training: bool) -> None:
    make, unbiased = LAYERS[family]
    norm = make()
    randomize(norm, 0)
    norm.train(training)
    momentum, parameters = norm.momentum, copy.deepcopy(list(norm.parameters()))
    data = batches(5)
    update_batch_average(norm, iter(data + batches(1)), 5)
    holder = norm.bn if family.startswith("bcn") else norm
    mean, var = plain_average(data, unbiased)
    assert_close(holder.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    assert_close(holder.running_var.double(), var, rtol=1e-5, atol=1e-5)
    assert norm.training == training and norm.momentum == momentum
    assert_close(list(norm.parameters()), parameters, rtol=0, atol=0)
    assert all(p.grad is None for p in norm.parameters())
    if training:  # and the moving average goes on from there, at its own rate
        norm(data[0])
        new = pooled_positions([data[0].double()])[0]
        assert_close(
            holder.running_mean.double(),
            (1 - momentum) * mean + momentum * new,
            rtol=1e-5,
            atol=1e-5,
        )


def mixed_model() -> nn.Sequential:
    frozen = SwitchNorm2d(4).requires_grad_(False)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        frozen,
        BatchChannelNorm2d(4, 2),
        SwitchNorm2d(4),
        SwitchNorm2d(4, statistics=("in", "ln")),
    )
    randomize(model, 1)
    model[1].eval()
    return model


def test_everything_else_stays() -> None:
    model = mixed_model()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    update_batch_average(model, batches(3), 3)
    after = model.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved == {"4.running_mean", "4.running_var", "4.num_batches_tracked"}
    assert [m.training for m in model.modules()] == modes


def test_a_frozen_layer_keeps_its_statistics() -> None:
    # It trains on evaluation statistics: the batches would move nothing, and a reset would stay.
    for norm in (SwitchNorm2d(4), BatchChannelNorm2d(4, 2, statistics="batch")):
        randomize(norm, 2)
        norm.requires_grad_(False)
        before = copy.deepcopy(norm.state_dict())
        update_batch_average(norm, batches(2), 2)
        assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_ratios_are_not_fixed_on_the_way() -> None:
    norm = SparseSwitchNorm2d(4, radius=0.8165)
    update_batch_average(norm, batches(2), 2)
    assert norm.mean_fixed == norm.var_fixed == -1
    assert_close(norm.running_mean.double(), plain_average(batches(2))[0], rtol=1e-5, atol=1e-5)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = SwitchNorm2d(4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.norm(x)
        if self.calls == 2:
            raise RuntimeError("a bad batch")
        return y


def test_a_failure_brings_the_old_statistics_back() -> None:
    model = Failing().eval()
    randomize(model, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="a bad batch"):
        update_batch_average(model, batches(3), 3)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.training and not model.norm.training and model.norm.momentum == 0.1


def test_too_few_batches_are_refused_and_change_nothing() -> None:
    model = mixed_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"yielded 2 batches, fewer than num_iters \(3\)"):
        update_batch_average(model, batches(2), 3)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("num_iters", [0, -1])
def test_num_iters_below_one_is_refused(num_iters: int) -> None:
    with pytest.raises(ValueError, match=rf"num_iters \({num_iters}\) must be at least 1"):
        update_batch_average(SwitchNorm2d(4), batches(1), num_iters)


def test_no_more_batches_are_drawn_than_asked_for() -> None:
    drawn = []

    def loader() -> Iterator[Tensor]:
        for batch in batches(5):
            drawn.append(1)
            yield batch

    update_batch_average(SwitchNorm2d(4), loader(), 2)
    assert len(drawn) == 2
    update_batch_average(nn.BatchNorm2d(4), loader(), 2)  # nothing to average
    assert len(drawn) == 2
