"""Projections onto the probability simplex: sparsemax and sparsestmax.

References: A. Martins, R. Astudillo, "From Softmax to Sparsemax", arXiv:1602.02068; W. Shao et al.,
"SSN: Learning Sparse Switchable Normalization via SparsestMax", arXiv:1903.03793, Sec. 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["circumradius", "sparsemax", "sparsestmax", "sparsestmax_jacobian"]


def circumradius(num_choices: int) -> float:
    """Distance from the simplex's centre (1/K, ...) to its corners: sqrt((K - 1) / K)."""
    return math.sqrt((num_choices - 1) / num_choices)


def sparsemax(z: Tensor) -> Tensor:
    """The point of the probability simplex nearest to ``z``, over the last dimension.

    Args:
        z: ``(..., K)``.

    Returns:
        ``(..., K)``, non-negative, summing to 1; sparse where entries of ``z`` lie far apart.
    """
    wide = z.double()
    ranked = wide.topk(z.shape[-1], dim=-1).values
    ranks = torch.arange(1, z.shape[-1] + 1, dtype=wide.dtype, device=z.device)
    thresholds = (ranked.cumsum(-1) - 1) / ranks
    # They rise as long as ranked > thresholds, that is, over the support.
    threshold = thresholds.max(-1, keepdim=True).values
    return (wide - threshold).clamp(min=0).to(z.dtype)


def sparsestmax(z: Tensor, radius: float | Tensor) -> Tensor:
    """The simplex point nearest to ``z`` among those at least ``radius`` from the centre.

    At radius 0 it is `sparsemax`; from the circumradius sqrt((K - 1) / K) on it is one-hot. Where
    several points are nearest (equal entries of ``z``) earlier entries win, and the gradient is 0.

    Args:
        z: ``(..., K)``.
        radius: a number >= 0, or a 0-dim tensor (then unchecked: checking would synchronize).

    Raises:
        ValueError: ``radius`` is negative or not a number.
    """
    if not isinstance(radius, Tensor) and not radius >= 0:
        raise ValueError(f"radius ({radius}) must be a number >= 0")
    wide, choices = z.double(), z.shape[-1]
    inside = sparsemax(wide)
    radius = torch.as_tensor(radius, dtype=wide.dtype, device=z.device)
    too_near = (inside - 1 / choices).norm(dim=-1, keepdim=True) < radius  # NaN is not: it stays
    return torch.where(too_near, _on_sphere(wide, radius), inside).to(z.dtype)


def _on_sphere(z: Tensor, radius: Tensor) -> Tensor:
    """The simplex point at ``radius`` from the centre that is nearest to ``z``.

    On a sphere, nearest means largest inner product with z, so the answer keeps the order of z: its
    support is the top k entries for some k. On the face of the top k the sphere is again a sphere,
    about the face's centre, and its best point is the step along the centred z. The largest k whose
    best point is non-negative is optimal: it is the best of a face that contains all smaller ones.
    """
    choices = z.shape[-1]
    # A stable sort, earlier entries first, in operators that ONNX has.
    places = torch.arange(choices, device=z.device)
    here, there = z.unsqueeze(-1), z.unsqueeze(-2)
    ahead = (there > here) | ((there == here) & (places < places.unsqueeze(-1)))
    rank = ahead.sum(-1)
    ranked = torch.zeros_like(z).scatter(-1, rank, z)
    result = (places == 0).to(z.dtype).expand_as(z)  # k = 1: the corner
    done = torch.zeros_like(ranked[..., :1], dtype=torch.bool)
    for k in range(choices, 1, -1):
        top = ranked[..., :k]
        direction = top - top.mean(-1, keepdim=True)
        length = direction.norm(dim=-1, keepdim=True)
        # Equal entries have no direction: point at the first corner, with no gradient.
        first = (places[:k] == 0).to(z.dtype) - 1 / k
        tied = length <= 1e-12 * top.abs().amax(-1, keepdim=True)
        direction = torch.where(
            tied, first / first.norm(), direction / torch.where(tied, 1.0, length)
        )
        square = radius.square() - (1 / k - 1 / choices)
        point = 1 / k + direction * square.clamp(min=1e-300).sqrt()
        fits = (point.amin(-1, keepdim=True) >= 0) & (square > 0)
        padded = torch.nn.functional.pad(point, (0, choices - k))
        result = torch.where(fits & ~done, padded, result)
        done = done | fits
    return result.gather(-1, rank)


def sparsestmax_jacobian(z: Tensor, p: Tensor, radius: Tensor) -> Tensor:
    """The derivative ``(..., K, K)`` of ``p = sparsestmax(z, radius)``, without autograd.

    Inside it is the projection onto the sums of zero over the support. On the sphere, where p is
    the support's centre plus a step of fixed length along the centred z, the part along the step
    is gone too, and what is left shrinks by that length over the length of the centred z.
    """
    wide, choices = z.double(), z.shape[-1]
    support = (p > 0).double()
    count = support.sum(-1, keepdim=True)
    project = torch.diag_embed(support) - support.unsqueeze(-1) * (support / count).unsqueeze(-2)
    centered = (project @ wide.unsqueeze(-1)).squeeze(-1)
    length = centered.norm(dim=-1, keepdim=True)
    step = (p.double() - 1 / count) * support
    size = step.norm(dim=-1, keepdim=True)
    tied = length <= 1e-12 * wide.abs().amax(-1, keepdim=True)
    along = centered / torch.where(tied, 1.0, length)
    shrunk = torch.where(tied, 0.0, size / torch.where(tied, 1.0, length)).unsqueeze(-1)
    on_sphere = shrunk * (project - along.unsqueeze(-1) * along.unsqueeze(-2))
    inside = (sparsemax(wide) - 1 / choices).norm(dim=-1, keepdim=True) >= radius
    return torch.where(inside.unsqueeze(-1), project, on_sphere).to(z.dtype)
