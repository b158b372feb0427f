"""What holds for every norm: types, layouts, empty input, copies, checkpointing, freezing."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.families import FAMILIES
from tests.norms.oracles import randomize, tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
C = 6
every_norm = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, channels: int = C, seed: int = 0, **kwargs: object) -> nn.Module:
    norm = FAMILIES[family](channels, **kwargs)
    randomize(norm, seed)
    return norm


def gradients(norm: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient; a missing one fails."""
    grads = {}
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad
    return grads


def step(norm: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    y = norm(leaf)
    y.backward(dy)
    assert leaf.grad is not None
    return y.detach(), leaf.grad, gradients(norm)


@every_norm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_input_types_and_autocast(family: str, dtype: torch.dtype, device: str) -> None:
    x, dy = (t.to(device) for t in tensors(1, (2, C, 9, 7), (2, C, 9, 7)))
    x, dy = (3 + x).to(dtype), dy.to(dtype)
    norm = build(family).to(device)
    exact = copy.deepcopy(norm).double()
    y, dx, grads = step(norm, x, dy)
    assert y.dtype == dx.dtype == dtype
    expected = step(exact, x.double(), dy.double())
    tolerance = max(4 * torch.finfo(dtype).eps, 2e-5)
    assert_close(y.double(), expected[0], rtol=tolerance, atol=tolerance)
    assert_close(dx.double(), expected[1], rtol=4 * tolerance, atol=4 * tolerance)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        assert_close(grad.double(), expected[2][name], rtol=1e-3, atol=1e-3, msg=name)
    if dtype in (torch.bfloat16, torch.float16):
        again = build(family).to(device)
        with torch.autocast(device, dtype):
            assert_close(again(x), y, rtol=0, atol=0)
            assert again(x.float()).dtype == torch.float32


@every_norm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_another_type_train_and_evaluate(family: str, dtype: torch.dtype) -> None:
    x, dy = tensors(2, (2, C, 5, 5), (2, C, 5, 5))
    norm, exact = build(family).to(dtype), build(family).to(dtype).double()
    y, dx, grads = step(norm, x.to(dtype), dy.to(dtype))
    expected = step(exact, x.to(dtype).double(), dy.to(dtype).double())
    tolerance = 16 * torch.finfo(dtype).eps
    assert_close(y.double(), expected[0], rtol=tolerance, atol=tolerance)
    assert_close(dx.double(), expected[1], rtol=tolerance, atol=tolerance)
    assert all(g.dtype == dtype and torch.isfinite(g).all() for g in grads.values())
    assert all(b.dtype in (dtype, torch.long) for b in norm.buffers())
    y = norm.eval()(x.to(dtype))
    assert_close(y.double(), exact.eval()(x.to(dtype).double()), rtol=tolerance, atol=2 * tolerance)


@every_norm
def test_constructor_device_and_type(family: str) -> None:
    norm = FAMILIES[family](C, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in norm.parameters())
    x = torch.randn(2, C, 5, 5, device="meta", requires_grad=True)
    for training in (True, False):
        norm.train(training)
        norm(x).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert f"{C}" in repr(norm)


@every_norm
@pytest.mark.parametrize("device", DEVICES)
def test_channels_last_is_kept_and_changes_no_value(family: str, device: str) -> None:
    x, dy = (t.to(device) for t in tensors(3, (2, C, 5, 4), (2, C, 5, 4)))
    norm = build(family).double().to(device)
    other = copy.deepcopy(norm)
    plain = step(norm, x, dy)
    last = x.contiguous(memory_format=torch.channels_last)
    permuted = step(other, last, dy.contiguous(memory_format=torch.channels_last))
    assert_close(permuted, plain)
    assert permuted[0].is_contiguous(memory_format=torch.channels_last)
    assert permuted[1].is_contiguous(memory_format=torch.channels_last)
    assert plain[0].is_contiguous() and plain[1].is_contiguous()
    for training in (True, False):
        with torch.no_grad():
            y = norm.train(training)(last)
        assert y.is_contiguous(memory_format=torch.channels_last)


@every_norm
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, C, 7, 7), (0, C, 0, 0), (3, C, 0, 7)], ids=str)
def test_empty_batches_give_zero_gradients_and_move_nothing(
    family: str, training: bool, shape: tuple[int, ...]
) -> None:
    norm = build(family).train(training)
    with torch.no_grad():
        norm(*tensors(4, (2, C, 5, 5), dtype=torch.float32))  # fixes ratios that are one-hot
    before = copy.deepcopy(dict(norm.named_buffers()))
    y, dx, grads = step(norm, torch.zeros(shape), torch.zeros(shape))
    assert y.shape == dx.shape == shape
    for grad in grads.values():
        assert_close(grad, torch.zeros_like(grad))
    assert_close(dict(norm.named_buffers()), before, rtol=0, atol=0)


@every_norm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 4), (1, 1, 1, 1), (3, C, 1, 1), (1, 7, 1, 1), (1, 5, 13, 3)], ids=str
)
def test_odd_shapes_and_single_positions_stay_finite(
    family: str, shape: tuple[int, ...], device: str
) -> None:
    norm = FAMILIES[family](shape[1])
    randomize(norm, 5)
    norm = norm.to(device)
    x, dy = (t.to(device) for t in tensors(5, shape, shape, dtype=torch.float32))
    y, dx, grads = step(norm, x, dy)
    assert torch.isfinite(y).all() and torch.isfinite(dx).all()
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert all(torch.isfinite(b).all() for b in norm.buffers())
    assert torch.isfinite(norm.eval()(x)).all()


@every_norm
@pytest.mark.parametrize("mean, std", [(1e4, 1.0), (100.0, 0.01)])
def test_a_mean_of_ten_thousand_deviations_costs_few_digits(
    family: str, mean: float, std: float
) -> None:
    x, dy = tensors(6, (4, C, 19, 23), (4, C, 19, 23))
    x, dy = (mean + std * x).float(), dy.float()
    norm = FAMILIES[family](C)
    exact = copy.deepcopy(norm).double()
    for _ in range(2):
        y, dx, grads = step(norm, x, dy)
        expected = step(exact, x.double(), dy.double())
    scale = expected[0].abs().max()
    assert_close(y.double() / scale, expected[0] / scale, rtol=0, atol=3e-3)
    scale = expected[1].abs().max()
    assert_close(dx.double() / scale, expected[1] / scale, rtol=0, atol=3e-3)
    assert all(torch.isfinite(g).all() for g in grads.values())
    for name, buffer in norm.named_buffers():
        if name.endswith("running_var"):
            assert (buffer >= 0).all()
            truth = dict(exact.named_buffers())[name]
            assert_close(buffer.double(), truth, rtol=1e-3, atol=1e-6 * std**2)


@every_norm
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_plain_operators_and_passes_are_one_function(
    family: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small maps on a CPU take plain operators, larger ones the passes."""
    x, dy = tensors(23, (3, C, 5, 4), (3, C, 5, 4))
    results = []
    for small in (0, x.numel()):
        monkeypatch.setattr(sys.modules["wsbcn_d2.norms.normalize"], "_SMALL", small)
        norm = build(family).double().train(training)
        y, dx, grads = step(norm, x, dy)
        results.append({"y": y, "dx": dx, **grads, **dict(norm.named_buffers())})
    assert_close(*results, rtol=1e-9, atol=1e-9)


@every_norm
def test_only_the_input_is_saved_whole(family: str) -> None:
    x = torch.randn(2, C, 40, 40, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    norm = build(family)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        norm(x)
    assert saved.pop(x.untyped_storage().data_ptr()) == x.untyped_storage().nbytes()
    assert 0 < sum(saved.values()) < x.untyped_storage().nbytes() / 4
    assert max(saved.values()) <= 2 * C * 8


@every_norm
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
def test_checkpointing_moves_estimates_once(family: str, reentrant: bool, device: str) -> None:
    """Design trap 12."""
    x, dy = (t.to(device) for t in tensors(7, (2, C, 5, 4), (2, C, 5, 4)))
    plain, checked = (build(family).double().to(device) for _ in range(2))
    for seed in range(2):  # two micro-batches
        inputs = (x + seed).requires_grad_()
        plain(inputs).backward(dy)
        wanted, inputs.grad = inputs.grad, None
        checkpoint(checked, inputs, use_reentrant=reentrant).backward(dy)
        assert_close(inputs.grad, wanted)
    assert_close(gradients(checked), gradients(plain))
    assert_close(checked.state_dict(), plain.state_dict())
    for name, buffer in checked.named_buffers():
        assert not name.endswith("num_batches_tracked") or buffer in (0, 2)


@every_norm
def test_several_calls_before_backward_equal_one_by_one(family: str) -> None:
    (x, dy) = tensors(8, (3, 2, C, 5, 4), (3, 2, C, 5, 4))
    together, apart = (build(family).double() for _ in range(2))
    leaves = x.clone().requires_grad_()
    sum((together(leaf) * g).sum() for leaf, g in zip(leaves, dy, strict=True)).backward()
    apart_dx = []
    for part, g in zip(x, dy, strict=True):
        leaf = part.clone().requires_grad_()
        apart(leaf).backward(g)
        apart_dx.append(leaf.grad)
    assert_close(leaves.grad, torch.stack(apart_dx))
    assert_close(gradients(together), gradients(apart))
    assert_close(together.state_dict(), apart.state_dict())


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_inplace_relu_and_repeated_backward(family: str, training: bool) -> None:
    x, dy = tensors(9, (2, C, 5, 4), (2, C, 5, 4))
    results = []
    for inplace in (True, False):
        norm = build(family).double().train(training)
        leaf = x.clone().requires_grad_()
        y = F.relu(norm(leaf), inplace=inplace)
        y.backward(dy, retain_graph=True)
        y.backward(dy)
        results.append((y.detach(), leaf.grad, gradients(norm)))
    assert_close(results[0], results[1])


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_expanded_output_gradients_and_strided_inputs(family: str, training: bool) -> None:
    (x,) = tensors(10, (4, 3, C, 5))
    strange = x.permute(1, 2, 3, 0)  # (3, C, 5, 4), no layout that has a name
    results = []
    for leaf, dy in (
        (strange, torch.ones(()).double().expand(3, C, 5, 4)),
        (strange.contiguous(), torch.ones(3, C, 5, 4).double()),
    ):
        norm = build(family).double().train(training)
        results.append(step(norm, leaf, dy))
    assert_close(results[0], results[1])


@every_norm
@pytest.mark.parametrize("shape", [(2, C, 2, 2), (1, C, 1, 3), (3, C, 1, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_match_finite_differences(
    family: str, training: bool, shape: tuple[int, ...]
) -> None:
    # No gradient flows through estimates, which do not depend on x at momentum 0, nor through BRN's
    # corrections, which are constants at these limits.
    options = {"bcn": {"momentum": 0.0}, "brn": {"r_max": 1.0, "d_max": 0.0}}.get(family, {})
    norm = build(family, **options).double().train(training)
    if family == "ssn":
        # away from sparsemax's corners
        with torch.no_grad():
            norm.mean_weight.copy_(torch.tensor([0.3, 0.5, 0.2]))
            norm.var_weight.copy_(torch.tensor([0.5, 0.05, 0.4]))
    names, parameters = zip(*norm.named_parameters(), strict=True)
    (x,) = tensors(11, shape)

    def run(leaf: Tensor, *values: Tensor) -> Tensor:
        norm.train(training)  # gradcheck writes through .data, which SSN's cache does not see
        y: Tensor = torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (leaf,))
        return y

    inputs = (x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters))
    large = shape == (2, C, 2, 2)
    assert gradcheck(run, inputs, fast_mode=large)
    if large:
        assert gradgradcheck(run, inputs, fast_mode=True)


@every_norm
def test_copies_behave_as_the_original(family: str) -> None:
    norm = build(family)
    x, dy = tensors(12, (2, C, 5, 4), (2, C, 5, 4), dtype=torch.float32)
    step(norm, x, dy)
    norm.eval()(x)  # fills what a layer may have cached
    norm.train()
    saved = io.BytesIO()
    torch.save(norm.state_dict(), saved)
    saved.seek(0)
    loaded = FAMILIES[family](C)
    assert loaded.load_state_dict(torch.load(saved)) == nn.modules.module._IncompatibleKeys([], [])
    copies = [copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), loaded]
    expected = step(copy.deepcopy(norm), x, dy)
    for other in copies:
        assert_close(step(other, x, dy), expected, rtol=0, atol=0)
        assert_close(other.eval()(x), norm_after(norm, x, dy), rtol=0, atol=0)


def norm_after(norm: nn.Module, x: Tensor, dy: Tensor) -> Tensor:
    other = copy.deepcopy(norm)
    step(other, x, dy)
    y: Tensor = other.eval()(x)
    return y


@every_norm
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_evaluation_never_writes(family: str, mode: str) -> None:
    norm = build(family).eval()
    before = copy.deepcopy(norm.state_dict())
    versions = [b._version for b in norm.buffers()]
    x = torch.randn(2, C, 5, 4, generator=torch.Generator().manual_seed(13))
    context = {
        "grad": torch.enable_grad(),
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
    }[mode]
    with context:
        first, second = norm(x), norm(x)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert versions == [b._version for b in norm.buffers()]
    assert_close(norm(x[:1]), first[:1].clone(), msg="a sample's output depends on its batch")
    norm(x.requires_grad_()).sum().backward()  # what inference mode left behind does no harm


@every_norm
def test_training_without_gradient_moves_the_same_statistics(family: str) -> None:
    x, dy = tensors(14, (2, C, 5, 4), (2, C, 5, 4), dtype=torch.float32)
    with_grad, without = build(family), build(family)
    step(with_grad, x, dy)
    with torch.no_grad():
        without(x)
    assert_close(without.state_dict(), with_grad.state_dict())


@every_norm
def test_frozen_layers_use_their_evaluation_statistics_and_stay(family: str) -> None:
    """Design trap 5: freezing is requires_grad=False on all parameters, in training mode."""
    norm = build(family)
    norm(*tensors(15, (2, C, 5, 4), dtype=torch.float32))
    frozen = copy.deepcopy(norm)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    (x,) = tensors(16, (2, C, 5, 4), dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    assert frozen.training
    y = frozen(leaf)
    assert_close(y, norm.eval()(x))
    y.sum().backward()
    assert leaf.grad is not None and all(p.grad is None for p in frozen.parameters())
    assert_close(frozen.state_dict(), before, rtol=0, atol=0)


@every_norm
def test_batch_norm_converters_leave_the_norm_alone(family: str) -> None:
    """Design trap 5: these turn every subclass of BatchNorm into something else."""
    norm = build(family)
    model = nn.Sequential(nn.Conv2d(3, C, 1), norm, nn.BatchNorm2d(C))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norm.modules())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted[1] is norm and type(converted[2]) is nn.SyncBatchNorm
    layers = pytest.importorskip("detectron2.layers", reason="detectron2 is not installed")
    model = nn.Sequential(norm, nn.BatchNorm2d(C))
    kinds = [type(m) for m in norm.modules()]
    converted = layers.FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert converted[0] is norm and [type(m) for m in norm.modules()] == kinds
    assert type(converted[1]) is layers.FrozenBatchNorm2d


@every_norm
@pytest.mark.parametrize("shape", [(2, C), (2, C, 5), (C, 5, 5), (2, C, 3, 4, 5), (C,)], ids=str)
def test_input_of_another_dimension_is_refused(family: str, shape: tuple[int, ...]) -> None:
    norm = build(family)
    with pytest.raises(
        ValueError, match=rf"{type(norm).__name__} expects 4D input, got {len(shape)}D"
    ):
        norm(torch.zeros(shape))


@every_norm
def test_input_of_another_channel_count_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match=rf"num_features={C} channels, got {C + 1}"):
        build(family)(torch.zeros(2, C + 1, 3, 3))


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_compiled_graphs_are_whole_and_right(family: str, training: bool) -> None:
    x, dy = tensors(17, (2, C, 5, 4), (2, C, 5, 4))
    eager, traced = (build(family).double().train(training) for _ in range(2))
    torch.compiler.reset()
    # AOT autograd also traces the backward pass; dynamo alone is enough for the other families.
    backend = "aot_eager" if family in ("sn_grouped", "bcn", "bcn_batch") else "eager"
    compiled = torch.compile(traced, backend=backend, fullgraph=True)
    expected = step(eager, x, dy)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    y.backward(dy)
    assert_close((y.detach(), leaf.grad, gradients(traced)), expected)
    assert_close(traced.state_dict(), eager.state_dict())
