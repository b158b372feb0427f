"""What a layer launches on CUDA: counted in Triton's interpreter, or on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.norms.families import FAMILIES
from wsbcn_d2.norms import kernels, standardize_weight

pytest.importorskip("triton", reason="triton is not installed")
import triton

from wsbcn_d2.norms.kernels import tiling, triton_passes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What launches nothing: allocations and views.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "detach", "view", "select", "slice"),
    *("unbind", "split", "t", "unsqueeze", "squeeze", "alias", "as_strided", "_unsafe_view"),
    *("_reshape_alias", "expand", "chunk"),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*trains on one sample"),
    pytest.mark.usefixtures("triton_runs", "on_triton"),
]


class Launches(TorchDispatchMode):
    """The names of kernels and of torch's operators, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(f"torch.{name}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE.type != "cuda":
        monkeypatch.setattr(kernels, "triton_for", lambda device: triton_passes)
    yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    mode = Launches()
    if DEVICE.type == "cuda":
        owner, method = triton.runtime.jit.JITFunction, "run"
    else:
        from triton.runtime.interpreter import GridExecutor

        owner, method = GridExecutor, "__call__"
    launch = getattr(owner, method)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode.names.append(getattr(self, "fn", self).__name__)
        with _disable_current_modes():  # the interpreter copies what a GPU would not
            return launch(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, counted)
    return mode


def step(
    norm: torch.nn.Module, x: Tensor, dy: Tensor, mode: Launches
) -> tuple[list[str], list[str]]:
    x.requires_grad_()
    with mode:
        y = norm(x)
        forward, mode.names = mode.names, []
        torch.autograd.grad(y, [x, *norm.parameters()], dy)
    return forward, mode.names


FORWARD = ["_moments_kernel", "_write_kernel"]
BACKWARD = {"sn": ["_reduce_kernel", "_sums_kernel", "_dx_kernel"]}
BACKWARD["bcn"] = ["_reduce_kernel", "_groups_kernel", "_dx_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("family", ["sn", "sn_in_ln", "sync_sn", "bcn", "bcn_batch"])
def test_two_launches_forward_and_three_backward(
    family: str, layout: torch.memory_format, dtype: torch.dtype, launches: Launches
) -> None:
    norm = FAMILIES[family](6).to(DEVICE)
    x, dy = (
        torch.randn(2, 6, 4, 4, device=DEVICE).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    forward, backward = step(norm, x, dy, launches)
    assert forward == FORWARD
    assert backward == BACKWARD["bcn" if family.startswith("bcn") else "sn"]


@pytest.mark.parametrize("family", ["sn", "bcn"])
def test_one_more_where_rows_are_split_or_samples_are_many(
    family: str, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = FAMILIES[family](2).to(DEVICE)
    x, dy = torch.randn(2, 9, 2, 1, 2, device=DEVICE)
    assert step(norm, x, dy, launches)[0] == ["_moments_kernel", "_pool_kernel", "_write_kernel"]
    launches.names = []
    monkeypatch.setattr(tiling, "wanted_programs", lambda device: 100)
    x, dy = torch.randn(2, 1, 2, 70, 64, device=DEVICE)
    forward, backward = step(norm, x, dy, launches)
    assert forward == ["_moments_kernel", "_combine_kernel", "_write_kernel"]
    assert backward == BACKWARD[family]


def test_a_weight_takes_one_launch_each_way(launches: Launches) -> None:
    weight = torch.randn(4, 3, 3, 3, device=DEVICE, requires_grad=True)
    grad = torch.randn_like(weight)
    with launches:
        standardized = standardize_weight(weight)
        torch.autograd.grad(standardized, weight, grad)
    assert launches.names == ["_standardize_kernel", "_standardize_backward_kernel"]
