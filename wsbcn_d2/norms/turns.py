"""Ranks that pool their statistics must all do so in the same order, or wait for one another.

A rank that does not call a module which the others call (a head without proposals, say) would meet
them in the wrong norm. `prepare_sync_norms` gives every synchronized norm of a model its turn:

* `Turns` notices a rank that is out of step *before* it enters a collective where nobody meets it,
  and stops it with an error that names the norm and the ranks. As long as every forward calls the
  norms in the order of the one before, it communicates nothing.
* `SkippableTurns` lets ranks differ: before each norm they agree which one is next, and those that
  do not call it add nothing to its sums. That takes one collective of one number for each norm.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree

from .affine import recomputing
from .ranks import PoolsOverRanks, Ranks, group_timeout, not_compiled, rank_groups

__all__ = ["SkippableTurns", "Turns", "check_group_size", "prepare_sync_norms"]

_END = "the end of the forward pass"
_prepared = itertools.count()


def prepare_sync_norms(
    model: nn.Module,
    group_size: int = 0,
    *,
    may_skip: bool = False,
    timeout: timedelta = timedelta(seconds=60),
) -> int:
    """Set which ranks a model's synchronized norms pool over, and keep the ranks in step.

    Called on all ranks alike, before the model is wrapped (DistributedDataParallel,
    ``fully_shard``). In a single process it does nothing. A second call replaces the first.

    Args:
        model: whose forward is one pass over the norms; all ranks call it equally often.
        group_size: pool in groups of so many consecutive ranks. Divides the number of processes.
            0: as the norms were made, over all processes by default. 1: each rank on its own.
        may_skip: whether ranks may call different norms in one forward. DistributedDataParallel
            then needs ``find_unused_parameters=True``. What a rank calls must reach its loss; not
            for reentrant checkpoints, nor for norms made with a ``process_group``.
        timeout: how long a rank that calls other norms than in the forward before waits for all
            others to do the same.

    Returns:
        how many norms pool over several ranks.

    Raises:
        ValueError: ``group_size`` does not divide the number of processes.
    """
    world_size = Ranks().size()
    check_group_size(group_size, world_size)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [k for k, h in hooks.items() if isinstance(getattr(h, "__self__", 0), Turns)]:
            del hooks[key]
    norms = {
        name: module.ranks
        for name, module in model.named_modules()
        if isinstance(module, PoolsOverRanks) and module.pools()
    }
    if world_size == 1:
        return 0
    skipping = _assign_groups(norms, group_size, may_skip)
    serial = next(_prepared)
    by_members: dict[tuple[int, ...], dict[str, Ranks]] = {}
    for name, ranks in norms.items():
        ranks.name = name
        members = ranks.members or tuple(range(world_size))
        if len(members) > 1:
            by_members.setdefault(members, {})[name] = ranks
    for members, group in by_members.items():
        if members == skipping:
            turns: Turns = SkippableTurns(members, list(group))
        else:
            turns = Turns(members, f"wsbcn_d2/turns/{serial}/{members[0]}", timeout)
        for ranks in group.values():
            ranks.turns = turns
        model.register_forward_pre_hook(turns.begin)
        model.register_forward_hook(turns.end)
    return sum(len(group) for group in by_members.values())


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


def _assign_groups(
    norms: Mapping[str, Ranks], group_size: int, may_skip: bool
) -> tuple[int, ...] | None:
    """Set the groups, and return the members of that in which norms may be skipped, if any."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    chosen = [r for r in norms.values() if group_size or r.members is None]
    size = group_size or world_size
    first = rank // size * size
    members = tuple(range(first, first + size))
    if not chosen or size == 1:
        for ranks in chosen:
            ranks.assign(None, members)
        return None
    if size == world_size and not may_skip:
        for ranks in chosen:
            ranks.assign(None, None)
        return None
    # Norms that may be skipped have a group of their own also when it has all ranks: whether their
    # collectives come before or after those of the gradients is not the same on every rank.
    group = rank_groups(size)
    for ranks in chosen:
        ranks.assign(group, members)
    return members if may_skip else None


class Turns:
    """Sees to it that the ranks call the norms in one order; raises where they do not.

    Every rank expects the norms of its last forward. A rank about to do something else first calls
    the roll, through the store that the process group was set up with: if all others are about to
    do the same (in the first forward, or when layers were frozen), that is expected from then on.
    So all ranks always expect the same, and a rank that does the expected needs to ask nobody.

    Args:
        members: the ranks.
        key: of the entries in the store.
        timeout: how long the others may take to answer a roll call, once all are in the forward.
    """

    def __init__(self, members: tuple[int, ...], key: str, timeout: timedelta) -> None:
        self._members, self._key, self._timeout = members, key, timeout
        self._expected: list[str] = []
        self._position = 0
        self._forwards = 0
        self._roll_calls = 0
        self._open = False
        # Whether all ranks call the roll at each norm, up to the end of this forward.
        self._learning = True

    @not_compiled
    def begin(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook of the model."""
        self._position = 0
        self._open = model.training and len(self._members) > 1
        if self._open:
            self._forwards += 1
            _store().set(f"{self._key}/begun/{dist.get_rank()}", str(self._forwards))

    @not_compiled
    def end(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the model. Raises as `take`."""
        if self._open and (self._learning or self._position < len(self._expected)):
            self._call_roll(_END)
            del self._expected[self._position :]
            self._learning = False
        self._open = False

    @not_compiled
    def take(self, ranks: Ranks, differentiable: bool) -> tuple[int, ...]:
        """Wait for a norm's turn to pool.

        Args:
            ranks: of the norm.
            differentiable: whether its sums will get a gradient.

        Returns:
            widths of the gradients, in the order of the forward pass, that the other ranks will
            wait for before this norm's, as this rank has skipped those norms.

        Raises:
            RuntimeError: the ranks are about to call different norms.
        """
        if not self._open or recomputing():
            return ()
        expected = self._expected[self._position : self._position + 1]
        if self._learning or expected != [ranks.name]:
            self._call_roll(ranks.name)
            self._expected[self._position :] = [ranks.name]
            self._learning = True
        self._position += 1
        return ()

    def _call_roll(self, name: str) -> None:
        store, roll = _store(), f"{self._key}/{self._roll_calls}"
        self._roll_calls += 1
        store.set(f"{roll}/at/{dist.get_rank()}", name)
        if store.compare_set(f"{roll}/first", "", name).decode() != name:
            store.set(f"{roll}/differ", "yes")
        if store.add(f"{roll}/{name}", 1) == len(self._members):
            store.set(f"{roll}/agreed", "yes")
        start, together, pause = time.monotonic(), None, 0.25
        while not _wait(store, f"{roll}/agreed", pause):
            # A few ranks may be waited for by hundreds: ask for little, and ever less often.
            pause = min(2 * pause, 4.0)
            waited = time.monotonic() - start
            differ = store.check([f"{roll}/differ"])
            if waited > group_timeout().total_seconds():
                raise RuntimeError(self._report(roll))
            if self._learning and not differ:
                continue  # all ranks call the roll: who does not answer is slow, not out of step
            begun = (_get(store, f"{self._key}/begun/{r}") for r in self._members)
            if together is None and all(int(n or 0) >= self._forwards for n in begun):
                together = waited
            late = together is not None and waited - together > self._timeout.total_seconds()
            if late or (differ and store.check([f"{roll}/at/{r}" for r in self._members])):
                raise RuntimeError(self._report(roll))

    def _report(self, roll: str) -> str:
        at = {r: _get(_store(), f"{roll}/at/{r}") for r in self._members}
        silent = "does not answer"
        if not self._learning:
            expected = (*self._expected, _END)[self._position]
            silent += f"; probably at {expected}, as in the forward before"
        where = [
            f"  rank {r}: {silent if name is None else f'at {name}'}" for r, name in at.items()
        ]
        return (
            f"rank {dist.get_rank()} is out of step with the ranks that it pools statistics with, "
            f"after {self._position} synchronized norm(s) of this forward:\n"
            + "\n".join(where)
            + "\nEvery rank must call every module that has synchronized norms, in one order. Call "
            "a head on an empty batch too, as detectron2's heads do; or let ranks skip modules: "
            "find_unused_parameters=True of DistributedDataParallel, and outside train_net.py "
            "prepare_sync_norms(model, may_skip=True)."
        )

    def __deepcopy__(self, memo: Any) -> Turns:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As a hook of a pickled model, which has to be prepared again: one without ranks.
        return Turns, ((), "", timedelta())


class SkippableTurns(Turns):
    """Lets ranks call different norms: who does not call one adds zeros, forward and backward.

    Before each norm every rank says which one it is at (at last: at the end), and the earliest is
    taken, by the order in which norms were first called. Ranks at another one take part with zeros
    and ask again; on the way back the autograd function of their next norm, or that on the outputs,
    adds zeros to the gradients at the same place.

    Args:
        members: the ranks; they have a `rank_groups` group.
        names: of the norms in the model.
    """

    def __init__(self, members: tuple[int, ...], names: Sequence[str]) -> None:
        super().__init__(members, "", timedelta())
        self._names = list(names)
        self._model: nn.Module | None = None
        self._met: list[str] = []
        # What the others wait for on the way back: by whose ranks, and how many numbers.
        self._owed: list[int] = []
        self._ranks = Ranks()
        self._device = torch.device("cpu")
        # Asking on the host does not wait for the device.
        self._agreement = rank_groups(len(members), "gloo")

    @not_compiled
    def begin(self, model: nn.Module, args: Any) -> None:
        self._model = model
        self._open = model.training
        self._owed = []
        self._device = next(model.parameters()).device

    @not_compiled
    def take(self, ranks: Ranks, differentiable: bool) -> tuple[int, ...]:
        if not self._open or recomputing():
            return ()
        self._skip_until(ranks.name, differentiable)
        if not differentiable:
            return ()
        owed, self._owed = tuple(self._owed), []
        return owed

    @not_compiled
    def end(self, model: nn.Module, args: Any, output: Any) -> Any:
        if not self._open:
            return output
        self._skip_until(None, False)
        self._open, self._model = False, None
        leaves, structure = _pytree.tree_flatten(output)
        where = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]
        if not self._owed or not where:
            return output
        owed, self._owed = tuple(self._owed), []
        made = _MakeUp.apply(self._ranks, owed, self._device, *(leaves[i] for i in where))
        for i, tensor in zip(where, made, strict=True):
            leaves[i] = tensor
        return _pytree.tree_unflatten(leaves, structure)

    def _skip_until(self, name: str | None, differentiable: bool) -> None:
        """Take part with zeros until it is this norm's turn, or (None) all are at the end."""
        assert self._model is not None
        while True:
            chosen, with_gradient = self._agree(name, differentiable)
            if chosen is None:
                return
            norm = self._model.get_submodule(chosen)
            assert isinstance(norm, PoolsOverRanks)
            width, self._ranks = 2 * norm.num_features, norm.ranks
            if with_gradient and not (chosen == name and differentiable):
                self._owed.append(width)
            if chosen == name:
                return
            sums = torch.zeros(width + 1, dtype=torch.float64, device=self._device)
            norm.ranks.add_up(sums)
            # Otherwise this rank's statistics, about which the next sums are taken, stay behind.
            norm.absorb(sums)

    def _agree(self, name: str | None, differentiable: bool) -> tuple[str | None, bool]:
        """Which norm is next, and whether with a gradient; None when all are at the end."""
        end = 2 * len(self._names)
        if name is None:
            place = end
        elif name in self._met:
            place = self._met.index(name)
        else:
            place = len(self._names) + self._names.index(name)
        # Even numbers first: with a gradient on any rank is with one on all.
        least = torch.tensor([2 * place + (not differentiable)])
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._agreement)
        place, without = divmod(int(least), 2)
        if place == end:
            return None, False
        if place < len(self._names):
            return self._met[place], not without
        chosen = self._names[place - len(self._names)]
        self._met.append(chosen)
        return chosen, not without


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _wait(store: Any, key: str, seconds: float) -> bool:
    """Whether the key is there within so many seconds."""
    try:
        store.wait([key], timedelta(seconds=seconds))
    except RuntimeError:  # torch's DistStoreError
        return False
    return True


def _get(store: Any, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


class _MakeUp(torch.autograd.Function):
    """The tensors themselves; on the way back first zeros for the gradients of skipped norms."""

    @staticmethod
    def forward(
        ctx: Any, ranks: Ranks, owed: tuple[int, ...], device: torch.device, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.owed, ctx.device = ranks, owed, device
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        for width in reversed(ctx.owed):
            ctx.ranks.add_up(torch.zeros(width, dtype=torch.float64, device=ctx.device))
        return None, None, None, *grads
