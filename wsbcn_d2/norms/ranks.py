"""The ranks that a synchronized norm pools over: all processes, or groups of any size."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

if TYPE_CHECKING:
    from .turns import Turns

__all__ = ["PoolsOverRanks", "Ranks", "group_timeout", "not_compiled", "rank_groups"]

# torch.compiler.disable, but without importing the compiler here, which takes more than a second.
not_compiled = _disable_dynamo


class Ranks:
    """The ranks that one norm pools over, and how to add up tensors over them.

    ``copy.deepcopy`` of a norm keeps its ranks. A process group cannot be pickled: a norm that was
    pickled remembers which ranks it had, evaluates, runs in a single process, and among several
    asks for its ranks again (`wsbcn_d2.norms.prepare_sync_norms`).

    Args:
        group: a process group that has this rank; all processes if None.

    Raises:
        ValueError: this rank is not in ``group``.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.members: tuple[int, ...] | None = None
        self.name = ""
        self.turns: Turns | None = None
        self._group: dist.ProcessGroup | None = None
        if group is not None:
            if dist.get_rank(group) < 0:
                raise ValueError(
                    f"process_group does not contain this process (rank {dist.get_rank()}); every "
                    "rank takes the group that it is in"
                )
            self.assign(group, tuple(dist.get_process_group_ranks(group)))

    def assign(self, group: dist.ProcessGroup | None, members: tuple[int, ...] | None) -> None:
        """Pool over ``members`` from now on, whose group is ``group``; both None: all ranks."""
        self._group, self.members = group, members

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None for the default one.

        Raises:
            RuntimeError: this norm was pickled, and has not been given its ranks again.
        """
        if self._group is None and self.members is not None and self.size() > 1:
            raise RuntimeError(
                f"{self.name or 'a synchronized norm'} pooled over ranks {list(self.members)} when "
                "it was pickled, which does not save the process group; call "
                "wsbcn_d2.norms.prepare_sync_norms(model, group_size) on all ranks"
            )
        return self._group

    def size(self) -> int:
        """How many ranks there are; 1 where torch.distributed is not initialized."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        world_size = dist.get_world_size()
        return world_size if self.members is None else min(world_size, len(self.members))

    @not_compiled
    def add_up(self, tensor: Tensor) -> None:
        """Sum ``tensor`` over the ranks, in place.

        Raises:
            RuntimeError: another rank is gone, or did not come in time; names this norm.
        """
        try:
            dist.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {dist.get_rank()} cannot pool statistics over {self.size()} ranks in "
                f"{self.name or 'a synchronized norm'}: {error}"
            ) from error

    def take_turn(self, differentiable: bool) -> tuple[int, ...]:
        """Wait for this norm's turn; see `Turns.take`. Nothing to wait for where there are none."""
        return () if self.turns is None else self.turns.take(self, differentiable)

    def __deepcopy__(self, memo: Any) -> Ranks:
        other = Ranks()
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None, "turns": None}


class PoolsOverRanks:
    """A norm with a ``process_group``: the ranks it pools over, all of them if None."""

    num_features: int
    ranks: Ranks

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        return self.ranks.group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self.ranks = Ranks(group)

    def pools(self) -> bool:
        """Whether training forwards pool anything over ranks, given that there are several."""
        return True

    def absorb(self, sums: Tensor) -> None:
        """Move the running statistics as the other ranks do that run the layer, this one not.

        Args:
            sums: ``(2C + 1,)``, of all ranks about ``running_mean``, as from `sum_about`.
        """
        raise NotImplementedError


def group_timeout() -> timedelta:
    """How long the default group's collectives wait."""
    group = dist.distributed_c10d._get_default_group()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    return group._get_backend(device).options._timeout


_made: dict[tuple[int, str | None], tuple[Any, dist.ProcessGroup]] = {}


def rank_groups(size: int, backend: str | None = None) -> dist.ProcessGroup:
    """This rank's group of ``size`` consecutive ranks, made at the first call of all ranks.

    Args:
        size: divides the number of processes. All of them is a group apart from the default one.
        backend: the default group's if None.
    """
    world = dist.distributed_c10d._get_default_group()
    if backend == dist.get_backend():
        backend = None
    known = _made.get((size, backend))
    if known is None or known[0] is not world:  # made before the process group was set up anew
        # With torch's default time-out (10 minutes for NCCL) a long evaluation on one rank would
        # stop the others.
        group, _ = dist.new_subgroups(size, timeout=group_timeout(), backend=backend)
        known = _made[(size, backend)] = (world, group)
    return known[1]
