"""Projections onto the probability simplex: sparsemax and sparsestmax.

References: A. Martins, R. Astudillo, "From Softmax to Sparsemax", arXiv:1602.02068; W. Shao et al.,
"SSN: Learning Sparse Switchable Normalization via SparsestMax", arXiv:1903.03793, Sec. 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["circumradius", "sparsemax", "sparsestmax"]


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
    ranked, _ = wide.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, z.shape[-1] + 1, dtype=wide.dtype, device=z.device)
    thresholds = (ranked.cumsum(-1) - 1) / ranks
    # ranked > thresholds holds for a prefix of the ranks, the support.
    support = (ranked > thresholds).sum(-1, keepdim=True)
    threshold = thresholds.gather(-1, support - 1)
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
    far_enough = (inside - 1 / choices).norm(dim=-1, keepdim=True) >= radius
    return torch.where(far_enough, inside, _on_sphere(wide, radius)).to(z.dtype)


def _on_sphere(z: Tensor, radius: Tensor) -> Tensor:
    """The simplex point at ``radius`` from the centre that is nearest to ``z``.

    On a sphere, nearest means largest inner product with z, so the answer keeps the order of z: its
    support is the top k entries for some k. On the face of the top k the sphere is again a sphere,
    about the face's centre, and its best point is the step along the centred z. The largest k whose
    best point is non-negative is optimal: it is the best of a face that contains all smaller ones.
    """
    choices = z.shape[-1]
    ranked, order = z.sort(dim=-1, descending=True, stable=True)
    result = torch.zeros_like(ranked)
    result[..., 0] = 1  # k = 1: the corner
    done = torch.zeros_like(ranked[..., :1], dtype=torch.bool)
    for k in range(choices, 1, -1):
        top = ranked[..., :k]
        direction = top - top.mean(-1, keepdim=True)
        length = direction.norm(dim=-1, keepdim=True)
        # Equal entries have no direction: point at the first corner, with no gradient.
        first = torch.full_like(top, -1 / k)
        first[..., 0] += 1
        tied = length <= 1e-12 * top.abs().amax(-1, keepdim=True)
        direction = torch.where(tied, first / first.norm(dim=-1, keepdim=True),
                                direction / torch.where(tied, 1.0, length))  # fmt: skip
        square = radius.square() - (1 / k - 1 / choices)
        point = 1 / k + direction * square.clamp(min=1e-300).sqrt()
        fits = (point.amin(-1, keepdim=True) >= 0) & (square > 0)
        padded = torch.nn.functional.pad(point, (0, choices - k))
        result = torch.where(fits & ~done, padded, result)
        done = done | fits
    return torch.zeros_like(result).scatter(-1, order, result)
