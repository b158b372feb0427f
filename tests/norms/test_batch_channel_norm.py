"""BCN against the paper's algorithm 1 and against BatchNorm followed by GroupNorm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import batch_channel_norm, pooled_positions, randomize, state64, tensors
from wsbcn_d2.norms import BatchChannelNorm1d, BatchChannelNorm2d, BatchChannelNorm3d

LAYERS = {
    2: BatchChannelNorm1d,
    3: BatchChannelNorm1d,
    4: BatchChannelNorm2d,
    5: BatchChannelNorm3d,
}
SHAPES = [(4, 6), (5, 6, 7), (1, 6, 5, 3), (3, 6, 7, 2), (2, 6, 2, 3, 2), (3, 6, 1, 1)]


def expected_statistics(
    x: Tensor, state: dict[str, Tensor], mode: str, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inner mean and variance in use, then the running ones after a training forward."""
    old_mean, old_var = state["bn.running_mean"], state["bn.running_var"]
    mean, var = pooled_positions([x])
    if mode == "estimate":
        with torch.no_grad():
            flat = x.transpose(0, 1).reshape(x.shape[1], -1)
            about = ((flat - old_mean[:, None]) ** 2).mean(1)
            new_mean = (1 - rate) * old_mean + rate * mean
            new_var = (1 - rate) * old_var + rate * about
        return new_mean, new_var, new_mean, new_var
    count = x.numel() // x.shape[1]
    unbiased = var * count / (count - 1)
    return mean, var, (1 - rate) * old_mean + rate * mean, (1 - rate) * old_var + rate * unbiased


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["estimate", "batch", "sync"])
def test_training_and_evaluation_equal_the_formula(
    mode: str, shape: tuple[int, ...], num_groups: int, dtype: torch.dtype
) -> None:
    if num_groups == 6 and torch.Size(shape[2:]).numel() == 1:
        pytest.skip("a group of one number has no variance")
    rate, eps = 0.3, 1e-3
    x, dy = tensors(0, shape, shape, dtype=dtype)
    norm = LAYERS[len(shape)](6, num_groups, eps, rate, mode).to(dtype)
    randomize(norm, 1)
    close = {"rtol": 1e-8, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 1e-3}
    for training in (True, False):
        norm.train(training)
        norm.zero_grad()
        state, leaf = state64(norm), x.clone().double().requires_grad_()
        if training:
            mean, var, running_mean, running_var = expected_statistics(leaf, state, mode, rate)
        else:
            mean, var = running_mean, running_var = (
                state["bn.running_mean"],
                state["bn.running_var"],
            )
        expected = batch_channel_norm(leaf, state, num_groups, mean, var, eps)
        names = [n for n, _ in norm.named_parameters()]
        wanted = torch.autograd.grad(expected, [leaf, *(state[n] for n in names)], dy.double())
        ours = x.clone().requires_grad_()
        y = norm(ours)
        y.backward(dy)
        assert_close(y.double(), expected, **close)
        for name, grad, truth in zip(
            ["x", *names], [ours.grad, *(p.grad for p in norm.parameters())], wanted, strict=True
        ):
            assert_close(grad.double(), truth, **close, msg=lambda m, name=name: f"{name}: {m}")
        assert_close(norm.bn.running_mean.double(), running_mean.detach(), **close)
        assert_close(norm.bn.running_var.double(), running_var.detach(), **close)
    assert norm.bn.num_batches_tracked == 1


@pytest.mark.parametrize("mode", ["batch", "sync"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_mode_is_batch_norm_then_group_norm(mode: str, momentum: float | None) -> None:
    """Affine per group (design trap 16): GroupNorm with each pair repeated over its channels."""
    norm = BatchChannelNorm2d(6, 2, momentum=momentum, statistics=mode).double()
    first, second = nn.BatchNorm2d(6, momentum=momentum).double(), nn.GroupNorm(2, 6).double()
    randomize(norm, 2)
    with torch.no_grad():
        first.load_state_dict(norm.bn.state_dict())
        second.weight.copy_(norm.weight.repeat_interleave(3))
        second.bias.copy_(norm.bias.repeat_interleave(3))
    for seed in range(3):
        x, dy = tensors(seed, (3, 6, 5, 4), (3, 6, 5, 4))
        ours, theirs = norm(x.requires_grad_()), second(first(x))
        assert_close(ours, theirs)
        assert_close(torch.autograd.grad(ours, x, dy), torch.autograd.grad(theirs, x, dy))
    assert_close(norm.bn.state_dict(), first.state_dict())
    assert_close(norm.eval()(x), second(first.eval()(x)))


def test_estimates_move() -> None:
    """Design trap 1: the released update rate stays at 0."""
    norm = BatchChannelNorm2d(6, 2)
    (x,) = tensors(3, (1, 6, 64, 64), dtype=torch.float32)
    for _ in range(200):
        norm(5 + 3 * x)
    mean, var = pooled_positions([5 + 3 * x])
    assert_close(norm.bn.running_mean, mean, rtol=1e-4, atol=1e-4)
    assert_close(norm.bn.running_var, var, rtol=1e-3, atol=1e-3)


def test_estimates_are_moved_before_their_use() -> None:
    norm = BatchChannelNorm2d(6, 2, momentum=1.0).double()
    (x,) = tensors(4, (2, 6, 5, 4))
    y = norm(5 + x)
    norm.momentum = 0.0
    assert_close(norm(5 + x), y)
    assert_close(norm.eval()(5 + x), y)


def test_no_gradient_flows_through_estimates() -> None:
    # At rate 1 the inner statistics are the batch's; with its gradient they would be BatchNorm's.
    x, dy = tensors(5, (2, 6, 5, 4), (2, 6, 5, 4))
    grads = {}
    for mode in ("estimate", "batch"):
        norm = BatchChannelNorm2d(6, 2, momentum=1.0, statistics=mode).double()
        leaf = x.clone().requires_grad_()
        norm(leaf).backward(dy)
        grads[mode] = leaf.grad
    assert (grads["estimate"] - grads["batch"]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["estimate", "batch", "sync"])
def test_state_dict_keys_are_the_published_ones(mode: str) -> None:
    assert {
        n: tuple(t.shape) for n, t in BatchChannelNorm2d(6, 2, statistics=mode).state_dict().items()
    } == {
        "weight": (2,),
        "bias": (2,),
        "bn.weight": (6,),
        "bn.bias": (6,),
        "bn.running_mean": (6,),
        "bn.running_var": (6,),
        "bn.num_batches_tracked": (),
    }


def test_eps_is_the_channel_norms() -> None:
    (x,) = tensors(6, (2, 6, 5, 4))
    x = x * 1e-3  # variance 1e-6: the inner 1e-5 weighs as much
    norm = BatchChannelNorm2d(6, 2, eps=0.5, momentum=1.0, statistics="batch").double()
    mean, var = pooled_positions([x])
    assert_close(norm(x), batch_channel_norm(x, state64(norm), 2, mean, var, 0.5))


@pytest.mark.parametrize("mode", ["estimate", "batch"])
@pytest.mark.parametrize("shape", [(2, 6, 1, 5), (2, 6, 3, 1), (1, 6, 1, 1)], ids=str)
def test_any_map_size_and_layout_works(mode: str, shape: tuple[int, ...]) -> None:
    """Design trap 16: the released layer fails on channels_last and on anything but 4D."""
    (x,) = tensors(7, shape, dtype=torch.float32)
    plain, other = (BatchChannelNorm2d(6, 2, statistics=mode) for _ in range(2))
    assert_close(other(x.contiguous(memory_format=torch.channels_last)), plain(x))


@pytest.mark.parametrize("mode", ["estimate", "batch", "sync"])
def test_an_empty_batch_leaves_the_estimates_alone(mode: str) -> None:
    """Design trap 16: the released estimates become NaN."""
    norm = BatchChannelNorm2d(6, 2, statistics=mode)
    randomize(norm, 8)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    for shape in ((0, 6, 5, 5), (2, 6, 0, 5)):
        norm(torch.zeros(shape)).sum().backward()
    assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_rows_of_a_batch_keep_their_own_group_statistics() -> None:
    norm = BatchChannelNorm2d(6, 2, momentum=0.0).double()
    (x,) = tensors(9, (4, 6, 5, 4))
    assert_close(norm(x)[2:3], norm(x[2:3]))


@pytest.mark.parametrize("num_groups", [4, 0, -2, 32])
def test_a_group_count_that_does_not_divide_is_refused(num_groups: int) -> None:
    """Design trap 16: the released layer then splits channels."""
    with pytest.raises(ValueError, match=rf"num_groups \({num_groups}\).*\(6\).*\[1, 2, 3, 6\]"):
        BatchChannelNorm2d(6, num_groups)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"statistics": "running"}, r"'running'.*'estimate', 'batch', 'sync'"),
        ({"momentum": None}, r"momentum must be a number with statistics='estimate'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchChannelNorm2d(6, 2, **options)


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
def test_each_class_takes_its_own_dimensions(dims: int) -> None:
    x = torch.randn((2, 6, 3, 3, 3)[:dims])
    for other in (2, 3, 4, 5):
        norm = LAYERS[other](6, 2)
        if LAYERS[other] is LAYERS[dims]:
            assert norm(x).shape == x.shape
        else:
            with pytest.raises(ValueError, match=rf"expects .*, got {dims}D"):
                norm(x)


def test_defaults_are_the_documented_ones() -> None:
    norm = BatchChannelNorm2d(64)
    assert (norm.num_groups, norm.eps, norm.momentum, norm.statistics) == (
        32,
        1e-5,
        0.1,
        "estimate",
    )
    assert norm.weight.shape == (32,) and norm.bn.eps == 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_shared_layer_recomputes_with_the_estimates_of_each_call(
    reentrant: bool, together: bool
) -> None:
    """Design trap 12: on five levels, in one checkpoint or in five, the estimates have moved on."""
    levels = tensors(31, *[(2, 4, 9 - n, 8 + n) for n in range(4)], (2, 4, 9, 8))
    head = nn.Sequential(BatchChannelNorm2d(4, 2, momentum=0.5), nn.Tanh(), nn.Conv2d(4, 2, 1))
    head = head.double()
    randomize(head, 8)
    other = copy.deepcopy(head)

    def all_levels(*xs: Tensor) -> Tensor:
        return sum(head(x).square().sum() for x in xs)  # type: ignore[return-value]

    def again(*xs: Tensor) -> Tensor:
        return checkpoint(all_levels, *xs, use_reentrant=reentrant)

    inputs = [x.clone().requires_grad_() for x in levels]
    (again(*inputs) if together else sum(again(x) for x in inputs)).backward()
    expected = [x.clone().requires_grad_() for x in levels]
    sum(other(x).square().sum() for x in expected).backward()
    assert_close([x.grad for x in inputs], [x.grad for x in expected])
    for (name, parameter), plain in zip(head.named_parameters(), other.parameters(), strict=True):
        assert_close(parameter.grad, plain.grad, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(dict(head.named_buffers()), dict(other.named_buffers()))


def test_a_recomputation_that_matches_no_forward_raises() -> None:
    """Design trap 21: looked up by nearness, it would take the estimates of another forward."""
    norm = BatchChannelNorm2d(4, 2, momentum=0.5)
    (x,) = tensors(32, (2, 4, 5, 4), dtype=torch.float32)
    noise = iter((0.0, 1e-6))

    def unrepeatable(t: Tensor) -> Tensor:
        y: Tensor = norm(t + next(noise))
        return y

    y = checkpoint(unrepeatable, x.requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="whose input is that of none of the layer's last 1"):
        y.sum().backward()


def test_a_recomputation_that_matches_two_forwards_raises() -> None:
    norm = BatchChannelNorm2d(4, 2, momentum=0.5)
    (x,) = tensors(33, (2, 4, 5, 4), dtype=torch.float32)
    ys = [checkpoint(norm, x.requires_grad_(), use_reentrant=False) for _ in range(2)]
    with pytest.raises(RuntimeError, match="several forwards of the layer on the same input"):
        ys[0].sum().backward()
