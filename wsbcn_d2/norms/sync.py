"""The ranks that a synchronized norm pools over, all processes or groups of any size.

The contract is that of ``torch.nn.SyncBatchNorm``: every rank runs every layer, in one order, on an
empty batch too. ``TORCH_DISTRIBUTED_DEBUG=DETAIL`` names a rank that does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["PoolsOverRanks", "Ranks", "check_group_size", "prepare_sync_norms"]


class Ranks:
    """The ranks that one norm pools over, and their all_reduce.

    ``copy.deepcopy`` of a norm keeps its ranks. A process group cannot be pickled: a norm that was
    pickled remembers which ranks it had, evaluates, runs in a single process, and among several
    asks for its ranks again (`prepare_sync_norms`).

    Args:
        group: a process group that has this rank; all processes if None.

    Raises:
        ValueError: this rank is not in ``group``.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.members: tuple[int, ...] | None = None
        self.name = "a synchronized norm"
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
                f"{self.name} pooled over ranks {list(self.members)} when it was pickled, which "
                "does not save the process group; call "
                "wsbcn_d2.norms.prepare_sync_norms(model, group_size) on all ranks"
            )
        return self._group

    def size(self) -> int:
        """How many ranks there are; 1 where torch.distributed is not initialized."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        world_size = dist.get_world_size()
        return world_size if self.members is None else min(world_size, len(self.members))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over the ranks, differentiable where ``tensor`` is.

        Without a gradient the sum replaces the values of ``tensor``.

        Raises:
            RuntimeError: another rank is gone, runs another layer, or did not come in time; the
                message names this norm.
        """
        try:
            if tensor.requires_grad:
                # Imported here: it takes as long as the rest of the package.
                from torch.distributed.nn.functional import all_reduce

                total: Tensor = all_reduce(tensor, group=self.group)
                return total
            dist.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {dist.get_rank()} cannot pool statistics over {self.size()} ranks in "
                f"{self.name}: {error}"
            ) from error
        return tensor

    def __deepcopy__(self, memo: Any) -> Ranks:
        other = Ranks()
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None}


class PoolsOverRanks:
    """A norm with a ``process_group``: the ranks it pools over, all of them if None."""

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


def prepare_sync_norms(model: nn.Module, group_size: int = 0) -> int:
    """Set which ranks a model's synchronized norms pool over.

    Called on all ranks alike, before the model is wrapped (DistributedDataParallel,
    ``fully_shard``). In a single process it does nothing. A second call replaces the first.

    Args:
        model: all its ranks call the same norms in the same order.
        group_size: pool in groups of so many consecutive ranks. Divides the number of processes.
            0: as the norms were made, over all processes by default. 1: each rank on its own.

    Returns:
        how many norms pool over several ranks.

    Raises:
        ValueError: ``group_size`` does not divide the number of processes.
    """
    world_size = Ranks().size()
    check_group_size(group_size, world_size)
    if world_size == 1:
        return 0
    norms = {
        name: module.ranks
        for name, module in model.named_modules()
        if isinstance(module, PoolsOverRanks) and module.pools()
    }
    for name, ranks in norms.items():
        ranks.name = f"norm {name!r}" if name else ranks.name
    if group_size:
        first = dist.get_rank() // group_size * group_size
        members = tuple(range(first, first + group_size))
        whole = group_size == world_size
        group = None if whole or group_size == 1 or not norms else _consecutive_ranks(group_size)
        for ranks in norms.values():
            ranks.assign(group, None if whole else members)
    return sum(ranks.size() > 1 for ranks in norms.values())


def check_group_size(group_size: int, world_size: int) -> None:
    """Raise the ValueError that `prepare_sync_norms` documents, before there are any processes."""
    if group_size >= 0 and (group_size == 0 or world_size % group_size == 0):
        return
    divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
    nearest = sorted(sorted(divisors, key=lambda n: abs(n - group_size))[:2])
    raise ValueError(
        f"sync_group_size ({group_size}) must divide the number of processes ({world_size}); "
        f"nearest: {' or '.join(map(str, nearest))}, or 0 for all processes"
    )


_made: dict[int, tuple[Any, dist.ProcessGroup]] = {}


def _consecutive_ranks(size: int) -> dist.ProcessGroup:
    """This rank's group of ``size`` consecutive ranks, made at the first call of all ranks."""
    world = dist.distributed_c10d._get_default_group()
    known = _made.get(size)
    if known is None or known[0] is not world:  # made before the process group was set up anew
        # With torch's default time-out (10 minutes for NCCL) a long evaluation on one rank would
        # stop the others.
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        timeout = world._get_backend(device).options._timeout
        group, _ = dist.new_subgroups(size, timeout=timeout)
        known = _made[size] = (world, group)
    return known[1]
