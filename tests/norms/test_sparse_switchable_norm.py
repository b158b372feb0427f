"""SSN: sparse ratios that become fixed, and what evaluation then skips."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.norms.oracles import randomize, state64, switch_norm, tensors
from wsbcn_d2.norms import (
    SparseSwitchNorm1d,
    SparseSwitchNorm2d,
    SparseSwitchNorm3d,
    SwitchNorm2d,
    sparsestmax,
)

ORDER = ("in", "ln", "bn")
BOTH = {"in": 0, "ln": 1, "bn": 2}


def picking(mean: str, var: str) -> SparseSwitchNorm2d:
    """A layer whose ratios are one-hot, after the training forward that fixed them."""
    norm = SparseSwitchNorm2d(6)
    randomize(norm, 0)
    with torch.no_grad():
        norm.mean_weight.zero_()[BOTH[mean]] = 1.5
        norm.var_weight.zero_()[BOTH[var]] = 1.5
    norm(*tensors(0, (3, 6, 5, 4), dtype=torch.float32))
    return norm


def project(radius: float) -> Callable[[Tensor], Tensor]:
    return lambda z: sparsestmax(z, radius)


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (SparseSwitchNorm1d, (4, 6, 5)),
        (SparseSwitchNorm2d, (3, 6, 5, 4)),
        (SparseSwitchNorm3d, (2, 6, 3, 2, 4)),
    ],
)
def test_it_is_sn_with_sparse_ratios(
    layer: type[SparseSwitchNorm2d], shape: tuple[int, ...], num_groups: int, radius: float
) -> None:
    norm = layer(6, statistics=ORDER, num_groups=num_groups, radius=radius).double()
    randomize(norm, 1)
    with torch.no_grad():
        controls = tensors(2, norm.mean_weight.shape, norm.var_weight.shape)
        norm.mean_weight.copy_(0.2 * controls[0])
        norm.var_weight.copy_(0.2 * controls[1])
    x, dy = tensors(3, shape, shape)
    state, leaf = state64(norm), x.clone().requires_grad_()
    stored = float(norm.radius)
    expected = switch_norm(leaf, state, ORDER, ratios=project(stored))
    leaves = [leaf, *(state[n] for n, _ in norm.named_parameters())]
    wanted = torch.autograd.grad(expected, leaves, dy)
    ours = x.clone().requires_grad_()
    y = norm(ours)
    y.backward(dy)
    assert_close(y, expected)
    assert_close([ours.grad, *(p.grad for p in norm.parameters())], list(wanted))
    assert (norm.mean_fixed == -1).all()


def test_at_full_radius_all_ratios_are_fixed_by_one_training_forward() -> None:
    for statistics, radius in ((ORDER, 0.8165), (("in", "bn"), 0.70711)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            norm = SparseSwitchNorm2d(6, statistics=statistics, radius=radius).to(dtype)
            with torch.no_grad():
                norm.mean_weight[-1] += 0.1
            assert norm.mean_fixed == norm.var_fixed == -1
            norm(torch.randn(2, 6, 4, 4, dtype=dtype))
            assert norm.mean_fixed == len(statistics) - 1 and norm.var_fixed == 0
            assert all(r.sum() == 1 and r.max() == 1 for r in norm.ratios())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_ratio_that_only_rounds_to_one_is_not_fixed(dtype: torch.dtype) -> None:
    norm = SparseSwitchNorm2d(6).to(dtype)
    with torch.no_grad():
        # differences of 0.9995 leave 0.0003 to the others; float16 stores it
        norm.mean_weight.copy_(
            torch.tensor([0.99951171875 if dtype == torch.float16 else 0.99609375, 0.0, 0.0])
        )
    exact = sparsestmax(norm.mean_weight.double(), 0.0)
    assert exact.max() < 1
    norm(torch.randn(2, 6, 4, 4, dtype=dtype))
    assert norm.mean_fixed == -1


def test_fixed_ratios_stay_when_controls_and_radius_change() -> None:
    """Design trap 18: a flag in the state dict, parameters intact, zero gradient."""
    norm = picking("ln", "bn")
    before = copy.deepcopy(dict(norm.named_parameters()))
    norm(*tensors(4, (3, 6, 5, 4), dtype=torch.float32)).square().sum().backward()
    for name in ("mean_weight", "var_weight"):
        assert_close(getattr(norm, name).grad, torch.zeros(3))
        assert_close(getattr(norm, name), before[name], rtol=0, atol=0)
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0
    with torch.no_grad():
        norm.mean_weight.copy_(torch.tensor([9.0, 0.0, 0.0]))
    norm.set_radius(0.0)
    norm(*tensors(5, (3, 6, 5, 4), dtype=torch.float32))
    assert_close(norm.ratios()[0], torch.tensor([0.0, 1.0, 0.0]))
    other = SparseSwitchNorm2d(6)
    other.load_state_dict(norm.state_dict())
    assert other.mean_fixed == 1 and other.var_fixed == 2 and other.radius == norm.radius
    assert_close(other.ratios(), norm.ratios())
    other.reset_parameters()
    assert other.mean_fixed == other.var_fixed == -1


def test_only_the_one_hot_ratio_is_fixed_and_the_other_learns() -> None:
    norm = SparseSwitchNorm2d(6, num_groups=2)
    with torch.no_grad():
        norm.mean_weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.2, 0.0]]))
        norm.var_weight.copy_(torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.0, 5.0]]))
    norm(*tensors(6, (3, 6, 5, 4), dtype=torch.float32)).square().sum().backward()
    assert norm.mean_fixed.tolist() == [0, -1] and norm.var_fixed.tolist() == [-1, 2]
    for grad, fixed in (
        (norm.mean_weight.grad, norm.mean_fixed),
        (norm.var_weight.grad, norm.var_fixed),
    ):
        assert ((grad.abs().sum(1) == 0) == (fixed >= 0)).all()


@pytest.mark.parametrize("mode", ["eval", "frozen"])
def test_only_training_fixes_ratios(mode: str) -> None:
    """Design trap 18: the released module writes in evaluation too."""
    norm = SparseSwitchNorm2d(6, radius=0.8165)
    if mode == "frozen":
        norm.requires_grad_(False)
    else:
        norm.eval()
    before = copy.deepcopy(norm.state_dict())
    norm(torch.randn(2, 6, 4, 4))
    assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert_close(norm.ratios()[0].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("var", ORDER)
@pytest.mark.parametrize("mean", ORDER)
def test_hard_ratios_evaluate_as_the_full_formula(mean: str, var: str) -> None:
    norm = picking(mean, var)
    assert (norm.mean_fixed, norm.var_fixed) == (BOTH[mean], BOTH[var])
    (x,) = tensors(7, (2, 6, 5, 4), dtype=torch.float32)

    def one_hot(index: int) -> Tensor:
        return torch.eye(3, dtype=torch.float64)[index]

    state = state64(norm)
    state["mean_weight"], state["var_weight"] = one_hot(BOTH[mean]), one_hot(BOTH[var])
    for training in (True, False):
        norm.train(training)
        bn = None if training else (state["running_mean"], state["running_var"])
        if not training:
            bn = norm.running_mean.double(), norm.running_var.double()
        expected = switch_norm(x.double(), state, ORDER, bn=bn, ratios=lambda z: z)
        assert_close(norm(x).double(), expected.detach(), rtol=1e-4, atol=1e-4)
    assert set(norm.used_statistics()) == {mean, var}


def test_a_layer_that_picked_bn_twice_reads_no_statistics() -> None:
    norm = picking("bn", "bn").eval()
    (x,) = tensors(8, (2, 6, 5, 4), dtype=torch.float32)

    y = norm(x)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, 6, 1, 1)
    shift = norm.bias.view(1, 6, 1, 1) - norm.running_mean.view(1, 6, 1, 1) * scale
    assert_close(y, x * scale + shift)
    y.sum().backward()
    for control in (norm.mean_weight, norm.var_weight):
        assert control.grad is not None and not control.grad.any()
    x[0, 0, 0, 0] = torch.nan
    # A position that is not finite stays alone, unless it is in a statistic.
    assert norm(x).isnan().sum() == 1
    assert picking("ln", "bn").eval()(x).isnan().sum() > 1


def test_what_evaluation_reads_follows_a_loaded_state() -> None:
    norm, other = picking("bn", "bn").eval(), picking("in", "ln").eval()
    (x,) = tensors(9, (2, 6, 5, 4), dtype=torch.float32)
    y, wanted = norm(x), other(x)
    assert not torch.allclose(y, wanted)
    norm.load_state_dict(other.state_dict())
    assert_close(norm(x), wanted)
    norm.reset_parameters()
    assert norm.used_statistics() == ORDER


def test_every_gradient_is_there_once_all_is_fixed() -> None:
    """Design trap 18: DistributedDataParallel waits for a gradient that is None."""
    norm = SparseSwitchNorm2d(6, radius=0.8165)
    for _ in range(2):
        norm.zero_grad()
        norm(torch.randn(2, 6, 4, 4)).sum().backward()
        assert all(p.grad is not None for p in norm.parameters())


def test_deepcopy_after_fixing_works_and_is_independent() -> None:
    """Design trap 18."""
    norm = picking("in", "bn")
    norm.eval()(torch.randn(2, 6, 4, 4))
    other = copy.deepcopy(norm)
    other.mean_fixed.fill_(2)
    assert norm.mean_fixed == 0 and set(other.used_statistics()) == {"bn"}
    assert set(norm.used_statistics()) == {"in", "bn"}


def test_state_dict_keys_are_sns_and_three_buffers() -> None:
    extra = set(SparseSwitchNorm2d(6).state_dict()) - set(SwitchNorm2d(6).state_dict())
    assert extra == {"radius", "mean_fixed", "var_fixed"}


@pytest.mark.parametrize("statistics", [("in",), ("in", "bn"), ORDER], ids="+".join)
def test_a_radius_out_of_range_is_refused(statistics: tuple[str, ...]) -> None:
    k = len(statistics)
    limit = ((k - 1) / k) ** 0.5
    for radius in (-0.01, limit + 0.01, 5.0, float("nan")):
        with pytest.raises(ValueError, match=rf"radius \(.*\) must be from 0 to {limit:.6g}"):
            SparseSwitchNorm2d(6, statistics=statistics, radius=radius)
        norm = SparseSwitchNorm2d(6, statistics=statistics)
        with pytest.raises(ValueError, match="circumradius"):
            norm.set_radius(radius)
        assert norm.radius == 0
    assert_close(
        float(SparseSwitchNorm2d(6, statistics=statistics, radius=limit).radius),
        limit,
        rtol=1e-6,
        atol=1e-6,
    )


def test_one_statistic_is_fixed_at_once() -> None:
    norm = SparseSwitchNorm2d(6, statistics=("in",))
    norm(torch.randn(2, 6, 4, 4)).sum().backward()
    assert norm.mean_fixed == norm.var_fixed == 0
