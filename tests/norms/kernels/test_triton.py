"""The Triton kernels against plain formulas: on a GPU, or in Triton's interpreter on CPU."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.norms.families import FAMILIES
from tests.norms.oracles import randomize, standardized, tensors
from wsbcn_d2.norms import WSConv2d, kernels, normalize

pytest.importorskip("triton", reason="triton is not installed")
from wsbcn_d2.norms.kernels import tiling, triton_passes, triton_weights

pytestmark = pytest.mark.usefixtures("triton_runs")

ROOT = Path(__file__).resolve().parents[3]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA GPU")
# Each of the four tiles, whole and with a rest; one position; a sample's rows in several programs;
# channels that no power of two divides; splits of long rows.
SHAPES = [
    (2, 3, 7), (2, 5, 1, 1), (1, 4, 8, 8), (2, 33, 3, 5), (1, 2, 2, 3, 41), (1, 3, 31, 29),
    (1, 2, 64, 64), (1, 1, 93, 97),
]  # fmt: skip
LAYOUTS = ["contiguous", "channels_last"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "contiguous" or x.dim() < 4:
        return x
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


def spread(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(rows.shape + (1,) * (x.dim() - 2))


def plain_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.double().flatten(2)
    return wide.mean(2), wide.var(2, correction=0)


def random(seed: int, *shapes: Sequence[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(DEVICE) for t in tensors(seed, *shapes, dtype=dtype)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_four_passes_equal_the_formulas(shape: tuple[int, ...], layout: str) -> None:
    rows = shape[:2]
    x, dy, scale, offset, dmean, dvar = random(0, shape, shape, rows, rows, rows, rows)
    x, dy = laid_out(3 + 2 * x, layout), laid_out(dy, layout)
    length = x[0, 0].numel()

    mean, var = triton_passes.moments(x)
    assert_close((mean.double(), var.double()), plain_moments(x), rtol=1e-5, atol=1e-6)
    y = triton_passes.transform(x, mean, scale, offset)
    centered = x - spread(mean, x)
    assert_close(y, centered * spread(scale, x) + spread(offset, x), rtol=1e-5, atol=1e-6)
    sums = triton_passes.reduce_gradient(dy, x, mean)
    wide = dy.double().flatten(2)
    expected = wide.sum(2), (wide * centered.double().flatten(2)).sum(2)
    assert_close((sums[0].double(), sums[1].double()), expected, rtol=1e-4, atol=1e-4)
    dx = triton_passes.input_gradient(dy, x, mean, scale, dmean, dvar)
    through_var = 2 * spread(dvar, x) / length * centered if length > 1 else 0
    expected_dx = dy * spread(scale, x) + through_var + spread(dmean, x) / length
    assert_close(dx, expected_dx, rtol=1e-5, atol=1e-5)
    assert y.stride() == dx.stride() == x.stride()


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [int(torch.randint(1, high, (), generator=generator)) for high in (4, 20, 40, 40)]
    test_the_four_passes_equal_the_formulas(tuple(shape), LAYOUTS[seed % 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_narrow_types_are_summed_in_float32_and_rounded_once(
    dtype: torch.dtype, layout: str
) -> None:
    x, dy, scale, offset = random(1, (1, 2, 30, 31), (1, 2, 30, 31), (1, 2), (1, 2))
    # 930 squares of about 100: beyond float16, and where a sum in bfloat16 stops growing.
    x, dy = laid_out((100 + x).to(dtype), layout), laid_out(dy.to(dtype), layout)
    mean, var = triton_passes.moments(x)
    assert_close((mean.double(), var.double()), plain_moments(x), rtol=1e-5, atol=1e-6)
    y = triton_passes.transform(x, mean, scale, offset)
    exact = (x.double() - spread(mean, x)) * spread(scale, x) + spread(offset, x)
    assert y.dtype == dtype
    assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    dx = triton_passes.input_gradient(dy, x, mean, scale, offset, scale)
    exact = dy.double() * spread(scale, x) + spread(offset, x) / 930
    exact = exact + 2 * spread(scale, x) / 930 * (x.double() - spread(mean, x))
    assert dx.dtype == dtype
    assert_close(dx.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("mean, std", [(1e4, 1.0), (100.0, 0.01)])
@pytest.mark.parametrize("outlier", [False, True])
def test_variance_survives_a_mean_of_ten_thousand_deviations(
    mean: float, std: float, outlier: bool
) -> None:
    (x,) = random(2, (1, 2, 31, 37))
    x = mean + std * x
    if outlier:
        x[..., 0, 0] = 0  # a sum about the first position would cancel
    _, var = triton_passes.moments(x)
    assert_close(var.double(), plain_moments(x)[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("programs", [1, 3, 100])
def test_splits_of_the_positions_change_nothing_but_rounding(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "wanted_programs", lambda device: programs)
    x, dy = random(3, (1, 2, 131, 127), (1, 2, 131, 127))
    x = 5 + x
    assert tiling.tile(x, reduces=True).grid == (2, {1: 1, 3: 1, 100: 5}[programs])
    mean, var = triton_passes.moments(x)
    assert_close((mean.double(), var.double()), plain_moments(x), rtol=1e-6, atol=1e-6)
    total, dot = triton_passes.reduce_gradient(dy, x, mean)
    wide = dy.double().flatten(2)
    assert_close(total.double(), wide.sum(2), rtol=1e-5, atol=1e-4)
    expected = (wide * (x.double().flatten(2) - mean.unsqueeze(2))).sum(2)
    assert_close(dot.double(), expected, rtol=1e-5, atol=1e-3)
    again = triton_passes.moments(x)
    assert_close((mean, var), again, rtol=0, atol=0)


@pytest.mark.parametrize(
    "strange",
    [
        lambda x: x[:, 1:, 1:, 1:],  # no dense rows, and a start that no load is aligned to
        lambda x: x.flatten()[1 : 1 + 3 * 6 * 7].view(1, 3, 6, 7),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :1].expand_as(x),
    ],
    ids=["sliced", "unaligned", "transposed", "expanded"],
)
def test_strides_and_alignment_do_not_matter(strange: object) -> None:
    x, dy = (strange(t) for t in random(4, (2, 4, 6, 7), (2, 4, 6, 7)))  # type: ignore[operator]
    mean, var = triton_passes.moments(x)
    assert_close((mean.double(), var.double()), plain_moments(x), rtol=1e-5, atol=1e-6)
    total, dot = triton_passes.reduce_gradient(dy, x, mean)
    assert_close(total, dy.sum((2, 3)), rtol=1e-4, atol=1e-5)
    assert_close(dot, (dy * (x - spread(mean, x))).sum((2, 3)), rtol=1e-4, atol=1e-5)
    # And of the gradient, whatever the layout of x.
    last = laid_out(x, "channels_last")
    assert_close(triton_passes.reduce_gradient(dy, last, mean), (total, dot))
    assert_close(triton_passes.input_gradient(dy, last, mean, mean, mean, var),
                 triton_passes.input_gradient(dy, x, mean, mean, mean, var))  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_beyond_the_tensor_is_read(layout: str) -> None:
    """A sample between samples of NaN."""
    outer = laid_out(torch.full((5, 3, 5, 5), torch.nan, device=DEVICE), layout)
    x = outer[2:3].copy_(random(5, (1, 3, 5, 5))[0])
    mean, var = triton_passes.moments(x)
    results = [
        mean,
        var,
        triton_passes.transform(x, mean, mean, var),
        *triton_passes.reduce_gradient(x, x, mean),
        triton_passes.input_gradient(x, x, mean, mean, mean, var),
    ]
    assert all(torch.isfinite(t).all() for t in results)
    assert torch.isnan(outer[[0, 1, 3, 4]]).all()


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that would run on Triton's kernels on CUDA does so on this device."""
    if DEVICE.type == "cuda":
        return
    monkeypatch.setattr(kernels, "triton_for", lambda device: triton_passes)


def step(norm: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(leaf)
    y.backward(dy)
    assert leaf.grad is not None
    return [y.detach(), leaf.grad, *(p.grad for p in norm.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_on_kernels_equal_norms_in_float64(family: str, training: bool) -> None:
    """float64 runs on torch's operators, which other tests compare with written-out formulas."""
    shape = (2, 6, 3, 4)
    norm = FAMILIES[family](6)
    randomize(norm, 0)
    norm = norm.to(DEVICE).train(training)
    exact = copy.deepcopy(norm).double()
    for seed in (1, 2):
        x, dy = random(seed, shape, shape)
        ours = step(norm, 1 + x, dy)
        expected = step(exact, 1 + x.double(), dy.double())
        assert_close([t.double() for t in ours], expected, rtol=1e-4, atol=1e-4)
    buffers = {name: b.double() for name, b in norm.named_buffers()}
    expected_buffers = {name: b.double() for name, b in exact.named_buffers()}
    assert_close(buffers, expected_buffers, rtol=1e-5, atol=1e-5)
    assert_close(norm(x.bfloat16()).double(), exact(x.double()), rtol=0.05, atol=0.1)


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    "family, shape",
    [
        ("sn_grouped", (18, 6, 1, 2)),  # many samples: the other tile
        ("bcn_batch", (18, 6, 1, 2)),
        ("bcn", (18, 6, 1, 2)),
        ("sn", (1, 1027, 1, 2)),  # more channels than a program takes at a time
        ("bcn", (1, 1034, 1, 2)),  # more groups
        ("bcn_batch", (1, 515, 1, 2)),  # more channels in a group
    ],
    ids=str,
)
def test_forms_larger_than_a_tile(family: str, shape: tuple[int, ...]) -> None:
    norm = FAMILIES[family](shape[1])
    randomize(norm, 3)
    norm = norm.to(DEVICE)
    exact = copy.deepcopy(norm).double()
    x, dy = random(4, shape, shape)
    ours, expected = step(norm, x, dy), step(exact, x.double(), dy.double())
    for mine, truth in zip(ours, expected, strict=True):
        assert_close(mine.double(), truth, rtol=1e-3, atol=1e-4 * float(1 + truth.abs().max()))


@pytest.mark.usefixtures("on_triton")
def test_rules_of_ones_own_run_on_the_kernels() -> None:
    def rule(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight * (var + 1e-5).rsqrt(), bias

    x, weight, bias, dy = random(6, (2, 3, 5, 4), (3,), (3,), (2, 3, 5, 4))
    results = []
    for function in (
        lambda *t: normalize(t[0], rule, *t[1:]),
        lambda *t: F.instance_norm(t[0], None, None, t[1], t[2]),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize(
    "shape", [(3, 2), (4, 3, 3, 3), (2, 64, 3, 3), (2, 1100, 1, 1), (1, 7, 1, 2, 3)], ids=str
)
def test_standardized_weights_equal_the_formula(shape: tuple[int, ...], inside: bool) -> None:
    mode = "inside" if inside else "outside"
    for std in (1.0, 1e-3, 1e-5):
        weight, grad = random(7, shape, shape)
        weight = 0.5 * std + std * weight
        exact = weight.double().cpu().requires_grad_()
        expected = standardized(exact, eps_mode=mode)
        (wanted,) = torch.autograd.grad(expected, exact, grad.double().cpu())
        for layout in LAYOUTS:
            out, denominator, root = triton_weights.standardize(
                laid_out(weight, layout), 1e-5, inside
            )
            assert_close(out.double().cpu(), expected, rtol=2e-5, atol=2e-5)
            dweight = triton_weights.standardize_backward(
                laid_out(grad, layout), out, denominator, root
            )
            scale = float(grad.abs().max() / std)
            assert_close(dweight.double().cpu() / scale, wanted / scale, rtol=2e-5, atol=2e-5)


def test_a_constant_filter_is_zero_with_a_finite_gradient() -> None:
    weight, grad = random(8, (2, 3, 3, 3), (2, 3, 3, 3))
    weight[1] = 3.0
    out, denominator, root = triton_weights.standardize(weight, 1e-5, False)
    assert_close(out[1], torch.zeros_like(out[1]))
    assert torch.isfinite(triton_weights.standardize_backward(grad, out, denominator, root)).all()


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("eps_mode", ["outside", "inside"])
def test_convolutions_standardize_on_the_kernels(
    eps_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for name in ("standardize", "standardize_backward"):
        original = getattr(triton_weights, name)

        def counting(*args: object, name: str = name, original: object = original) -> object:
            counted.append(name)
            return original(*args)  # type: ignore[operator]

        monkeypatch.setattr(triton_weights, name, counting)
    conv = WSConv2d(3, 4, 3, bias=False, eps_mode=eps_mode).to(DEVICE)
    (x,) = random(9, (2, 3, 5, 5))
    leaf = conv.weight.detach().double().cpu().requires_grad_()
    F.conv2d(x.double().cpu(), standardized(leaf, eps_mode=eps_mode)).square().sum().backward()
    for _ in range(2):
        conv.zero_grad()
        conv(x).square().sum().backward()
        assert conv.weight.grad is not None and leaf.grad is not None
        assert_close(conv.weight.grad.double().cpu(), leaf.grad, rtol=1e-4, atol=1e-3)
    assert counted == ["standardize", "standardize_backward", "standardize_backward"]


def test_types_and_shapes_that_no_kernel_takes_are_left_to_torch() -> None:
    assert triton_passes.supports(torch.zeros(2, 3, 4))
    for x in (torch.zeros(2, 3), torch.zeros(0, 3, 4), torch.zeros(2, 3, 4).double()):
        assert not triton_passes.supports(x)


def test_where_triton_fails_torchs_operators_run_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(x: Tensor) -> None:
        raise RuntimeError("no compiler")

    kernels.triton_for.cache_clear()
    monkeypatch.setattr(triton_passes, "moments", fail)
    monkeypatch.setattr(torch, "zeros", lambda *args, device: torch.empty(1, 1, 16))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert kernels.triton_for(torch.device("cuda", 7)) is None
    kernels.triton_for.cache_clear()
    assert [r.getMessage() for r in caplog.records] == [
        "Norms on cuda:7 use torch's operators: Triton failed with RuntimeError('no compiler')"
    ]
    assert kernels.triton_for(torch.device("cpu")) is None


COMPILE = """
import inspect, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wsbcn_d2.norms.kernels import (
    triton_batch_channel, triton_passes, triton_pools, triton_switch, triton_weights
)

TILE = {"CHANNELS_LAST": False, "ROWS": 16, "BLOCK": 256, "UNIT": 4}
LAST = {"CHANNELS_LAST": True, "ROWS": 64, "BLOCK": 64, "UNIT": 16}
SN = {"K": 3, "IN": 0, "LN": 1, "BN": 2, "SOFTMAX": True}
SN_IN_LN = {"K": 2, "IN": 0, "LN": 1, "BN": -1, "SOFTMAX": True}
SSN = {**SN, "SOFTMAX": False}
# What each kernel is compiled for; a form that is not here may fail on its first GPU.
CONSTANTS = {
    "triton_passes._moments_kernel": [{"SNAPSHOT": True, **TILE}, {"SNAPSHOT": False, **LAST}],
    "triton_passes._transform_kernel": [TILE],
    "triton_passes._reduce_kernel": [TILE],
    "triton_passes._input_gradient_kernel": [TILE],
    "triton_passes._combine_kernel": [{"BLOCK": 256}],
    "triton_pools._pool_kernel": [{"POOL": p, "MOVES": True, "BLOCK": 256} for p in (1, 2)],
    "triton_switch._write_kernel": [
        {"POOL": p, "MOVES": p > 0, **form, **tile}
        for form, p, tile in ((SN, 1, TILE), (SN, 0, LAST), (SN_IN_LN, 0, TILE), (SSN, 1, TILE))
    ],
    "triton_switch._sums_kernel": [
        {**form, "TILE_N": 4, "TILE_C": 256} for form in (SN, SN_IN_LN, SSN)
    ],
    "triton_switch._dx_kernel": [
        {"POOLED": p, **form, **tile}
        for form, p, tile in ((SN, True, TILE), (SN_IN_LN, False, LAST), (SSN, True, LAST))
    ],
    "triton_batch_channel._write_kernel": [
        {"POOL": p, "MOVES": p > 0, **tile} for p, tile in ((0, TILE), (1, TILE), (2, LAST))
    ],
    "triton_batch_channel._groups_kernel": [
        {"TILE_N": n, "WIDTH": w} for n, w in ((2, 4), (32, 16), (2, 2048))
    ],
    "triton_batch_channel._dx_kernel": [
        {"POOLED": p, **tile} for p, tile in ((True, TILE), (False, LAST))
    ],
    "triton_weights._standardize_kernel": [
        {"INSIDE": i, "BLOCK": 1024, "UNIT": 16} for i in (True, False)
    ],
    "triton_weights._standardize_backward_kernel": [{"BLOCK": 1024, "UNIT": 16}],
}
FLOATS = ("eps", "inner_eps", "rate", "unbias", "slope_factor", "level_factor")
modules = (triton_passes, triton_pools, triton_switch, triton_batch_channel, triton_weights)
kernels = {
    m.__name__.rpartition(".")[2] + "." + name: f for m in modules for name, f in vars(m).items()
    if name.endswith("_kernel") and isinstance(f, triton.JITFunction)
}
assert set(kernels) == set(CONSTANTS), set(kernels) ^ set(CONSTANTS)
forms = [(name, constants) for name in kernels for constants in CONSTANTS[name]]
for name, constants in forms:
    kernel = kernels[name]
    signature = {}
    for parameter in kernel.params:
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
        elif parameter.name in FLOATS:
            signature[parameter.name] = "fp32"
        elif parameter.do_not_specialize:
            signature[parameter.name] = "i32"
        else:
            signature[parameter.name] = "*i64" if parameter.name == "tracked" else "*fp32"
    # Pointers are few and known; whatever else would be compiled for its value is a mistake.
    pointers = {n for n, kind in signature.items() if kind.startswith("*")}
    assert not pointers & set("row_count channels length splits chunk samples width".split())
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v
                                           for k, v in constants.items()}, {})
    for capability in map(int, sys.argv[1:]):
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert ".local" not in binary.asm["ptx"], (name, "spills")
print(len(kernels))
"""


def compile_for(*capabilities: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *capabilities],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 14


def test_every_kernel_compiles_for_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no size is compiled for: images of a new size meet compiled kernels."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_for("80")


@needs_cuda
def test_a_cuda_graph_of_a_training_step_replays() -> None:
    for family in ("sn", "bcn", "ssn_hard"):
        norm = FAMILIES[family](64).cuda()
        x, dy = random(10, (2, 64, 20, 30), (2, 64, 20, 30))
        leaf = x.clone().requires_grad_()
        wanted = [leaf, *norm.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.autograd.grad(norm(leaf), wanted, dy)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = norm(leaf)
            grads = torch.autograd.grad(y, wanted, dy)
        other = copy.deepcopy(norm)
        with torch.no_grad():
            leaf.copy_(random(11, (2, 64, 20, 30))[0])
        graph.replay()
        again = leaf.detach().clone().requires_grad_()
        expected = other(again)
        assert_close(y, expected)
        assert_close(
            list(grads), list(torch.autograd.grad(expected, [again, *other.parameters()], dy))
        )
        assert_close(norm.state_dict(), other.state_dict())


@needs_cuda
def test_no_step_waits_for_the_gpu() -> None:
    for family in FAMILIES:
        norm = FAMILIES[family](64).cuda()
        x = torch.randn(2, 64, 20, 30, device="cuda", requires_grad=True)
        norm(x).sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            norm(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
