"""`normalize`: any rule of the row statistics becomes a norm."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import randomize, tensors
from wsbcn_d2.norms import normalize
from wsbcn_d2.norms.normalize import normalize_by_running

EPS = 1e-5
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
SHAPES = [(3, 6, 7), (2, 6, 5, 3), (2, 6, 3, 2, 5), (1, 6, 13, 11), (5, 6, 1, 1), (2, 6, 1)]


# Three norms, each a small function of the statistics.
def instance_rule(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight * (var + EPS).rsqrt(), bias


def group_rule(
    groups: int,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def rule(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        n, c = mean.shape
        grouped = mean.reshape(n, groups, c // groups)
        pooled = grouped.mean(2, keepdim=True)
        spread = var.reshape_as(grouped) + (grouped - pooled) ** 2
        scale = weight * spread.mean(2, keepdim=True).add(EPS).rsqrt().expand_as(grouped).reshape(
            n, c
        )
        return scale, (mean - pooled.expand_as(grouped).reshape(n, c)) * scale + bias

    return rule


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # torch's instance_norm refuses a single position in training.
    dims = tuple(range(2, x.dim()))
    mean, var = x.mean(dims, True), x.var(dims, correction=0, keepdim=True)
    shape = (1, -1) + (1,) * len(dims)
    return (x - mean) / (var + EPS).sqrt() * weight.view(shape) + bias.view(shape)


NORMS = {
    "in": (instance_rule, instance_norm),
    "ln": (group_rule(1), lambda x, w, b: F.group_norm(x, 1, w, b, EPS)),
    "gn": (group_rule(3), lambda x, w, b: F.group_norm(x, 3, w, b, EPS)),
}


def outputs_and_grads(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], dy: Tensor
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    y.backward(dy)  # not autograd.grad: checkpoint(use_reentrant=True) refuses that
    return [y.detach(), *(t.grad for t in leaves if t.grad is not None)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_small_rules_make_torchs_norms(name: str, shape: tuple[int, ...], device: str) -> None:
    rule, reference = NORMS[name]
    x, weight, bias, dy = (t.to(device) for t in tensors(0, shape, (6,), (6,), shape))
    ours = outputs_and_grads(lambda *t: normalize(t[0], rule, *t[1:]), (x, weight, bias), dy)
    theirs = outputs_and_grads(reference, (x, weight, bias), dy)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    narrow = [t.float() for t in (x, weight, bias)]
    ours = outputs_and_grads(lambda *t: normalize(t[0], rule, *t[1:]), narrow, dy.float())
    # At one position the slope is 1 / sqrt(eps): float32 keeps fewer digits of the gradient.
    loose = 1e-2 if name == "in" and dy[0, 0].numel() == 1 else 2e-5
    assert_close([t.double() for t in ours], theirs, rtol=1e-4, atol=loose)


def test_layer_norm_rule_equals_torchs_layer_norm_on_one_position() -> None:
    x, weight, bias, dy = tensors(1, (5, 6), (6,), (6,), (5, 6))
    ours = outputs_and_grads(
        lambda *t: normalize(t[0], NORMS["ln"][0], *t[1:]), (x, weight, bias), dy
    )
    theirs = outputs_and_grads(
        lambda a, w, b: F.layer_norm(a, (6,), w, b, EPS), (x, weight, bias), dy
    )
    assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_narrow_types_are_summed_in_float32(dtype: torch.dtype, layout: str, device: str) -> None:
    # 64 * 65 positions about 100: a sum in float16 overflows, one in bfloat16 stops growing.
    x, weight, bias, dy = tensors(2, (2, 6, 64, 65), (6,), (6,), (2, 6, 64, 65))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = (100 + 10 * x).to(device, dtype).contiguous(memory_format=memory_format)
    dy = dy.to(device, dtype)
    weight, bias = weight.to(device, torch.float32), bias.to(device, torch.float32)
    rule, reference = NORMS["gn"]
    y, *grads = outputs_and_grads(lambda *t: normalize(t[0], rule, *t[1:]), (x, weight, bias), dy)
    assert y.dtype == dtype and [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
    exact, *exact_grads = outputs_and_grads(
        reference, (x.double(), weight.double(), bias.double()), dy.double()
    )
    tolerance = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    assert_close(y.double(), exact, rtol=tolerance, atol=10 * tolerance)
    assert_close(grads[0].double(), exact_grads[0], rtol=tolerance, atol=tolerance)
    assert_close(grads[1].double(), exact_grads[1], rtol=1e-4, atol=5e-3)
    assert_close(grads[2].double(), exact_grads[2], rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_statistics_and_type_alone(dtype: torch.dtype) -> None:
    x, weight, bias, dy = tensors(3, (2, 6, 9, 9), (6,), (6,), (2, 6, 9, 9), dtype=torch.float32)
    x = x + 50

    def norm(*t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return normalize(t[0], rule, *t[1:])

    seen = []

    def rule(mean: Tensor, var: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((mean.dtype, var.dtype, (w[:, None] @ b[None]).dtype))
        return NORMS["gn"][0](mean, var, w, b)

    ours = outputs_and_grads(norm, (x, weight, bias), dy)
    assert set(seen) == {(torch.float32,) * 3}
    assert all(t.dtype == torch.float32 for t in ours)
    plain = outputs_and_grads(lambda *t: normalize(t[0], rule, *t[1:]), (x, weight, bias), dy)
    assert_close(ours, plain, rtol=0, atol=0)
    half = normalize(x.to(dtype), rule, weight, bias)
    assert half.dtype == dtype


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("positions", [5, 5000], ids=["small", "large"])
def test_a_pool_runs_once(positions: int, needs_grad: bool) -> None:
    calls = []

    class Pool:
        differentiable = False

        def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
            calls.append((mean.shape, var.shape))
            return mean.detach().sum(0), var.detach().sum(0)

    def rule(
        mean: Tensor, var: Tensor, pooled: Tensor, second: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        return weight * var + second, mean - pooled

    x, weight = tensors(4, (2, 3, positions), (3,))
    y = normalize(x.requires_grad_(needs_grad), rule, weight, pool=Pool())
    if needs_grad:
        y.sum().backward()
    assert calls == [((2, 3), (2, 3))]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_but_the_input_and_row_sized_numbers_is_saved(
    dtype: torch.dtype, layout: str
) -> None:
    n, c, size = 2, 6, 40
    x, weight, bias = tensors(5, (n, c, size, size), (c,), (c,), dtype=torch.float32)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = normalize(x, NORMS["gn"][0], weight.requires_grad_(), bias.requires_grad_())
    ours = x.untyped_storage()
    assert saved.pop(ours.data_ptr()) == ours.nbytes()
    assert sum(saved.values()) <= 30 * n * c * 4
    # Nothing else is held behind the back of autograd: y dies, though x and its gradient live.
    y.sum().backward()
    alive = weakref.ref(y)
    del y
    assert alive() is None


def test_forward_output_may_be_changed_in_place() -> None:
    x, weight, bias, dy = tensors(6, (2, 6, 5, 5), (6,), (6,), (2, 6, 5, 5))
    for layout in (torch.contiguous_format, torch.channels_last):
        for inplace in (True, False):
            leaf = x.clone(memory_format=layout).requires_grad_()
            w = weight.clone().requires_grad_()
            y = F.relu(normalize(leaf, NORMS["gn"][0], w, bias), inplace=inplace)
            y.backward(dy)
            if inplace:
                kept = (y.detach(), leaf.grad, w.grad)
        assert_close(kept, (y.detach(), leaf.grad, w.grad), rtol=0, atol=0)


def test_changing_the_input_in_place_before_backward_is_noticed() -> None:
    x, weight, bias = tensors(7, (2, 6, 5, 5), (6,), (6,))
    middle = x.requires_grad_() * 1
    y = normalize(middle, NORMS["gn"][0], weight, bias)
    middle.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_two_backward_passes_give_twice_the_gradient_and_a_third_is_refused() -> None:
    x, weight, bias, dy = tensors(8, (2, 6, 5), (6,), (6,), (2, 6, 5))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = normalize(leaves[0], NORMS["gn"][0], *leaves[1:])
    y.backward(dy, retain_graph=True)
    once = [t.grad.clone() for t in leaves if t.grad is not None]
    y.backward(dy)
    assert_close([t.grad for t in leaves], [2 * g for g in once])
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(dy)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_a_single_wanted_gradient_is_the_same_alone(wanted: str) -> None:
    x, weight, bias, dy = tensors(9, (2, 6, 5, 4), (6,), (6,), (2, 6, 5, 4))
    together = outputs_and_grads(
        lambda *t: normalize(t[0], NORMS["gn"][0], *t[1:]), (x, weight, bias), dy
    )
    leaves = {"x": x, "weight": weight, "bias": bias}
    leaves[wanted].requires_grad_()
    normalize(x, NORMS["gn"][0], weight, bias).backward(dy)
    assert_close(leaves[wanted].grad, together[1 + list(leaves).index(wanted)])
    assert all(t.grad is None for name, t in leaves.items() if name != wanted)


STRANGE = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_innermost": lambda x: x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_positions": lambda x: x[..., :1].expand_as(x),
    "flipped": lambda x: x.flip(1),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strides_do_not_matter(name: str) -> None:
    x, weight, bias, dy = tensors(10, (3, 6, 5, 4), (6,), (6,), (3, 6, 5, 4))
    strange = STRANGE[name](x)
    plain = strange.contiguous()

    def run(t: Tensor, grad: Tensor) -> list[Tensor]:
        leaf = t.detach().requires_grad_()
        y = normalize(leaf, NORMS["gn"][0], weight, bias)
        return [y.detach(), *torch.autograd.grad(y, leaf, grad)]

    assert_close(run(strange, STRANGE[name](dy)), run(plain, STRANGE[name](dy).contiguous()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(2, 6, 5, 4), (2, 1, 4, 5), (3, 6, 1, 1), (2, 1, 3, 4, 5), (1, 6, 7, 2)], ids=str
)
def test_channels_last_is_kept_and_changes_no_value(shape: tuple[int, ...], device: str) -> None:
    x, weight, bias, dy = (t.to(device) for t in tensors(11, shape, shape[1:2], shape[1:2], shape))
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    results = []
    for leaf in (
        x.clone(),
        x.clone(memory_format=layout),
        torch.empty_strided(
            shape,
            torch.empty(shape).contiguous(memory_format=layout).stride(),
            dtype=x.dtype,
            device=device,
        ).copy_(x),
    ):
        leaf.requires_grad_()
        y = normalize(leaf, NORMS["ln"][0], weight, bias)
        grads = torch.autograd.grad(y, leaf, dy)
        results.append((y.detach(), *grads))
        if leaf.is_contiguous(memory_format=layout):
            assert y.is_contiguous(memory_format=layout)
            assert normalize(leaf.bfloat16(), NORMS["ln"][0], weight, bias).is_contiguous(
                memory_format=layout
            )
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_one_channel_in_channels_last_strides_equals_contiguous() -> None:
    # Such a tensor counts as both: torch's own kernels then read it by the other layout.
    x, weight, bias = tensors(12, (2, 1, 4, 4), (1,), (1,), dtype=torch.float32)
    strange = torch.empty_strided(x.shape, (16, 1, 4, 1)).copy_(x)
    assert strange.is_contiguous() and strange.is_contiguous(memory_format=torch.channels_last)
    got = normalize(strange, instance_rule, weight, bias)
    assert_close(got, instance_norm(x, weight, bias))


def test_a_summed_output_sends_back_an_expanded_gradient() -> None:
    x, weight, bias = tensors(13, (2, 6, 5, 4), (6,), (6,))
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        w = weight.clone().requires_grad_()
        (normalize(leaf, NORMS["gn"][0], w, bias) * 1).sum().backward()
        expected = outputs_and_grads(NORMS["gn"][1], (x, weight, bias), torch.ones_like(x))
        assert_close([leaf.grad, w.grad], expected[1:3], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "shape", [(0, 6), (0, 6, 4, 4), (2, 6, 0, 4), (2, 6, 0), (0, 6, 0, 3)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_input_has_zero_gradients(shape: tuple[int, ...], layout: str) -> None:
    x, weight, bias = tensors(14, shape, (6,), (6,), dtype=torch.float32)
    if layout == "channels_last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = normalize(leaves[0], NORMS["gn"][0], *leaves[1:])
    assert y.shape == shape
    y.sum().backward()
    for leaf in leaves:
        assert_close(leaf.grad, torch.zeros_like(leaf))


CHECKED = [(4, 6), (2, 6, 3), (2, 6, 2, 2), (1, 6, 1, 1), (2, 6, 1, 2, 2), (3, 6, 1)]


@pytest.mark.parametrize("shape", CHECKED, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_first_and_second_derivatives_match_finite_differences(
    shape: tuple[int, ...], layout: str
) -> None:
    x, weight, bias = tensors(15, shape, (6,), (6,))
    if layout == "channels_last":
        if len(shape) != 4:
            pytest.skip("channels_last is tested in 4D")
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = tuple(t.requires_grad_() for t in (x, weight, bias))

    def norm(*t: Tensor) -> Tensor:
        return normalize(t[0], NORMS["gn"][0], *t[1:])

    assert gradcheck(norm, leaves)
    assert gradgradcheck(norm, leaves)


def test_by_running_statistics_derivatives_are_right() -> None:
    (x,) = tensors(16, (2, 3, 4))
    running = nn.BatchNorm1d(3).double().eval()
    randomize(running, 16)

    def norm(*t: Tensor) -> Tensor:
        return normalize_by_running(t[0], running)

    slope = running.weight / (running.running_var + running.eps).sqrt()
    centered = x - running.running_mean.view(3, 1)
    leaves = (x.requires_grad_(), running.weight, running.bias)
    assert_close(norm(*leaves), slope.view(3, 1) * centered + running.bias.view(3, 1))
    assert gradcheck(norm, leaves)
    assert gradgradcheck(norm, leaves)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean, std", [(1e4, 1.0), (100.0, 0.01), (-1e4, 1.0)])
def test_variance_survives_a_mean_of_ten_thousand_deviations(
    mean: float, std: float, layout: str
) -> None:
    x, weight, bias, dy = tensors(17, (2, 6, 31, 37), (6,), (6,), (2, 6, 31, 37))
    x = (mean + std * x).float()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    seen = []

    def rule(m: Tensor, v: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(v.detach())
        return NORMS["gn"][0](m, v, w, b)

    narrow = (x, weight.float(), bias.float())
    exact_inputs = tuple(t.double() for t in narrow)
    ours = outputs_and_grads(lambda *t: normalize(t[0], rule, *t[1:]), narrow, dy.float())
    native = outputs_and_grads(NORMS["gn"][1], narrow, dy.float())
    exact = outputs_and_grads(NORMS["gn"][1], exact_inputs, dy.float().double())
    assert_close(seen[0].double(), x.double().var((2, 3), correction=0), rtol=5e-4, atol=0)
    # One unit in the last place of x is 1e-3 deviations here: that much a float32 mean may be off.
    assert_close(ours[0].double(), exact[0], rtol=0, atol=5e-3)
    for name, mine, torchs, truth in zip("ywxb", ours, native, exact, strict=True):
        error = (mine.double() - truth).abs().max()
        limit = 2 * (torchs.double() - truth).abs().max() + 1e-3 * truth.abs().max()
        assert error <= limit, (name, float(error), float(limit))


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_constant_rows_stay_finite(value: float) -> None:
    weight, bias, dy = tensors(18, (6,), (6,), (2, 6, 5, 5), dtype=torch.float32)
    x = torch.full((2, 6, 5, 5), value)
    y, *grads = outputs_and_grads(
        lambda *t: normalize(t[0], instance_rule, *t[1:]), (x, weight, bias), dy
    )
    assert_close(y, bias.view(1, 6, 1, 1).expand_as(y))
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    x, weight, bias, dy = tensors(19, (2, 6, 5, 4), (6,), (6,), (2, 6, 5, 4))

    def norm(*t: Tensor) -> Tensor:
        return normalize(t[0], NORMS["gn"][0], *t[1:])

    def checkpointed(*t: Tensor) -> Tensor:
        y: Tensor = checkpoint(norm, *t, use_reentrant=reentrant)
        return y

    inputs = (x, weight, bias)
    assert_close(outputs_and_grads(checkpointed, inputs, dy), outputs_and_grads(norm, inputs, dy))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating type, got torch.int64"):
        normalize(
            torch.ones(2, 3, 4, dtype=torch.long), instance_rule, torch.ones(3), torch.zeros(3)
        )


def test_meta_tensors_give_shapes() -> None:
    x = torch.randn(2, 6, 5, 5, device="meta", requires_grad=True)
    parameters = [torch.ones(6, device="meta", requires_grad=True) for _ in range(2)]
    y = normalize(x, NORMS["gn"][0], *parameters)
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.is_meta
