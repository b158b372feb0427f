"""BRN against its formula in float64, and against BatchNorm at its limits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.norms.oracles import along, pooled_positions, randomize, state64, tensors
from wsbcn_d2.norms import BatchRenorm2d


@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (2, 6, 60, 50)], ids=str)
@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.1, 0.1), (1e6, 1e6)], ids=str)
def test_training_and_evaluation_equal_the_formula(
    limits: tuple[float, float], shape: tuple[int, ...]
) -> None:
    norm = BatchRenorm2d(6, 1e-3, 0.3, *limits).double()
    randomize(norm, 0)
    x, dy = tensors(1, shape, shape)
    leaf, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    state = state64(norm) | {n: b.clone() for n, b in norm.named_buffers()}
    mean, var = pooled_positions([leaf])
    std, running_std = (var + 1e-3).sqrt(), (state["running_var"] + 1e-3).sqrt()
    r = (std / running_std).clamp(1 / limits[0], limits[0]).detach()
    d = ((mean - state["running_mean"]) / running_std).clamp(-limits[1], limits[1]).detach()
    hat = (leaf - along(mean, x)) / along(std, x) * along(r, x) + along(d, x)
    expected = hat * along(state["weight"], x) + along(state["bias"], x)
    names = [n for n, _ in norm.named_parameters()]
    wanted = torch.autograd.grad(expected, [leaf, *(state[n] for n in names)], dy)
    y = norm(ours)
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, [ours, *norm.parameters()], dy), wanted)
    assert_close(norm.running_mean, torch.lerp(state["running_mean"], mean.detach(), 0.3))
    assert_close(norm.running_var, torch.lerp(state["running_var"], var.detach(), 0.3))
    if limits[0] == 1e6:  # nothing was clipped: evaluation with the old statistics is the same
        norm.running_mean.copy_(state["running_mean"])
        norm.running_var.copy_(state["running_var"])
        assert_close(norm.eval()(x), y)


def test_without_corrections_it_is_batch_norm() -> None:
    ours, torchs = BatchRenorm2d(6, r_max=1, d_max=0).double(), nn.BatchNorm2d(6).double()
    x, dy = tensors(2, (3, 6, 5, 4), (3, 6, 5, 4))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    results = [norm(leaf) for norm, leaf in zip((ours, torchs), leaves, strict=True)]
    assert_close(results[0], results[1])
    grads = [torch.autograd.grad(y, leaf, dy) for y, leaf in zip(results, leaves, strict=True)]
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize("limits", [{"r_max": 0.5}, {"d_max": -1.0}], ids=str)
def test_limits_that_leave_nothing_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        BatchRenorm2d(6, **limits)
