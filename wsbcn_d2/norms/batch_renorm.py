"""Batch Renormalization (BRN): batch normalization that trains with what evaluation uses.

Reference: S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
Batch-Normalized Models", arXiv:1702.03275, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .normalize import check_input, normalize, normalize_by_running
from .pooling import BatchPool, row_length
from .running_stats import BatchAveraged, frozen
from .used_estimates import UsedEstimates

__all__ = ["BatchRenorm2d", "BatchRenormRule"]


@dataclass
class BatchRenormRule:
    """BRN's rule; see `normalize`. It takes the batch's and then the running mean and variance."""

    eps: float
    r_max: float
    d_max: float

    def __call__(
        self, mean: Tensor, var: Tensor, center: Tensor, spread: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        running_mean, running_var, weight, bias = rest
        rstd = (spread + self.eps).rsqrt()
        with torch.no_grad():  # the corrections are constants to the gradient
            running_rstd = (running_var + self.eps).rsqrt()
            r = (running_rstd / rstd).clamp(1 / self.r_max, self.r_max)
            d = ((center - running_mean) * running_rstd).clamp(-self.d_max, self.d_max)
        scale = weight * rstd * r
        return scale, (mean - center) * scale + weight * d + bias


class BatchRenorm2d(BatchAveraged, nn.InstanceNorm2d):
    r"""Batch Renormalization of ``(N, C, H, W)``.

    .. math:: y = \left(\frac{x - \mu_B}{\sigma_B} \cdot r + d\right) \cdot w + b, \qquad
              r = \frac{\sigma_B}{\sigma}, \quad d = \frac{\mu_B - \mu}{\sigma}

    with r in [1 / ``r_max``, ``r_max``] and d in [-``d_max``, ``d_max``], through which no gradient
    flows: as long as neither is clipped, training computes what evaluation does, with the running
    mean and standard deviation. ``r_max=1, d_max=0`` is BatchNorm, with a biased running variance.
    The paper starts there and raises both to 3 and 5 over the first tens of thousands of steps;
    set the attributes to do so.

    Args:
        num_features: C.
        eps: added to the variances.
        momentum: the share of the *new* value in the running statistics; the paper's is 0.01.
        r_max, d_max: the limits of the corrections.

    Raises:
        ValueError: ``r_max`` < 1 or ``d_max`` < 0.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max ({r_max}) must be at least 1, and d_max ({d_max}) at least 0")
        super().__init__(num_features, eps, momentum, True, True, device, dtype)
        self.r_max, self.d_max = r_max, d_max
        self._used_estimates = UsedEstimates("BatchRenorm2d")

    def averaged_module(self) -> nn.Module | None:
        return self

    def forward(self, input: Tensor) -> Tensor:
        check_input(self, input)
        if not self.training or frozen(self):
            return normalize_by_running(input, self)
        pool = BatchPool(self, row_length(input), used=self._used_estimates)
        rule = BatchRenormRule(self.eps, self.r_max, self.d_max)
        return normalize(input, rule, self.weight, self.bias, pool=pool)
