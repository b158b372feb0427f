"""The norms on the shapes of a Mask R-CNN step, against their formulas in float64.

An error is the norm of the difference in units of the norm of the truth. What must be lost is the
rounding of the result to the input's type, and in float32 a few roundings of the statistics.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.gpu.device import DEVICE, SHAPES
from tests.norms import oracles
from wsbcn_d2 import norms

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")

FLOAT32_LOSS = 2e-5
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def build(name: str, channels: int) -> nn.Module:
    return {
        "SN": lambda: norms.SwitchNorm2d(channels),
        "SN_IN_LN": lambda: norms.SwitchNorm2d(channels, statistics=("in", "ln")),
        "SSN": lambda: norms.SparseSwitchNorm2d(channels),
        "BCN": lambda: norms.BatchChannelNorm2d(channels),
    }[name]()


def exact(name: str, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The formula, in float64."""
    if name == "BCN":
        # The estimates move before they are used, and pass no gradient on.
        old_mean, old_var = state["bn.running_mean"], state["bn.running_var"]
        value = x.detach()
        batch_mean = value.mean((0, 2, 3))
        away = (value - oracles.along(old_mean, value)).square().mean((0, 2, 3))
        mean, var = 0.9 * old_mean + 0.1 * batch_mean, 0.9 * old_var + 0.1 * away
        return oracles.batch_channel_norm(x, state, 32, mean, var, 1e-5)
    if name == "SSN":  # near equal controls, and with a radius of 0, sparsestmax is a projection
        order = ("in", "ln", "bn")
        return oracles.switch_norm(x, state, order, ratios=lambda z: z - z.mean() + 1 / 3)
    statistics = ("in", "ln") if name == "SN_IN_LN" else ("in", "ln", "bn")
    return oracles.switch_norm(x, state, statistics)


def error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.detach().double() - truth.detach()).norm() / truth.detach().norm())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_step_shapes_equal_the_formula(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    x64 = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64)
    x64 = x64 * 2 + torch.randn(shape[1], 1, 1, generator=generator, device=DEVICE)
    dy64 = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64)
    for name in ("SN", "SN_IN_LN", "SSN", "BCN"):
        norm = build(name, shape[1]).to(DEVICE)
        start = {key: value.clone() for key, value in norm.state_dict().items()}
        for dtype in TYPES:
            norm.load_state_dict(start)
            norm.zero_grad()
            x = x64.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
            dy = dy64.to(dtype).contiguous(memory_format=memory_format)
            state = oracles.state64(norm)
            y = norm(x)
            y.backward(dy)
            x_exact = x.detach().double().requires_grad_()
            y_exact = exact(name, x_exact, state)
            y_exact.backward(dy.double())

            where = f"{name} {dtype}"
            lost = FLOAT32_LOSS + torch.finfo(dtype).eps
            assert y.dtype == dtype and y.is_contiguous(memory_format=memory_format), where
            assert x.grad is not None and x_exact.grad is not None
            assert error(y, y_exact) < lost, where
            assert error(x.grad, x_exact.grad) < lost, where
            for key, parameter in norm.named_parameters():
                truth = state[key].grad
                assert parameter.grad is not None and truth is not None, f"{where} {key}"
                # A control's gradient sums over channels and may cancel: their scale is its.
                is_control = key in ("mean_weight", "var_weight")
                scale = state["weight"].grad.abs().sum() if is_control else truth.norm()
                gap = (parameter.grad.double() - truth).norm()
                assert gap < 1e-3 * scale, f"{where} {key}: {gap / scale}"


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (256, 64, 1, 1), (512, 512, 3, 3)], ids=str)
@pytest.mark.parametrize("eps_mode", ["outside", "inside"])
def test_standardized_weights_equal_the_formula(shape: tuple[int, ...], eps_mode: str) -> None:
    (weight,) = oracles.tensors(0, shape, dtype=torch.float32)
    (grad,) = oracles.tensors(1, shape, dtype=torch.float32)
    leaf = weight.to(DEVICE).requires_grad_()
    hat = norms.standardize_weight(leaf, eps_mode=eps_mode)
    hat.backward(grad.to(DEVICE))
    leaf64 = leaf.detach().double().requires_grad_()
    hat64 = oracles.standardized(leaf64, eps_mode=eps_mode)
    hat64.backward(grad.to(DEVICE).double())
    assert leaf.grad is not None and leaf64.grad is not None
    assert error(hat, hat64) < FLOAT32_LOSS
    assert error(leaf.grad, leaf64.grad) < FLOAT32_LOSS
