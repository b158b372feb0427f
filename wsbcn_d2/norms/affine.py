"""One autograd function for all norms: y = scale * (x - mean) + offset, row by row.

Every norm of this package is an affine map of each (sample, channel) row whose two numbers are a
differentiable function of the row statistics and the parameters. A norm is therefore one small
*rule*::

    def rule(mean, var, *parameters):   # (N, C), (N, C), the module's parameters
        return scale, offset            # each broadcastable to (N, C)

and `normalize` does the rest with the memory traffic of native group norm: two reads and a write
forward, four reads and a write backward. What is kept for the backward pass is ``x`` itself and
(N, C)-sized numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .closed_forms import Form
from .passes import accumulation_dtype, input_gradient, moments, reduce_gradient, transform

__all__ = ["Rule", "composing", "full_precision", "normalize", "recomputing"]

Rule = Callable[..., tuple[Tensor, Tensor]]


def recomputing() -> bool:
    """Whether this forward runs inside a backward pass, that is, for activation checkpointing.

    Running statistics must then stay as they are: the micro-batch has moved them already.
    """
    # dynamo cannot trace the question, and traces a checkpointed forward only once.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Autocast switched off, where the device has it (meta does not)."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def composing() -> bool:
    """Whether a tracer (jit, export, ONNX, dynamo) is watching and needs to see plain operators."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()


def normalize(
    x: Tensor,
    rule: Rule,
    *parameters: Tensor,
    center: Tensor | None = None,
    form: Form | None = None,
) -> Tensor:
    """Apply ``scale * (x - mean) + offset`` with ``scale, offset = rule(mean, var, *parameters)``.

    Args:
        x: ``(N, C, *)``, any floating type, contiguous or channels_last; may be empty.
        rule: called exactly once per forward with float32 tensors (float64 if ``x`` is) and
            gradient enabled; may update buffers.
        parameters: tensors that gradients are wanted for. They reach the rule in its type.
        center: ``(C,)``. If given, no statistics are read from ``x``: the rule gets
            ``mean=center, var=None``.
        form: the same function as ``rule`` with its gradient written out. Used in its place
            wherever nobody has to see plain operators; not together with ``center``.

    Returns:
        A tensor with the shape, type and memory format of ``x``. Twice differentiable: the second
        derivative is taken through plain operators, at their memory cost.

    Raises:
        ValueError: ``x`` is not of a floating type.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating type, got {x.dtype}; convert it with x.float()")
    if composing():
        return _compose(x, center, rule, parameters)
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in parameters)
    )
    with full_precision(x.device.type):
        if needs_grad:
            if form is not None:
                return _ClosedAffine.apply(x, form, rule, *parameters)
            return _InstanceAffine.apply(x, center, rule, *parameters)
        dtype = accumulation_dtype(x)
        wide = [p.to(dtype) for p in parameters]
        if form is not None:
            mean, var = moments(x)
            return transform(x, mean, *form.forward(mean, var, *wide)[:2])
        return _forward(x, center, rule, wide)[0]


def _forward(
    x: Tensor, center: Tensor | None, rule: Rule, parameters: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    var: Tensor | None = None
    if center is None:
        mean, var = moments(x)
    else:
        mean = center.to(accumulation_dtype(x))
    scale, offset = rule(mean, var, *parameters)
    y = transform(x, mean, scale.detach(), offset.detach())
    return y, mean, scale, offset


def _compose(
    x: Tensor, center: Tensor | None, rule: Rule, parameters: tuple[Tensor, ...]
) -> Tensor:
    """The same function from differentiable operators, for tracers and second derivatives."""
    dtype = accumulation_dtype(x)
    wide, dims = x.to(dtype), tuple(range(2, x.dim()))
    # Indexed, not reshaped: a shape would carry the example's N into the graph of an exporter.
    spread = (...,) + (None,) * len(dims)
    var: Tensor | None = None
    if center is not None:
        mean = center.to(dtype)
    elif not dims:
        mean, var = wide, torch.zeros_like(wide)
    else:
        mean = wide.mean(dims)
        if torch.compiler.is_dynamo_compiling():  # the compiler knows how to take both at once
            var = wide.var(dims, correction=0)
        else:
            var = (wide - mean[spread]).square().mean(dims)
    scale, offset = rule(mean, var, *[p.to(dtype) for p in parameters])
    return ((wide - mean[spread]) * scale[spread] + offset[spread]).to(x.dtype)


class _InstanceAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, center: Tensor | None, rule: Rule, *parameters: Tensor
    ) -> Tensor:
        leaves: list[Tensor] = []

        def recorded(mean: Tensor, var: Tensor | None, *params: Tensor) -> tuple[Tensor, Tensor]:
            # The rule's graph is N x C numbers; the backward pass walks it with autograd.grad.
            with torch.enable_grad():
                statistics = [] if var is None else [mean.requires_grad_(), var.requires_grad_()]
                leaves.extend([*statistics, *params])
                return rule(mean, var, *params)

        dtype = accumulation_dtype(x)
        params = [p.detach().to(dtype).requires_grad_(p.requires_grad) for p in parameters]
        y, mean, scale, offset = _forward(x, center, recorded, params)
        ctx.save_for_backward(x, mean.detach(), *parameters)
        ctx.has_statistics = center is None
        ctx.center, ctx.rule = center, rule
        ctx.leaves, ctx.outputs = leaves, (scale, offset)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, x, parameters, dy)
        with full_precision(x.device.type):
            return _backward(ctx, x, mean, parameters, dy)


def _backward(
    ctx: Any, x: Tensor, mean: Tensor, parameters: list[Tensor], dy: Tensor
) -> tuple[Tensor | None, ...]:
    scale, offset = ctx.outputs
    rows = x.shape[:2]
    dy_sum, dy_dot = reduce_gradient(dy, x, mean)
    outputs, output_grads = [], []
    for output, grad in ((scale, dy_dot), (offset, dy_sum)):
        if output.requires_grad:
            outputs.append(output)
            output_grads.append(grad.sum_to_size(output.shape))
    wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
    # retain_graph: a caller may run the outer backward pass twice.
    grads = iter(
        torch.autograd.grad(
            outputs, wanted, output_grads, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )
        if outputs and wanted
        else [torch.zeros_like(leaf) for leaf in wanted]
    )  # fmt: skip
    leaf_grads = [next(grads) if leaf.requires_grad else None for leaf in ctx.leaves]

    dmean = dvar = dx = None
    scale = scale.detach().expand(rows)
    if ctx.has_statistics:
        dmean, dvar = leaf_grads[0], leaf_grads[1]
        assert dmean is not None
        dmean = dmean - scale * dy_sum  # y also depends on the mean by -scale * mean
        leaf_grads = leaf_grads[2:]
    if ctx.needs_input_grad[0]:
        dx = input_gradient(dy, x, mean, scale, dmean, dvar)
    parameter_grads = [
        None if grad is None else grad.to(parameter.dtype)
        for grad, parameter in zip(leaf_grads, parameters, strict=True)
    ]
    return dx, None, None, *parameter_grads


class _ClosedAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Form, rule: Rule, *parameters: Tensor) -> Tensor:
        mean, var = moments(x)
        wide = [p.to(mean.dtype) for p in parameters]
        scale, offset, kept = form.forward(mean, var, *wide)
        ctx.save_for_backward(x, mean, var, *parameters, *kept)
        ctx.form, ctx.rule, ctx.center, ctx.count = form, rule, None, len(parameters)
        return transform(x, mean, scale, offset)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, *rest = ctx.saved_tensors
        parameters, kept = rest[: ctx.count], rest[ctx.count :]
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, x, parameters, dy)
        with full_precision(x.device.type):
            dy_sum, dy_dot = reduce_gradient(dy, x, mean)
            wide = [p.to(mean.dtype) for p in parameters]
            grads = ctx.form.backward(tuple(kept), mean, var, dy_sum, dy_dot, *wide)
            dx = None
            if ctx.needs_input_grad[0]:
                dx = input_gradient(dy, x, mean, grads.scale, grads.dmean, grads.dvar)
            parameter_grads = [
                grad.to(parameter.dtype) if wanted else None
                for grad, parameter, wanted in zip(
                    grads.parameters, parameters, ctx.needs_input_grad[3:], strict=True
                )
            ]
        return dx, None, None, *parameter_grads


def _differentiable_backward(
    ctx: Any, x: Tensor, parameters: list[Tensor], dy: Tensor
) -> tuple[Tensor | None, ...]:
    y = _compose(x, ctx.center, ctx.rule, tuple(parameters))
    inputs = [t for t in (x, *parameters) if t.requires_grad]
    grads = iter(
        torch.autograd.grad(
            y, inputs, dy, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    dx, *parameter_grads = (next(grads) if t.requires_grad else None for t in (x, *parameters))
    return dx, None, None, *parameter_grads
