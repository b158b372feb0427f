"""What a norm took from earlier batches, for the forwards that activation checkpoints repeat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .modes import recomputing

__all__ = ["UsedEstimates"]

# Calls of one layer between a forward and its recomputation; a head on five levels makes five.
_REMEMBERED = 64


class UsedEstimates:
    """The estimates that a layer's recent forwards used, for activation checkpointing.

    A checkpoint runs a forward again when the estimates have moved on. Its input is that of the
    first time, so the row statistics say which forward it was. Nothing is kept of forwards that no
    checkpoint can run again. Copies of a layer start with an empty one.

    Args:
        name: of the layer's class, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = deque(maxlen=_REMEMBERED)
        self._found = False

    def once(
        self, mean: Tensor, var: Tensor, take: Callable[[], tuple[Tensor, ...]], remember: bool
    ) -> tuple[Tensor, ...]:
        """What ``take()`` gives; in a recomputation what it gave the first time.

        Args:
            mean, var: the row statistics of the forward.
            take: returns the estimates that the forward uses.
            remember: whether the forward may be run again (`may_be_recomputed`).

        Raises:
            RuntimeError: no forward with these row statistics is remembered, or there are several
                that used different estimates.
        """
        if recomputing():
            return self._find(mean, var)
        used = take()
        if remember:
            self._keep(mean, var, used)
        return used

    def _keep(self, mean: Tensor, var: Tensor, used: tuple[Tensor, ...]) -> None:
        if self._found:  # a backward pass lies between: what came before it is done
            self._calls.clear()
            self._found = False
        self._calls.append((mean.detach().clone(), var.detach().clone(), used))

    def _find(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        self._found = True
        found = [u for m, v, u in self._calls if torch.equal(m, mean) and torch.equal(v, var)]
        if not found:
            raise RuntimeError(
                f"{self._name}: an activation checkpoint recomputes a forward whose input is "
                f"that of none of the layer's last {len(self._calls)} forwards (at most "
                f"{_REMEMBERED} are remembered), so the estimates that it used are not known. Make "
                "the recomputation repeatable (torch.use_deterministic_algorithms, "
                "preserve_rng_state=True), or do not checkpoint this layer"
            )
        one = all(torch.equal(a, b) for u in found for a, b in zip(u, found[0], strict=True))
        if mean.numel() and not one:  # without a row no estimate is used
            raise RuntimeError(
                f"{self._name}: an activation checkpoint recomputes one of several forwards of "
                "the layer on the same input, which used different estimates. Do not checkpoint "
                "this layer"
            )
        return found[0]

    def __deepcopy__(self, memo: Any) -> UsedEstimates:
        return UsedEstimates(self._name)

    def __reduce__(self) -> tuple[type[UsedEstimates], tuple[str]]:
        return UsedEstimates, (self._name,)
