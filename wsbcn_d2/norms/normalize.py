"""One autograd function for all norms: y = scale * (x - mean) + offset, row by row.

Every norm of this package is an affine map of each (sample, channel) row whose two numbers are a
differentiable function of the row statistics and the parameters. A norm is therefore a small pure
*rule*::

    def rule(mean, var, *pooled, *parameters):   # (N, C), (N, C), (C,) each, the parameters
        return scale, offset                     # each broadcastable to (N, C)

and, where it needs the batch, a *pool* that gives ``pooled`` (see `pooling`). `normalize` does the
rest with the memory traffic of native group norm: two reads and a write forward, four reads and a
write backward. What is kept for the backward pass is ``x`` itself and (N, C)-sized numbers; the
rule runs again there, under autograd.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .modes import autocasting, full_precision, tracing
from .pooling import BatchPool, Pool, RunningPool

__all__ = ["Rule", "check_input", "normalize", "normalize_by_running"]

Rule = Callable[..., Any]

# Elements of a map on CPU up to which plain operators take less time than the passes, which save
# memory that is not there to save.
_SMALL = 32768


def normalize(x: Tensor, rule: Rule, *parameters: Tensor, pool: Pool | None = None) -> Tensor:
    """``scale * (x - mean) + offset``, where ``rule(mean, var, *pooled, *parameters)`` gives both.

    Args:
        x: ``(N, C, *)``, any floating type, contiguous or channels_last; may be empty.
        rule: a pure function of float32 tensors (float64 if ``x`` is), differentiable. It may run
            again in the backward pass. Two methods that it may have save operators where plain
            ones are taken: ``about``, which takes the same and returns ``center, scale, offset``
            for ``scale * (x - center) + offset``, and ``apply(x, *pooled, *parameters)``, the
            norm in torch's own layers.
        parameters: tensors that gradients are wanted for. They reach the rule in its type.
        pool: gives ``pooled``; called once in a forward. None: the rule needs none.

    Returns:
        A tensor with the shape, type and memory format of ``x``. Twice differentiable: the second
        derivative is taken through plain operators, at their memory cost.

    Raises:
        ValueError: ``x`` is not of a floating type.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating type, got {x.dtype}; convert it with x.float()")
    if tracing():
        return _compose(x, rule, parameters, pool)
    if autocasting(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return normalize(x, rule, *parameters, pool=pool)
    among_ranks = isinstance(pool, BatchPool) and pool.ranks is not None
    if x.is_cpu and 0 < x.numel() <= _SMALL and not among_ranks:
        return _compose(x, rule, parameters, pool)
    fused = kernels.fused_for(x, rule, pool)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        if fused is not None:
            return _Fused.apply(x, fused, rule, pool, *parameters)
        return _Normalize.apply(x, rule, pool, *parameters)
    if fused is not None:
        y: Tensor = fused.forward(x, rule, pool, parameters)[0]
        return y
    return _forward(x, rule, pool, parameters)[0]


def normalize_by_running(x: Tensor, module: nn.Module, *unused: Tensor) -> Tensor:
    """Batch normalization by the running statistics of ``module``, for which no row is read.

    Args:
        x: ``(N, C, *)``, of any floating type.
        module: has ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``eps``.
        unused: parameters whose gradients are zero, and not None, where they train.
    """
    dtype = kernels.accumulation_dtype(x)
    center, spread = RunningPool(module).running(dtype)
    weight, bias = _as(dtype, (module.weight, module.bias))  # type: ignore[arg-type]
    if torch.is_grad_enabled():
        for parameter in unused:
            if parameter.requires_grad:
                weight = weight + 0 * parameter.sum()
    return F.batch_norm(x, center, spread, weight, bias, eps=module.eps)  # type: ignore[arg-type]


def check_input(module: nn.Module, x: Tensor, dims: Sequence[int] = (4,)) -> None:
    """Check an input against what its norm was made for.

    Args:
        module: has ``num_features``.
        dims: how many dimensions ``x`` may have.

    Raises:
        ValueError: ``x`` has another number of dimensions, or of channels.
    """
    name = type(module).__name__
    if x.dim() not in dims:
        raise ValueError(
            f"{name} expects {' or '.join(f'{d}D' for d in dims)} input, "
            f"got {x.dim()}D of shape {tuple(x.shape)}"
        )
    if x.shape[1] != module.num_features:
        raise ValueError(
            f"{name} was made for num_features={module.num_features} channels, "
            f"got {x.shape[1]} (shape {tuple(x.shape)})"
        )


def _compose(x: Tensor, rule: Rule, parameters: tuple[Tensor, ...], pool: Pool | None) -> Tensor:
    """The same function from differentiable operators: for tracers and second derivatives, and for
    maps so small that nothing else is faster."""
    dtype = kernels.accumulation_dtype(x)
    wide = x if x.dtype == dtype else x.to(dtype)
    parameters = tuple(_as(dtype, parameters))
    mean, var = _row_moments(wide)
    pooled = () if pool is None else pool(mean, var)
    if hasattr(rule, "apply"):
        y: Tensor = rule.apply(wide, *pooled, *parameters)
    else:
        if hasattr(rule, "about"):
            center, scale, offset = rule.about(mean, var, *pooled, *parameters)
        else:
            scale, offset = rule(mean, var, *pooled, *parameters)
            center = mean
        if tracing():  # a shape would carry the example's N into the graph of an exporter
            index = (..., *(None,) * (x.dim() - 2))
            center, scale, offset = center[index], scale[index], offset[index]
        else:
            ones = (1,) * (x.dim() - 2)
            center = center.view(center.shape + ones)
            scale, offset = scale.view(scale.shape + ones), offset.view(offset.shape + ones)
        y = torch.addcmul(offset, wide - center, scale)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _row_moments(wide: Tensor) -> tuple[Tensor, Tensor]:
    if wide.dim() == 2:
        return wide, torch.zeros_like(wide)
    dims = tuple(range(2, wide.dim()))
    if torch.compiler.is_dynamo_compiling():  # the compiler knows how to take both at once
        return wide.mean(dims), wide.var(dims, correction=0)
    if tracing():  # exporters do not know var_mean
        mean = wide.mean(dims)
        return mean, (wide - wide.mean(dims, keepdim=True)).square().mean(dims)
    var, mean = torch.var_mean(wide, dims, correction=0)
    return mean, var


def _forward(
    x: Tensor, rule: Rule, pool: Pool | None, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The result, then the statistics: those of rows, and what was pooled."""
    mean, var = kernels.moments(x)
    statistics = (mean, var, *(() if pool is None else pool(mean, var)))
    scale, offset = rule(*statistics, *_as(mean.dtype, parameters))
    return kernels.transform(x, mean, scale, offset), *statistics


def _as(dtype: torch.dtype, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, pool: Pool | None, *parameters: Tensor) -> Tensor:
        y, *statistics = _forward(x, rule, pool, parameters)
        ctx.save_for_backward(x, *statistics, *parameters)
        ctx.rule, ctx.pool, ctx.count = rule, pool, len(statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        statistics, parameters = rest[: ctx.count], tuple(rest[ctx.count :])
        with full_precision(x.device.type):
            if torch.is_grad_enabled():  # create_graph=True
                dx, grads = _differentiable_backward(ctx, x, statistics, parameters, dy)
            else:
                dx, grads = _backward(ctx, x, statistics, parameters, dy)
        return dx, None, None, *grads


Gradients = tuple[Tensor | None, list[Tensor | None]]


def _backward(
    ctx: Any, x: Tensor, statistics: list[Tensor], parameters: tuple[Tensor, ...], dy: Tensor
) -> Gradients:
    mean = statistics[0]
    dy_sum, dy_dot = kernels.reduce_gradient(dy, x, mean)
    wanted = ctx.needs_input_grad[3:]
    through_pool = ctx.pool is not None and ctx.pool.differentiable
    # Of the statistics, those of rows and the first two pooled ones depend on x.
    depend = 2 + 2 * through_pool
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(i < depend) for i, t in enumerate(statistics)]
        copies = [
            p.detach().to(mean.dtype).requires_grad_(w)
            for p, w in zip(parameters, wanted, strict=True)
        ]
        scale, offset = ctx.rule(*leaves, *copies)
        outputs = [
            (output, grad.sum_to_size(output.shape))
            for output, grad in ((scale, dy_dot), (offset, dy_sum))
            if output.requires_grad
        ]
        inputs = [t for t in (*leaves, *copies) if t.requires_grad]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in outputs], inputs, [grad for _, grad in outputs],
            allow_unused=True, materialize_grads=True,
        )
        if outputs and inputs
        else [torch.zeros_like(t) for t in inputs]
    )  # fmt: skip
    of_statistics = [next(found) for _ in range(depend)]
    grads = [
        next(found).to(p.dtype) if w else None for p, w in zip(parameters, wanted, strict=True)
    ]
    scale = scale.detach()
    # y also depends on the mean by -scale * mean.
    dmean, dvar = torch.addcmul(of_statistics[0], scale, dy_sum, value=-1), of_statistics[1]
    if through_pool:
        back = ctx.pool.backward(mean, statistics[2], *of_statistics[2:])
        dmean, dvar = dmean + back[0], dvar + back[1]
    dx = None
    if ctx.needs_input_grad[0]:
        dx = kernels.input_gradient(dy, x, mean, scale, dmean, dvar)
    return dx, grads


class _Fused(torch.autograd.Function):
    """`_Normalize` in kernels that have the rule and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fused: Any, rule: Rule, pool: Pool | None, *parameters: Tensor
    ) -> Tensor:
        y, rows, kept = fused.forward(x, rule, pool, parameters)
        ctx.save_for_backward(x, rows, kept, *parameters)
        ctx.fused, ctx.rule, ctx.pool = fused, rule, pool
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, kept, *rest = ctx.saved_tensors
        parameters = tuple(rest)
        grads: Sequence[Tensor | None]
        with full_precision(x.device.type):
            if torch.is_grad_enabled():  # create_graph=True
                statistics = [*rows, *kept[: 2 * x.shape[1]].chunk(2)]
                dx, grads = _differentiable_backward(ctx, x, statistics, parameters, dy)
            else:
                dx, found = ctx.fused.backward(dy, x, rows, kept, ctx.rule, ctx.pool, parameters)
                grads = [
                    g if g.dtype == p.dtype else g.to(p.dtype)
                    for g, p in zip(found, parameters, strict=True)
                ]
        return dx, None, None, None, *grads


class _Again:
    """What a forward pooled: of its batch, differentiably; of earlier ones, as it was then."""

    differentiable, fused = False, None

    def __init__(self, pool: Pool, pooled: list[Tensor]) -> None:
        self._pool, self._pooled = pool, pooled

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        if not self._pool.differentiable:
            return tuple(self._pooled)
        pool = copy.copy(self._pool)
        pool.used = None  # type: ignore[attr-defined]
        return (*pool(mean, var), *self._pooled[2:])


def _differentiable_backward(
    ctx: Any, x: Tensor, statistics: list[Tensor], parameters: tuple[Tensor, ...], dy: Tensor
) -> Gradients:
    pool = None if ctx.pool is None else _Again(ctx.pool, statistics[2:])
    y = _compose(x, ctx.rule, parameters, pool)
    inputs = [t for t in (x, *parameters) if t.requires_grad]
    found = iter(
        torch.autograd.grad(
            y, inputs, dy, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    dx, *grads = (next(found) if t.requires_grad else None for t in (x, *parameters))
    return dx, grads
