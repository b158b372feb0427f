"""The norms that the papers compare with, by their names, against their formulas in float64."""

import pytest
import torch
from detectron2.layers import get_norm
from torch.testing import assert_close

import wsbcn_d2
from tests.norms.oracles import along, randomize, state64, tensors

# What the statistics of a (N, C, H, W) input are taken over; its channel groups' for GN.
OVER = {
    "BN": (0, 2, 3),
    "SyncBN": (0, 2, 3),
    "naiveSyncBN_N": (0, 2, 3),
    "exactSyncBN": (0, 2, 3),
    "IN": (2, 3),
    "LN": (1,),
    "LN_CHW": (1, 2, 3),
}


@pytest.fixture(autouse=True)
def registered():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


def normalized(name, x, state, eps, running=False):
    if running:
        mean, var = along(state["running_mean"], x), along(state["running_var"], x)
    else:
        mean = x.mean(OVER[name], keepdim=True)
        var = (x - mean).square().mean(OVER[name], keepdim=True)
    return (x - mean) / (var + eps).sqrt() * along(state["weight"], x) + along(state["bias"], x)


@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (2, 6, 60, 50)], ids=str)
@pytest.mark.parametrize("name", OVER)
def test_training_and_evaluation_equal_the_formula(name, shape):
    norm = get_norm(name, 6).double()
    randomize(norm, 0)
    state = state64(norm)
    x, dy = tensors(1, shape, shape)
    x = 2 + 3 * x
    leaf, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = normalized(name, leaf, state, norm.eps)
    wanted = torch.autograd.grad(expected, [leaf, state["weight"], state["bias"]], dy)
    before = {n: b.clone() for n, b in norm.named_buffers()}
    y = norm(ours)
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, [ours, norm.weight, norm.bias], dy), wanted)
    in_batch = OVER[name] == (0, 2, 3)
    if in_batch:
        moved = 0.9 * before["running_mean"] + 0.1 * x.mean((0, 2, 3))
        assert_close(norm.running_mean, moved)
        moved = 0.9 * before["running_var"] + 0.1 * x.var((0, 2, 3))  # unbiased
        assert_close(norm.running_var, moved)
    state.update((n, b.clone()) for n, b in norm.named_buffers())
    assert_close(norm.eval()(x), normalized(name, x, state, norm.eps, running=in_batch))


def test_the_two_layer_norms_are_different_norms():
    (x,) = tensors(2, (2, 6, 5, 4), dtype=torch.float32)
    at_positions, of_samples = get_norm("LN", 6)(x), get_norm("LN_CHW", 6)(x)
    assert_close(at_positions.mean(1), torch.zeros(2, 5, 4))
    assert (of_samples.mean(1).abs() > 0.1).any()
    assert_close(of_samples.mean((1, 2, 3)), torch.zeros(2))
