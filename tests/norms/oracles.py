"""The norms' formulas, written plainly in float64 and without the package's own code.

Each reads the whole input with mean and var over dimensions; autograd of these lines gives the
gradients to compare with. `tensors` draws inputs from a seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def tensors(seed: int, *shapes: Sequence[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def randomize(module: nn.Module, seed: int) -> None:
    """Give parameters and running statistics values that no default has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or name.endswith("radius"):
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                noise = noise.exp()
            elif name.endswith("weight"):
                noise = 1 + 0.5 * noise
            tensor.copy_(noise)


def state64(module: nn.Module) -> dict[str, Tensor]:
    """Float64 copies of parameters (as leaves that require grad) and buffers."""
    state = {n: p.detach().double().requires_grad_() for n, p in module.named_parameters()}
    return state | {n: b.detach().double() for n, b in module.named_buffers()}


def along(t: Tensor, x: Tensor) -> Tensor:
    """``(C,)`` numbers shaped to broadcast against ``x`` (N, C, *)."""
    return t.reshape((1, -1) + (1,) * (x.dim() - 2))


def sn_statistics(x: Tensor, unbiased: bool = False) -> dict[str, Pair]:
    """IN, LN and BN statistics of ``(N, C, *)``, each broadcastable to x.

    ``unbiased`` as in the authors' code: 2d builds LN and BN from unbiased instance variances by
    E[x^2] - mean^2; 1d takes each with its own divisor minus one.
    """
    dims = tuple(range(2, x.dim()))
    over_layer, over_batch = (1, *dims), (0, *dims)
    if not unbiased:
        return {
            "in": (x.mean(dims, True), x.var(dims, correction=0, keepdim=True)) if dims else (x, x),
            "ln": (x.mean(over_layer, True), x.var(over_layer, correction=0, keepdim=True)),
            "bn": (x.mean(over_batch, True), x.var(over_batch, correction=0, keepdim=True)),
        }
    if not dims:
        return {
            "ln": (x.mean(1, True), x.var(1, keepdim=True)),
            "bn": (x.mean(0, True), x.var(0, keepdim=True)),
        }
    mean, var = x.mean(dims, True), x.var(dims, correction=1, keepdim=True)
    second = var + mean**2
    layer_mean, batch_mean = mean.mean(1, True), mean.mean(0, True)
    return {
        "in": (mean, var),
        "ln": (layer_mean, second.mean(1, True) - layer_mean**2),
        "bn": (batch_mean, second.mean(0, True) - batch_mean**2),
    }


def switch_norm(
    x: Tensor,
    state: dict[str, Tensor],
    statistics: Sequence[str],
    eps: float = 1e-5,
    unbiased: bool = False,
    bn: Pair | None = None,
    ratios: Callable[[Tensor], Tensor] = lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
) -> Tensor:
    """SN, channel group by channel group; ``bn`` stands in for the batch's own BN statistics."""
    pooled = sn_statistics(x, unbiased)
    if bn is not None:
        pooled["bn"] = (along(bn[0], x), along(bn[1], x))
    order = [s for s in ("in", "ln", "bn") if s in statistics]
    mean_control, var_control = state["mean_weight"], state["var_weight"]
    if mean_control.dim() == 1:
        mean_control, var_control = mean_control[None], var_control[None]
    groups = mean_control.shape[0]
    width = x.shape[1] // groups
    parts = []
    for g in range(groups):
        channels = slice(g * width, (g + 1) * width)
        p, q = ratios(mean_control[g]), ratios(var_control[g])
        mean = sum(p[k] * pooled[s][0].expand_as(x)[:, channels] for k, s in enumerate(order))
        var = sum(q[k] * pooled[s][1].expand_as(x)[:, channels] for k, s in enumerate(order))
        parts.append((x[:, channels] - mean) / torch.sqrt(var + eps))
    return torch.cat(parts, 1) * along(state["weight"], x) + along(state["bias"], x)


def batch_channel_norm(
    x: Tensor, state: dict[str, Tensor], num_groups: int, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """BCN with the inner statistics ``mean, var (C,)``; the inner eps is always 1e-5."""
    z = (x - along(mean, x)) / torch.sqrt(along(var, x) + 1e-5)
    z = z * along(state["bn.weight"], x) + along(state["bn.bias"], x)
    grouped = z.reshape(x.shape[0], num_groups, -1)
    centered = grouped - grouped.mean(2, keepdim=True)
    hat = centered / torch.sqrt(grouped.var(2, correction=0, keepdim=True) + eps)
    hat = hat * state["weight"][None, :, None] + state["bias"][None, :, None]
    return hat.reshape(x.shape)


def pooled_positions(batches: Sequence[Tensor]) -> Pair:
    """Mean and biased variance per channel over all positions of batches of any shape."""
    flat = torch.cat([b.transpose(0, 1).reshape(b.shape[1], -1) for b in batches], 1)
    return flat.mean(1), flat.var(1, correction=0)


def standardized(weight: Tensor, eps: float = 1e-5, eps_mode: str = "outside") -> Tensor:
    """WS, filter by filter."""
    filters = []
    for f in weight:
        mean = f.sum() / f.numel()
        var = ((f - mean) ** 2).sum() / (f.numel() - 1)
        denominator = var.sqrt() + eps if eps_mode == "outside" else (var + eps).sqrt()
        filters.append((f - mean) / denominator)
    return torch.stack(filters)
