"""WS against the formula in both eps conventions, and its cache against stale weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import standardized, tensors
from wsbcn_d2.norms import WSConv1d, WSConv2d, WSConv3d, standardize_weight
from wsbcn_d2.norms import weight_standardization as module

MODES = ["outside", "inside"]
CONVS = {
    1: (WSConv1d, F.conv1d),
    2: (WSConv2d, F.conv2d),
    3: (WSConv3d, F.conv3d),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one at each standardization."""
    counted: list[int] = []
    original = module._standardize

    def counting(*args: Any) -> Any:
        counted.append(1)
        return original(*args)

    monkeypatch.setattr(module, "_standardize", counting)
    yield counted


@pytest.mark.parametrize("eps_mode", MODES)
@pytest.mark.parametrize("std", [1.0, 1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize(
    "shape", [(4, 3, 3, 3), (2, 7), (3, 1, 2), (1, 2, 1, 1), (5, 4, 1, 2, 3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_weight_and_gradient_equal_the_formula(
    shape: tuple[int, ...], std: float, eps_mode: str, dtype: torch.dtype
) -> None:
    weight, grad = tensors(0, shape, shape)
    weight, grad = (0.5 * std + std * weight).to(dtype), grad.to(dtype)
    exact = weight.double().clone().requires_grad_()
    expected = standardized(exact, eps_mode=eps_mode)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    leaf = weight.clone().requires_grad_()
    ours = standardize_weight(leaf, eps_mode=eps_mode)
    ours.backward(grad)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert ours.dtype == dtype
    assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)
    # With two weights a filter the gradient is a difference of equal terms of this size.
    scale = float(grad.abs().max() / std)
    assert_close(leaf.grad.double() / scale, wanted / scale, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert_close(standardize_weight(weight, eps_mode=eps_mode), ours, rtol=0, atol=0)


@pytest.mark.parametrize("std, gap", [(1e-1, 1e-5), (1e-3, 1e-3), (1e-5, 0.3)])
def test_the_two_eps_conventions_are_told_apart(std: float, gap: float) -> None:
    """Design trap 19: they differ by little on ordinary weights and by much on small ones."""
    (weight,) = tensors(1, (4, 3, 3, 3))
    weight = std * weight
    ours = {mode: standardize_weight(weight, eps_mode=mode) for mode in MODES}
    assert (ours["outside"] - ours["inside"]).abs().max() > gap
    for mode in MODES:
        assert_close(ours[mode], standardized(weight, eps_mode=mode), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eps_mode", MODES)
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_derivatives_match_finite_differences(eps_mode: str, eps: float) -> None:
    (weight,) = tensors(2, (3, 2, 2))
    for scale in (1.0, 1e-2):
        leaf = (scale * weight).requires_grad_()

        def run(w: Tensor) -> Tensor:
            return standardize_weight(w, eps, eps_mode)

        assert gradcheck(run, leaf, eps=1e-7 * scale, atol=1e-4, rtol=1e-4)
    leaf = weight.clone().requires_grad_()
    assert gradgradcheck(run, leaf)


@pytest.mark.parametrize("eps_mode", MODES)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_constant_filter_is_zero_with_a_finite_gradient(
    value: float, eps_mode: str, dtype: torch.dtype
) -> None:
    """Design trap 17."""
    (weight,) = tensors(3, (3, 2, 2, 2), dtype=dtype)
    weight[1] = value
    weight.requires_grad_()
    ours = standardize_weight(weight, eps_mode=eps_mode)
    (first,) = torch.autograd.grad((ours**2).sum() + ours.sum(), weight, create_graph=True)
    first.sum().backward()
    assert_close(ours[1], torch.zeros_like(ours[1]))
    assert torch.isfinite(first).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4,), (4, 1)], ids=str)
def test_a_fan_in_of_one_is_refused(shape: tuple[int, ...]) -> None:
    """Design trap 17: 0 / 0."""
    with pytest.raises(ValueError, match=r"at least 2 weights per filter, got weight shape"):
        standardize_weight(torch.zeros(shape))


def test_a_depthwise_pointwise_convolution_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"\(6, 1, 1, 1\)"):
        WSConv2d(6, 6, 1, groups=6)
    WSConv2d(6, 6, 3, groups=6)


def test_an_unknown_eps_mode_is_refused() -> None:
    for make in (
        lambda: standardize_weight(torch.zeros(2, 3), eps_mode="in"),
        lambda: WSConv2d(2, 3, 3, eps_mode="in"),
    ):
        with pytest.raises(ValueError, match=r"'in'.*'outside', 'inside'"):
            make()


@pytest.mark.parametrize("eps_mode", MODES)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"groups": 2, "bias": False},
        {"dilation": 2, "padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_convolutions_equal_torchs_on_the_formulas_weight(
    dims: int, options: dict[str, Any], eps_mode: str
) -> None:
    layer, _ = CONVS[dims]
    conv = layer(4, 6, 3, eps=1e-3, eps_mode=eps_mode, **options).double()
    plain = getattr(nn, f"Conv{dims}d")(4, 6, 3, **options).double()
    x, w = tensors(4, (2, 4, *(7,) * dims), conv.weight.shape)
    with torch.no_grad():
        conv.weight.copy_(0.05 * w)
        if conv.bias is not None:
            plain.bias.copy_(conv.bias)
    leaf = conv.weight.detach().clone().requires_grad_()
    state = {"weight": standardized(leaf, 1e-3, eps_mode)}
    expected = torch.func.functional_call(plain, state, (x,))
    ours = conv(x)
    dy = torch.randn_like(ours)
    assert_close(ours, expected)
    assert_close(
        torch.autograd.grad(ours, conv.weight, dy), torch.autograd.grad(expected, leaf, dy)
    )
    assert conv.state_dict().keys() == plain.state_dict().keys()
    assert f"eps_mode={eps_mode!r}" in repr(conv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_standardizes_in_float32(dtype: torch.dtype) -> None:
    """Design trap 11."""
    conv = WSConv2d(4, 6, 3, bias=False)
    (x,) = tensors(5, (2, 4, 7, 7), dtype=torch.float32)
    expected = F.conv2d(x.to(dtype), standardized(conv.weight.double()).to(dtype))
    for _ in range(2):  # fresh and from the cache
        with torch.autocast("cpu", dtype):
            y = conv(x)
            assert conv.standardized_weight().dtype == torch.float32
            assert standardize_weight(conv.weight).dtype == torch.float32
        assert y.dtype == dtype
        assert_close(y, expected)
        y.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_standardized_in_float32(dtype: torch.dtype) -> None:
    # The squares of these weights are below float16's smallest number.
    (weight,) = tensors(6, (4, 8, 3, 3))
    weight = (1e-4 * weight).to(dtype)
    ours = standardize_weight(weight)
    assert ours.dtype == dtype
    assert_close(ours.double(), standardized(weight.double()), rtol=1e-2, atol=1e-2)


def expected_output(conv: nn.Conv2d, x: Tensor) -> Tensor:
    weight = standardized(conv.weight.detach().double()).to(conv.weight.dtype)
    bias = None if conv.bias is None else conv.bias.detach()
    return F.conv2d(x.to(weight.dtype), weight, bias)


def in_place(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight))


def stepped(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> Callable[[nn.Conv2d], None]:
    def change(conv: nn.Conv2d) -> None:
        conv.weight.grad = torch.rand_like(conv.weight)
        make([conv.weight]).step()

    return change


def loaded(conv: nn.Conv2d) -> None:
    conv.load_state_dict({k: torch.rand_like(v) for k, v in conv.state_dict().items()})


def assigned(conv: nn.Conv2d) -> None:
    state = {k: torch.rand_like(v) for k, v in conv.state_dict().items()}
    conv.load_state_dict(state, assign=True)


def swapped(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(torch.rand_like(conv.weight))


def rounded(conv: nn.Conv2d) -> None:
    conv.bfloat16()
    conv.float()  # may lie where the first weight lay


def averaged(conv: nn.Conv2d) -> None:
    """An exponential moving average takes the weight's place, as hooks put it there."""
    average = torch.optim.swa_utils.AveragedModel(conv)
    with torch.no_grad():
        average.module.weight.mul_(torch.rand_like(conv.weight))
    conv.weight.detach().copy_(average.module.weight)


def exchanged(conv: nn.Conv2d) -> None:
    other = torch.rand_like(conv.weight)
    conv.weight.data, other = other, conv.weight.data


def data_then_toggle(conv: nn.Conv2d) -> None:
    conv.weight.data = torch.rand_like(conv.weight)
    conv.weight.data.mul_(torch.rand_like(conv.weight))
    mode = conv.training
    conv.train(not mode)
    conv.train(mode)


def data_write_then_toggle(conv: nn.Conv2d) -> None:
    conv.weight.data.mul_(torch.rand_like(conv.weight))
    conv.eval() if conv.training else conv.train()


CHANGES = {
    "in_place": in_place,
    "init": lambda conv: nn.init.normal_(conv.weight),
    "reset": lambda conv: conv.reset_parameters(),
    "sgd": stepped(lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd_fused": stepped(lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    "sgd_foreach": stepped(lambda p: torch.optim.SGD(p, lr=0.1, foreach=True)),
    "adam": stepped(lambda p: torch.optim.Adam(p, lr=0.1)),
    "adamw_fused": stepped(lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)),
    "load": loaded,
    "assign": assigned,
    "swap": swapped,
    "ema": averaged,
    "ema_exchange": exchanged,
    "double": lambda conv: conv.double(),
    "rounded": rounded,
    "data_then_toggle": data_then_toggle,
    "data_write_then_toggle": data_write_then_toggle,
    "eps": lambda conv: setattr(conv, "eps", 1.0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_notices_every_change(change: str, training: bool) -> None:
    torch.manual_seed(7)
    conv = WSConv2d(3, 4, 3).train(training)
    (x,) = tensors(7, (2, 3, 5, 5), dtype=torch.float32)
    for _ in range(1 if change == "rounded" else 2):
        with torch.no_grad():
            conv(x.to(conv.weight.dtype))
        before = conv.weight.detach().clone()
        CHANGES[change](conv)
        if change == "eps":
            weight = standardized(conv.weight.detach().double(), 1.0).float()
            assert_close(conv(x), F.conv2d(x, weight, conv.bias))
            continue
        if change != "double":
            assert not torch.equal(before, conv.weight)  # the change is one
        with torch.no_grad():
            assert_close(conv(x.to(conv.weight.dtype)), expected_output(conv, x))
        assert_close(conv(x.to(conv.weight.dtype)), expected_output(conv, x))


def test_a_weight_that_is_computed_anew_is_standardized_anew() -> None:
    # Its tensors die after each forward, and the next may lie at the address of the last.
    class Square(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * w

    conv = WSConv2d(3, 4, 3)
    parametrize.register_parametrization(conv, "weight", Square())
    plain = WSConv2d(3, 4, 3, bias=False)
    (x,) = tensors(8, (1, 3, 5, 5), dtype=torch.float32)

    def functional(seed: int) -> tuple[Tensor, Tensor]:
        (w,) = tensors(seed, (4, 3, 3, 3), dtype=torch.float32)
        ours = torch.func.functional_call(plain, {"weight": w}, (x,))
        return ours, F.conv2d(x, standardized(w.double()).float())

    for seed in range(20):
        with torch.no_grad():
            conv.parametrizations.weight.original.normal_()
            assert_close(conv(x), expected_output(conv, x))
        assert_close(*functional(seed))


@pytest.mark.parametrize("training", [True, False])
def test_five_calls_standardize_once(training: bool, calls: list[int]) -> None:
    conv = WSConv2d(3, 4, 3, padding=1).train(training)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    for step in range(1, 4):
        levels = [conv(torch.randn(1, 3, size, size)) for size in (2, 3, 4, 5, 6)]
        assert len(calls) == step
        sum(level.sum() for level in levels).backward()
        assert len(calls) == step  # the backward pass standardizes nothing
        optimizer.step()
    with torch.no_grad():
        conv(torch.randn(1, 3, 5, 5))
        assert len(calls) == 4
        conv(torch.randn(1, 3, 5, 5))
    conv(torch.randn(1, 3, 5, 5))
    assert len(calls) == 4  # with gradient and without share it


def test_gradients_of_shared_calls_and_micro_batches_add_up(calls: list[int]) -> None:
    conv = WSConv2d(3, 4, 3, padding=1, bias=False).double()
    leaf = conv.weight.detach().clone().requires_grad_()
    batches = tensors(9, *[(2, 3, size, size) for size in (3, 4, 5, 6)])
    for micro in (batches[:2], batches[2:]):
        sum((conv(x) ** 3).sum() for x in micro).backward()
        sum((F.conv2d(x, standardized(leaf), padding=1) ** 3).sum() for x in micro).backward()
    assert_close(conv.weight.grad, leaf.grad)
    assert len(calls) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient_and_standardizes_once(
    reentrant: bool, calls: list[int]
) -> None:
    conv, other = (WSConv2d(3, 4, 3).double() for _ in range(2))
    other.load_state_dict(conv.state_dict())
    (x,) = tensors(10, (2, 3, 5, 5))
    checkpoint(conv, x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert len(calls) == 1
    wanted, x.grad = x.grad, None
    other(x).square().sum().backward()
    assert_close(
        (conv.weight.grad, conv.bias.grad, wanted), (other.weight.grad, other.bias.grad, x.grad)
    )


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    conv = WSConv2d(3, 4, 3)
    y = conv(torch.randn(1, 3, 5, 5))
    in_place(conv)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_two_backward_passes_give_twice_the_gradient() -> None:
    conv = WSConv2d(3, 4, 3)
    y = conv(torch.randn(1, 3, 5, 5)).square().sum()
    y.backward(retain_graph=True)
    once = conv.weight.grad.clone()
    y.backward()
    assert_close(conv.weight.grad, 2 * once)


def test_copies_do_not_carry_the_cache() -> None:
    conv = WSConv2d(3, 4, 3)
    (x,) = tensors(11, (2, 3, 5, 5), dtype=torch.float32)
    y = conv(x)
    assert "_standardized" in conv.__dict__
    plain = len(pickle.dumps(WSConv2d(3, 4, 3)))
    assert abs(len(pickle.dumps(conv)) - plain) < 64
    saved = io.BytesIO()
    torch.save(conv, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(conv),
        pickle.loads(pickle.dumps(conv)),
        torch.load(saved, weights_only=False),
    ):
        assert "_standardized" not in other.__dict__
        assert_close(other(x), y)
        in_place(other)
        assert_close(other(x), expected_output(other, x))
    assert_close(conv(x), y)


def test_evaluation_in_inference_mode_does_not_spoil_later_training() -> None:
    conv = WSConv2d(3, 4, 3).eval()
    (x,) = tensors(12, (2, 3, 5, 5), dtype=torch.float32)
    with torch.inference_mode():
        y = conv(x)
        made_there = WSConv2d(3, 4, 3)
        assert_close(made_there(x), expected_output(made_there, x))
        in_place(made_there)
        assert_close(made_there(x), expected_output(made_there, x))
    again = conv(x)
    again.sum().backward()
    assert_close(again, y.clone())
    assert conv.weight.grad is not None


def test_a_frozen_weight_needs_no_gradient(calls: list[int]) -> None:
    conv = WSConv2d(3, 4, 3).requires_grad_(False)
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    conv(x).sum().backward()
    conv(x)
    assert x.grad is not None and conv.weight.grad is None and len(calls) == 1


def test_an_empty_batch_gives_empty_output_and_zero_gradient() -> None:
    conv = WSConv2d(3, 4, 3)
    y = conv(torch.zeros(0, 3, 5, 5))
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    assert_close(conv.weight.grad, torch.zeros_like(conv.weight))


def test_meta_and_channels_last_convolutions_work() -> None:
    conv = WSConv2d(3, 4, 3, device="meta")
    assert conv(torch.randn(1, 3, 5, 5, device="meta")).shape == (1, 4, 3, 3)
    plain = WSConv2d(3, 4, 3)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    (x,) = tensors(13, (2, 3, 5, 5), dtype=torch.float32)
    y = last(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y.contiguous(), plain(x))
    y.square().sum().backward()
    plain(x).square().sum().backward()
    assert_close(last.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)


def test_compiled_graphs_are_whole_and_right() -> None:
    conv, other = (WSConv2d(3, 4, 3) for _ in range(2))
    other.load_state_dict(conv.state_dict())
    (x,) = tensors(14, (2, 3, 5, 5), dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y = compiled(x)
        assert_close(y, other(x))
        y.square().sum().backward()
        other(x).square().sum().backward()
        assert_close(conv.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-3)
        for c in (conv, other):
            with torch.no_grad():
                c.weight.copy_(0.1 * tensors(15, c.weight.shape, dtype=torch.float32)[0])
