"""Pooling by the law of total variance."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.norms.oracles import tensors
from wsbcn_d2.norms.pooling import pool_batch, pool_channels
from wsbcn_d2.norms.running_stats import frozen, move_running_statistics


@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 6, 1), (1, 6, 5)], ids=str)
def test_pooled_statistics_are_those_of_all_positions(shape: tuple[int, ...]) -> None:
    (x,) = tensors(0, shape)
    mean, var = x.mean(2), x.var(2, correction=0)
    assert_close(pool_batch(mean, var), (x.mean((0, 2)), x.var((0, 2), correction=0)))
    for groups in (1, 2, 3, 6):
        flat = x.reshape(shape[0], groups, -1)
        expected = flat.mean(2), flat.var(2, correction=0)
        pooled = pool_channels(mean, var, groups)
        assert_close(tuple(t.view(shape[0], groups) for t in pooled), expected)


def test_pooling_cancels_nothing_in_float32() -> None:
    # E[x^2] - mean^2 is negative in float32 at this mean and deviation.
    (x,) = tensors(1, (4, 8, 500))
    x = (100 + 0.01 * x).float()
    exact = x.double()
    mean, var = x.mean(2), x.var(2, correction=0)
    for dims, pooled in (((0, 2), pool_batch(mean, var)), ((1, 2), pool_channels(mean, var))):
        expected = exact.var(dims, correction=0)
        assert_close(pooled[1].double().flatten(), expected, rtol=1e-3, atol=0)


def test_an_empty_batch_pools_to_zeros() -> None:
    empty = torch.zeros(0, 6)
    assert_close(pool_batch(empty, empty), (torch.zeros(6), torch.zeros(6)))
    assert pool_channels(empty, empty, 2)[0].shape == (0, 2)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1, None])
@pytest.mark.parametrize(
    "count", [4, torch.tensor(4.0, dtype=torch.float64)], ids=["int", "tensor"]
)
def test_running_statistics_move_as_batch_norms(
    momentum: float | None, count: int | torch.Tensor
) -> None:
    ours, torchs = nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    for seed in range(3):
        (x,) = tensors(seed, (4, 3), dtype=torch.float32)
        move_running_statistics(ours, x.mean(0), x.var(0), count)
        torchs(x)
        assert_close(ours.state_dict(), torchs.state_dict())


@pytest.mark.parametrize(
    "count", [0, torch.tensor(0.0, dtype=torch.float64)], ids=["int", "tensor"]
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_moves_nothing(momentum: float | None, count: int | torch.Tensor) -> None:
    module = nn.BatchNorm1d(3, momentum=momentum)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    move_running_statistics(module, torch.zeros(3), torch.zeros(3), count)
    assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_frozen_means_that_no_own_parameter_is_trained() -> None:
    module = nn.BatchNorm1d(3)
    assert not frozen(module)
    module.weight.requires_grad_(False)
    assert not frozen(module)
    module.bias.requires_grad_(False)
    assert frozen(module) and not frozen(module, nn.BatchNorm1d(3))
