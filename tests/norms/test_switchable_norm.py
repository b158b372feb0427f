"""SN against the paper's formulas, and the differences from the released code."""

from __future__ import annotations

import warnings
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.norms.oracles import (
    pooled_positions,
    randomize,
    sn_statistics,
    state64,
    switch_norm,
    tensors,
)
from wsbcn_d2.norms import (
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
    SyncSwitchNorm3d,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")
ORDER = ("in", "ln", "bn")
SUBSETS = list(chain.from_iterable(combinations(ORDER, k) for k in (1, 2, 3)))
PLAIN = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}
SYNC = {2: SyncSwitchNorm1d, 3: SyncSwitchNorm1d, 4: SyncSwitchNorm2d, 5: SyncSwitchNorm3d}
SHAPES = [(5, 6, 7), (1, 6, 5, 3), (3, 6, 7, 2), (2, 6, 2, 3, 2), (3, 6, 1, 1), (4, 6)]


def check(norm: nn.Module, x: Tensor, dy: Tensor, **options: Any) -> None:
    """Output, all gradients and running statistics of one forward against the oracle."""
    state, leaf = state64(norm), x.detach().double().requires_grad_()
    bn = None
    if not norm.training and "bn" in norm.statistics:
        bn = state["running_mean"], state["running_var"]
    expected = switch_norm(leaf, state, norm.statistics, norm.eps, norm.unbiased, bn, **options)
    names = [n for n, _ in norm.named_parameters()]
    leaves = [leaf, *(state[n] for n in names)]
    expected_grads = torch.autograd.grad(expected, leaves, dy.double(), materialize_grads=True)

    ours = x.detach().clone().requires_grad_()
    y = norm(ours)
    y.backward(dy)
    close = (
        {"rtol": 1e-8, "atol": 1e-9} if x.dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    )
    assert_close(y.double(), expected, **close)
    grads = [ours.grad, *(p.grad for p in norm.parameters())]
    for name, grad, wanted in zip(["x", *names], grads, expected_grads, strict=True):
        assert grad is not None, name
        assert_close(grad.double(), wanted, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("statistics", SUBSETS, ids="+".join)
@pytest.mark.parametrize("num_groups", [1, 3])
def test_every_choice_of_statistics_equals_the_formula(
    statistics: tuple[str, ...], shape: tuple[int, ...], training: bool, num_groups: int
) -> None:
    if len(shape) == 2 and "in" in statistics:
        pytest.skip("(N, C) has no instance statistics")
    x, dy = tensors(0, shape, shape)
    for layers in (PLAIN, SYNC):
        norm = layers[len(shape)](6, eps=1e-3, statistics=statistics, num_groups=num_groups)
        randomize(norm.double(), 1)
        norm.train(training)
        old = {n: b.clone() for n, b in norm.named_buffers()}
        check(norm, 2 + 3 * x, dy)
        if "bn" not in statistics:
            assert not old and norm.running_mean is None
            continue
        mean, var = pooled_positions([2 + 3 * x])
        rate = 0.1 if training else 0.0
        assert_close(norm.running_mean, (1 - rate) * old["running_mean"] + rate * mean)
        assert_close(norm.running_var, (1 - rate) * old["running_var"] + rate * var)
        assert norm.num_batches_tracked == int(training)


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 6, 7, 2), (2, 6, 2, 3, 2)], ids=str)
def test_float32_equals_the_formula(shape: tuple[int, ...]) -> None:
    x, dy = tensors(2, shape, shape, dtype=torch.float32)
    norm = PLAIN[len(shape)](6, statistics=ORDER)
    randomize(norm, 3)
    check(norm, x, dy)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 6, 7, 2), (2, 6, 2, 3, 2), (4, 6)], ids=str)
def test_unbiased_equals_the_released_formula(shape: tuple[int, ...], training: bool) -> None:
    """Design trap 3: IN with divisor L - 1, LN and BN pooled from it; 1d with N - 1 and C - 1."""
    x, dy = tensors(4, shape, shape)
    statistics = ORDER if len(shape) > 2 else ("ln", "bn")
    for layers in (PLAIN, SYNC):
        norm = layers[len(shape)](6, statistics=statistics, unbiased=True).double()
        randomize(norm, 5)
        norm.train(training)
        old = norm.running_var.clone()
        check(norm, x, dy)
        if training:
            released = sn_statistics(x, unbiased=True)["bn"][1].flatten()
            assert_close(norm.running_var, 0.9 * old + 0.1 * released)
    assert "unbiased=True" in repr(norm)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (SwitchNorm2d, (2, 6, 1, 1)),
        (SwitchNorm1d, (1, 6)),
        (SwitchNorm1d, (1, 1)),
        (SwitchNorm2d, (1, 6, 1, 1)),
    ],
)
def test_one_position_does_not_poison_the_running_variance(
    layer: type[nn.Module], shape: tuple[int, ...], unbiased: bool
) -> None:
    """Design trap 3: the released divisor L - 1 gives NaN on 1x1 maps and at N = 1 in 1d."""
    norm = layer(shape[1], unbiased=unbiased)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6), requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(norm.running_var).all() and torch.isfinite(norm.running_mean).all()
    assert torch.isfinite(x.grad).all() and all(
        torch.isfinite(p.grad).all() for p in norm.parameters()
    )


def test_variances_are_right_at_mean_100_and_deviation_a_hundredth() -> None:
    """Design trap 3: E[x^2] - mean^2 is negative there in float32."""
    (x,) = tensors(7, (4, 6, 32, 32))
    x = (100 + 0.01 * x).float()
    second = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
    assert (second < 0).any()  # the trap is real
    norm = SwitchNorm2d(6, momentum=1.0, eps=1e-9)
    y = norm(x)
    truth = x.double().var((0, 2, 3), correction=0)
    assert_close(norm.running_var.double(), truth, rtol=1e-3, atol=0)
    expected = switch_norm(x.double(), state64(norm), ORDER, 1e-9)
    assert_close(y.double(), expected.detach(), rtol=0, atol=5e-3)


def test_one_statistic_each_equals_torchs_norms() -> None:
    x, dy = tensors(8, (3, 6, 5, 4), (3, 6, 5, 4))
    pairs = [
        ("in", nn.InstanceNorm2d(6, affine=True)),
        ("ln", nn.GroupNorm(1, 6)),
        ("bn", nn.BatchNorm2d(6)),
    ]
    for name, torchs in pairs:
        norm = SwitchNorm2d(6, statistics=name).double()
        ours = norm(x.requires_grad_())
        theirs = torchs.double()(x)
        assert_close(ours, theirs)
        assert_close(torch.autograd.grad(ours, x, dy), torch.autograd.grad(theirs, x, dy))


def test_initial_ratios_are_uniform_and_running_statistics_start_at_zero_and_one() -> None:
    """Design trap 3: the released running_var starts at 0."""
    norm = SwitchNorm2d(6, num_groups=2)
    for ratio in norm.ratios():
        assert_close(ratio, torch.full((2, 3), 1 / 3))
    assert_close(norm.running_mean, torch.zeros(6))
    assert_close(norm.running_var, torch.ones(6))
    norm(torch.randn(4, 6, 3, 3))
    randomize(norm, 9)
    norm.reset_parameters()
    assert_close(norm.state_dict(), SwitchNorm2d(6, num_groups=2).state_dict())


@pytest.mark.parametrize("statistics", SUBSETS, ids="+".join)
@pytest.mark.parametrize("num_groups", [1, 3])
def test_state_dict_keys_are_the_published_ones(
    statistics: tuple[str, ...], num_groups: int
) -> None:
    k = len(statistics)
    control = (k,) if num_groups == 1 else (num_groups, k)
    expected = {"weight": (6,), "bias": (6,), "mean_weight": control, "var_weight": control}
    if "bn" in statistics:
        expected |= {"running_mean": (6,), "running_var": (6,), "num_batches_tracked": ()}
    norm = SwitchNorm2d(6, statistics=statistics, num_groups=num_groups)
    assert {n: tuple(t.shape) for n, t in norm.state_dict().items()} == expected
    other = SyncSwitchNorm2d(6, statistics=statistics, num_groups=num_groups)
    other.load_state_dict(norm.state_dict())  # SyncSN and SN exchange weights


def test_weights_without_a_batch_counter_load() -> None:
    state = SwitchNorm2d(6).state_dict()
    state = {k: v for k, v in state.items() if k != "num_batches_tracked"}
    SwitchNorm2d(6).load_state_dict(state)


def test_the_order_of_the_arguments_statistics_does_not_matter() -> None:
    (x,) = tensors(10, (3, 6, 4, 4), dtype=torch.float32)
    one, two = SwitchNorm2d(6, statistics=("in", "bn")), SwitchNorm2d(6, statistics=["bn", "in"])
    with torch.no_grad():
        for norm in (one, two):
            norm.mean_weight.copy_(torch.tensor([3.0, -1.0]))
    assert one.statistics == two.statistics == ("in", "bn")
    assert_close(one(x), two(x))


def test_a_group_follows_its_own_ratios() -> None:
    norm = SwitchNorm2d(6, num_groups=2, statistics=("in", "ln")).double()
    with torch.no_grad():
        for control in (norm.mean_weight, norm.var_weight):
            control.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    (x,) = tensors(11, (3, 6, 4, 4))
    expected_in = nn.InstanceNorm2d(6).double()(x)
    expected_ln = nn.GroupNorm(1, 6).double()(x)  # ungrouped: over all six channels
    assert_close(norm(x), torch.cat([expected_in[:, :3], expected_ln[:, 3:]], 1))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_momentum_is_torchs(momentum: float | None) -> None:
    """Design trap 3: the released momentum is the share kept; variance here is biased."""
    norm, torchs = SwitchNorm2d(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    for seed in range(3):
        (x,) = tensors(seed, (3, 6, 5, 4), dtype=torch.float32)
        norm(x), torchs(x)
    assert_close(norm.running_mean, torchs.running_mean)
    kept = {0.1: 0.9**3, 0.0: 1.0, 1.0: 0.0, None: 0.0}[momentum]
    biased = kept + (torchs.running_var - kept) * (59 / 60)
    assert_close(norm.running_var, biased)
    assert norm.num_batches_tracked == 3


def test_training_with_batch_statistics_on_one_image_warns_loudly() -> None:
    """Design trap 4."""
    x = torch.randn(1, 6, 4, 4)
    for layer in (SwitchNorm2d, SyncSwitchNorm2d):
        with pytest.warns(UserWarning, match=r"SyncSN.*SN_IN_LN"):
            layer(6)(x)
    quiet = [
        (SwitchNorm2d(6), torch.randn(2, 6, 4, 4)),
        (SwitchNorm2d(6, statistics=("in", "ln")), x),
        (SwitchNorm2d(6).eval(), x),
        (SwitchNorm2d(6).requires_grad_(False), x),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm, batch in quiet:
            norm(batch)


def test_batch_statistics_of_one_image_test_badly_and_in_ln_does_not() -> None:
    """Design trap 4: the reason for the warning."""
    (x,) = tensors(12, (1, 6, 16, 16), dtype=torch.float32)
    x = 5 + 3 * x
    gaps = {}
    for statistics in (("in", "ln", "bn"), ("in", "ln")):
        norm = SwitchNorm2d(6, statistics=statistics)
        trained = norm(x)
        gaps[statistics] = float((trained - norm.eval()(x)).detach().abs().max())
    assert gaps["in", "ln"] == 0 and gaps["in", "ln", "bn"] > 1


@pytest.mark.parametrize("statistics", [(), ("in", "gn"), ("bn", "bn"), "bm"], ids=str)
def test_a_bad_choice_of_statistics_is_refused(statistics: Any) -> None:
    with pytest.raises(ValueError, match=r"non-empty choice of \('in', 'ln', 'bn'\)"):
        SwitchNorm2d(6, statistics=statistics)


@pytest.mark.parametrize("num_groups", [4, 0, -1, 7])
def test_a_group_count_that_does_not_divide_is_refused(num_groups: int) -> None:
    with pytest.raises(ValueError, match=rf"num_groups \({num_groups}\).*\(6\).*\[1, 2, 3, 6\]"):
        SwitchNorm2d(6, num_groups=num_groups)


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
def test_each_class_takes_its_own_dimensions(dims: int) -> None:
    x = torch.randn((2, 6, 3, 3, 3)[:dims])
    for other in (2, 3, 4, 5):
        norm = PLAIN[other](6)
        if PLAIN[other] is PLAIN[dims]:
            assert norm(x).shape == x.shape
        else:
            with pytest.raises(ValueError, match=rf"expects .*, got {dims}D"):
                norm(x)


def test_instance_statistics_of_vectors_are_refused() -> None:
    assert SwitchNorm1d(6).statistics == ("ln", "bn")
    with pytest.raises(ValueError, match=r"'in' statistic does not exist"):
        SwitchNorm1d(6, statistics=ORDER)(torch.randn(2, 6))
