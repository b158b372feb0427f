"""WN and CWN against their formulas in float64, torch's WN, and weight standardization."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from tests.norms.oracles import standardized, tensors
from wsbcn_d2.norms import WNConv1d, WNConv2d, WNConv3d, normalize_weight

MODES = ["wn", "cwn"]


def formula(weight: Tensor, length: Tensor, mode: str) -> Tensor:
    filters = []
    for f, g in zip(weight, length, strict=True):
        v = f - f.sum() / f.numel() if mode == "cwn" else f
        filters.append(g * v / v.square().sum().sqrt())
    return torch.stack(filters)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (2, 7, 3), (5, 4, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_weight_and_gradients_equal_the_formula(
    shape: tuple[int, ...], mode: str, dtype: torch.dtype
) -> None:
    lengths = (shape[0], *(1,) * (len(shape) - 1))
    weight, length, grad = tensors(0, shape, lengths, shape)
    exact = [t.to(dtype).double().requires_grad_() for t in (1 + weight, length)]
    expected = formula(*exact, mode)
    wanted = torch.autograd.grad(expected, exact, grad)
    leaves = [t.detach().to(dtype).requires_grad_() for t in exact]
    ours = normalize_weight(*leaves, centered=mode == "cwn")
    found = torch.autograd.grad(ours, leaves, grad.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert ours.dtype == dtype
    for mine, theirs in zip((ours, *found), (expected, *wanted), strict=True):
        assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert gradcheck(lambda *t: normalize_weight(*t, centered=mode == "cwn"), leaves)


def test_wn_is_torchs() -> None:
    conv = WNConv2d(4, 6, 3, groups=2).double()
    theirs = nn.Conv2d(4, 6, 3, groups=2).double()
    theirs.load_state_dict({k: conv.state_dict()[k] for k in ("weight", "bias")})
    theirs = weight_norm(theirs)
    x, dy = tensors(1, (2, 4, 5, 5), (2, 6, 3, 3))
    conv(x).backward(dy)
    theirs(x).backward(dy)
    originals = theirs.parametrizations.weight
    assert_close(conv(x), theirs(x))
    assert_close(conv.weight_g.grad, originals.original0.grad)
    assert_close(conv.weight.grad, originals.original1.grad)


def test_cwn_with_fixed_lengths_is_weight_standardization() -> None:
    (weight,) = tensors(2, (4, 3, 3, 3))
    length = torch.full((4, 1, 1, 1), 26.0**0.5).double()
    assert_close(normalize_weight(weight, length, centered=True), standardized(weight, eps=0.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layer", "plain"), [(WNConv1d, nn.Conv1d), (WNConv2d, nn.Conv2d), (WNConv3d, nn.Conv3d)]
)
def test_weights_without_lengths_are_loaded_with_their_own(
    layer: Any, plain: Any, mode: str
) -> None:
    conv = layer(4, 6, 3, padding=1, eps_mode=mode).double()
    source = plain(4, 6, 3, padding=1).double()
    assert conv.load_state_dict(source.state_dict()).missing_keys == []
    weight = source.weight.detach()
    if mode == "cwn":
        weight = weight - weight.flatten(1).mean(1).view_as(conv.weight_g)
    assert_close(conv.standardized_weight(), weight)
    with torch.no_grad():
        conv.weight_g.mul_(2)
    again = layer(4, 6, 3, padding=1, eps_mode=mode).double()
    again.load_state_dict(conv.state_dict())
    (x,) = tensors(3, (2, 4, *(5,) * (conv.weight.dim() - 2)))
    assert_close(again(x), conv(x), rtol=0, atol=0)
    assert_close(copy.deepcopy(conv)(x), conv(x), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_filters_without_a_direction_are_zero_with_a_finite_gradient(mode: str) -> None:
    conv = WNConv2d(3, 2, 3, eps_mode=mode)
    with torch.no_grad():
        conv.weight[0] = 0.0 if mode == "wn" else 3.0
    weight = conv.standardized_weight()
    weight.square().sum().backward()
    assert_close(weight[0], torch.zeros_like(weight[0]))
    assert torch.isfinite(conv.weight.grad).all() and torch.isfinite(conv.weight_g.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_normalized_in_float32(dtype: torch.dtype) -> None:
    conv = WNConv2d(8, 4, 3, eps_mode="cwn", bias=False)
    with torch.autocast("cpu", dtype):
        assert conv.standardized_weight().dtype == torch.float32
        assert conv(torch.ones(1, 8, 5, 5)).dtype == dtype
    expected = formula(conv.weight.double(), conv.weight_g.double(), "cwn")
    narrow = conv.to(dtype).standardized_weight()
    assert narrow.dtype == dtype
    assert_close(narrow.double(), expected, rtol=2e-2, atol=1e-3)


def test_unknown_modes_and_filters_of_one_weight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'outside'.*'wn', 'cwn'"):
        WNConv2d(2, 3, 3, eps_mode="outside")
    with pytest.raises(ValueError, match="at least 2 weights per filter"):
        WNConv2d(6, 6, 1, groups=6)
