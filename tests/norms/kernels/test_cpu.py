"""The passes on CPU: the paths that torch's kernels take, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.norms.oracles import tensors
from wsbcn_d2.norms import kernels
from wsbcn_d2.norms.kernels import cpu

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def exact(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.double().flatten(2)
    return wide.mean(2), wide.var(2, correction=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 5, 9, 7), (1, 3, 80, 64), (1, 2, 83, 79)], ids=str)
def test_moments(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    (x,) = tensors(0, shape)
    # Rows of every ratio of mean to deviation: some are safe for sums of squares, some are not.
    x = x + torch.linspace(-8, 8, shape[0] * shape[1]).view(*shape[:2], 1, 1)
    x = x.to(dtype).contiguous(memory_format=layout)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    mean, var = kernels.moments(x)
    assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close((mean.double(), var.double()), exact(x), rtol=5 * tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_rows_that_cancel_and_rows_that_do_not_share_a_tensor(layout: torch.memory_format) -> None:
    (x,) = tensors(1, (2, 4, 90, 91))
    x[0, 1] = 1e4 + x[0, 1]
    x[1, 2] = 7.0
    x[1, 3] = 0.0
    x = x.float().contiguous(memory_format=layout)
    mean, var = kernels.moments(x)
    assert_close((mean.double(), var.double()), exact(x), rtol=2e-4, atol=1e-6)
    assert var[1, 2] == 0 and var[1, 3] == 0 and mean[1, 3] == 0


def test_a_row_that_is_not_finite_stays_alone() -> None:
    x = torch.ones(1, 3, 8, 8)
    x[0, 1, 0, 0] = torch.nan
    mean, var = kernels.moments(x)
    y = kernels.transform(x, mean, torch.ones_like(mean), torch.zeros_like(mean))
    for t in (mean, var):
        assert torch.isfinite(t[0, [0, 2]]).all() and not torch.isfinite(t[0, 1])
    assert torch.isfinite(y[0, [0, 2]]).all() and torch.isnan(y[0, 1]).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("center", [0.5, 1e4])
def test_transform_and_gradient_in_blocks(
    center: float, dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of few rows, of which the last is smaller.
    monkeypatch.setattr(cpu, "_BLOCK_OF_A_THREAD", 3 * 4 * 63)
    shape, rows = (2, 7, 9, 7), (2, 7)
    x, dy, scale, offset, dmean, dvar = tensors(2, shape, shape, rows, rows, rows, rows)
    x, dy = ((t).to(dtype).contiguous(memory_format=layout) for t in (center + x, dy))
    mean, var = kernels.moments(x)
    assert_close((mean.double(), var.double()), exact(x), rtol=2e-3, atol=1e-5)
    spread = (..., None, None)
    away = x.double() - mean.double()[spread]
    y = kernels.transform(x, mean, scale.float(), offset.float())
    # Beyond the rounding of the result nothing is lost, though scale * mean is 10,000.
    rounding = torch.finfo(dtype).eps
    assert_close(y.double(), away * scale[spread] + offset[spread], rtol=2 * rounding, atol=1e-6)
    total, dot = kernels.reduce_gradient(dy, x, mean)
    assert_close(total.double(), dy.double().sum((2, 3)), rtol=1e-5, atol=1e-5)
    loose = 1e-5 * center
    assert_close(dot.double(), (dy.double() * away).sum((2, 3)), rtol=1e-5, atol=loose)
    dx = kernels.input_gradient(dy, x, mean, scale.float(), dmean.float(), dvar.float())
    expected = dy.double() * scale[spread] + dmean[spread] / 63 + 2 * dvar[spread] / 63 * away
    assert_close(dx.double(), expected, rtol=2 * rounding, atol=1e-7 * center + 1e-6)
    assert y.stride() == dx.stride() == x.stride() and y.dtype == dx.dtype == dtype
