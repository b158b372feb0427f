"""What a layer's recent forwards used, for activation checkpointing to use again.

Checkpointing runs a forward a second time inside the backward pass. What came from outside the
layer's input then (other ranks' sums, estimates that have moved on) must be what it was the first
time; asking the other ranks again would need all of them to recompute in the same order.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .affine import recomputing

__all__ = ["Recall"]

# Calls of one layer between a forward and its recomputation; a head on five levels makes five.
_CAPACITY = 32


def _may_be_recomputed() -> bool:
    """Whether this forward may run again: the reentrant kind is without gradient the first time,
    the other one packs what is saved for backward."""
    if torch.compiler.is_compiling():
        return False
    # torch 2.7 does not say whether there are such hooks.
    top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
    return not torch.is_grad_enabled() or top_hooks(False) is not None


class Recall:
    """Tensors that the last calls of a layer used, found again by the input's statistics.

    A recomputed input equals the first one, so its row means say which call it was. Nothing is kept
    of forwards that no checkpoint can run again. Copies of a layer start with an empty one.
    """

    def __init__(self) -> None:
        self.active = False
        self._calls: deque[tuple[tuple[Any, ...], Tensor, tuple[Tensor, ...]]] = deque(
            maxlen=_CAPACITY
        )

    def begin(self) -> None:
        """A forward of the layer begins: see whether a checkpoint may run it again."""
        self.active = _may_be_recomputed()

    @torch.no_grad()
    def keep(self, mean: Tensor, positions: int, *used: Tensor) -> None:
        """Remember copies of ``used`` for the call whose row means are ``mean (N, C)``."""
        if self.active and not recomputing():
            shape = (mean.shape[0], positions, mean.device, mean.dtype)
            self._calls.append((shape, mean.sum(0), tuple(t.detach().clone() for t in used)))

    @torch.no_grad()
    def find(self, mean: Tensor, positions: int) -> tuple[Tensor, ...] | None:
        """What the call with these row means used; None unless this forward is a recomputation."""
        if not recomputing():
            return None
        shape = (mean.shape[0], positions, mean.device, mean.dtype)
        calls = [(key, used) for was, key, used in self._calls if was == shape]
        if not calls:
            return None
        # The nearest, not the equal one: some GPU kernels do not repeat to the last bit. Chosen on
        # the device, which nothing waits for.
        distances = (torch.stack([key for key, _ in calls]) - mean.sum(0)).abs().sum(1)
        nearest = distances.argmin()
        columns = zip(*(used for _, used in calls), strict=True)
        return tuple(torch.stack(column)[nearest] for column in columns)

    def __deepcopy__(self, memo: Any) -> Recall:
        return Recall()

    def __reduce__(self) -> tuple[type[Recall], tuple[()]]:
        return Recall, ()
