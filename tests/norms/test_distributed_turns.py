"""Ranks that do not all call the same norms: made up for, or stopped, but never waited for."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import randomize, tensors
from tests.norms.processes import run_on_ranks
from wsbcn_d2.norms import (
    BatchChannelNorm2d,
    SyncSwitchNorm2d,
    prepare_sync_norms,
)

C = 4
RANKS = 3
STEPS = 4
# The modules that each rank calls: per step, of rank 0, 1, 2.
CALLS = {
    "middle": [["a", "b"], ["b"], ["a", "b"]],
    "last": [["a", "b"], ["a"], ["a"]],
    "first_norms_of_all": [["a", "b"], [], ["b"]],
    "one_each": [["a"], ["b"], ["a"]],
    "other_order": [["b", "a"], ["a", "b"], ["a"]],
    "more_often": [["a", "b", "b"], ["a", "b"], ["b", "b", "b"]],
    "all": [["a", "b"]] * 3,
    "none": [[]] * 3,
}


def head() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(C, C, 3),
        SyncSwitchNorm2d(C),
        nn.ReLU(inplace=True),
        BatchChannelNorm2d(C, 2, momentum=0.3),
        nn.Conv2d(C, C, 3, padding=1),
        BatchChannelNorm2d(C, 2, statistics="sync"),
    )


class Detector(nn.Module):
    """A trunk, with or without a norm, and heads that are called as told."""

    def __init__(self, trunk_norm: bool, checkpointed: bool) -> None:
        super().__init__()
        norm = SyncSwitchNorm2d(C) if trunk_norm else nn.Identity()
        self.trunk = nn.Sequential(nn.Conv2d(3, C, 3), norm)
        self.a, self.b = head(), head()
        self.checkpointed = checkpointed

    def run(self, name: str, x: Tensor) -> Tensor:
        module = getattr(self, name)
        return checkpoint(module, x, use_reentrant=False) if self.checkpointed else module(x)

    def forward(self, x: Tensor, calls: Sequence[str]) -> dict[str, Any]:
        x = self.trunk(x)
        losses = {"trunk": x.square().mean()}
        for i, name in enumerate(calls):
            losses[f"{name}{i}"] = self.run(name, x * (1 + i)).square().mean()
        return {"losses": losses, "count": len(calls)}


def build(trunk_norm: bool = True, checkpointed: bool = False) -> Detector:
    model = Detector(trunk_norm, checkpointed).double()
    randomize(model, 5)
    return model


def batch(rank: int, step: int) -> Tensor:
    return tensors(50 * step + rank, (2, 3, 12, 10))[0]


# --- ranks that may skip -------------------------------------------------------------------------

VARIANTS = {
    "trunk_norm": {"trunk_norm": True},
    "norms_in_heads_only": {"trunk_norm": False},
    "checkpointed_heads": {"trunk_norm": True, "checkpointed": True},
}


SKIPPING = [
    *(("trunk_norm", pattern) for pattern in CALLS),
    *(("norms_in_heads_only", p) for p in ("last", "first_norms_of_all", "none")),
    *(("checkpointed_heads", p) for p in ("middle", "more_often")),
]


def calls_of(pattern: str, step: int) -> list[list[str]]:
    """Skipped from the first step on, but for one without skipping in between."""
    return CALLS["all" if step == 1 else pattern]


def train_skipping(rank: int, variant: str, pattern: str) -> dict[str, Tensor]:
    model = build(**VARIANTS[variant])
    assert prepare_sync_norms(model, may_skip=True) == 6 + VARIANTS[variant]["trunk_norm"]
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        calls = calls_of(pattern, step)[rank]
        torch.stack(list(wrapped(batch(rank, step), calls)["losses"].values())).sum().backward()
        optimizer.step()
    return {name: t.clone() for name, t in model.state_dict().items()}


def skipping_worker(rank: int, world_size: int) -> dict[str, Any]:
    return {case: train_skipping(rank, *case) for case in SKIPPING}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Tensor]]]:
    return run_on_ranks(skipping_worker, RANKS, tmp_path_factory.mktemp("ranks"))


def joined_step(model: Detector, step: int, calls: Sequence[Sequence[str]]) -> Tensor:
    """One process does what the ranks do: each head sees what they would show it together."""
    features = model.trunk(torch.cat([batch(r, step) for r in range(RANKS)])).chunk(RANKS)
    loss = sum(f.square().mean() for f in features)
    pending = [list(c) for c in calls]
    while any(pending):
        # Ranks at the same head are joined; the earlier head goes first.
        name = min(p[0] for p in pending if p)
        there = [r for r in range(RANKS) if pending[r] and pending[r][0] == name]
        inputs = [features[r] * (1 + len(calls[r]) - len(pending[r])) for r in there]
        outputs = model.run(name, torch.cat(inputs)).chunk(len(there))
        loss = loss + sum(y.square().mean() for y in outputs)
        for r in there:
            del pending[r][0]
    return loss / RANKS


@pytest.mark.parametrize(("variant", "pattern"), SKIPPING)
def test_skipping_ranks_train_as_one_process_on_the_batches_of_those_that_call(
    variant: str, pattern: str, trained: list[dict[Any, dict[str, Tensor]]]
) -> None:
    """Nobody waits: the fixture ends. Nothing is lost: weights and buffers are the joined ones."""
    model = build(VARIANTS[variant]["trunk_norm"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        joined_step(model, step, calls_of(pattern, step)).backward()
        optimizer.step()
    for rank in trained:
        assert_close(rank[variant, pattern], model.state_dict())


# --- ranks that are stopped ----------------------------------------------------------------------

# What each rank calls in each forward, and what the error of the last one says.
OUT_OF_STEP: dict[str, tuple[list[list[list[str]]], str]] = {
    "a_head_in_the_first_forward": (
        [[["a", "b"], ["a"], ["a", "b"]]],
        r"(?s)rank 0: at b\.1.*rank 1: at the end of the forward pass.*rank 2: at b\.1",
    ),
    "a_head_later": (
        [[["a", "b"]] * 3, [["a", "b"]] * 3, [["a", "b"], ["b"], ["a", "b"]]],
        r"(?s)after 1 synch.*rank 0: does not answer; probably at a\.1, as.*\n  rank 1: at b\.1",
    ),
    "the_last_head_later": (
        [[["a", "b"]] * 3, [["a"], ["a", "b"], ["a", "b"]]],
        r"(?s)after 4 synch.*rank 0: at the end of the forward pass\n  rank 1: does not answer; "
        r"probably at b\.1, as in the forward before\n  rank 2",
    ),
    "one_more_head": (
        [[["a"]] * 3, [["a"], ["a"], ["a", "b"]]],
        r"(?s)rank 0: does not answer.*at the end of the forward pass.*rank 2: at b\.1",
    ),
}


def out_of_step(rank: int, case: str) -> str:
    """The error in which this rank's training ended. It leaves its group, as an exit would do."""
    model = build()
    group = dist.new_group()
    for module in model.modules():
        if isinstance(module, SyncSwitchNorm2d | BatchChannelNorm2d):
            module.process_group = group
    prepare_sync_norms(model, timeout=timedelta(seconds=2))
    try:
        for step, calls in enumerate(OUT_OF_STEP[case][0]):
            losses = model(batch(rank, step), calls[rank])["losses"]
            torch.stack(list(losses.values())).sum().backward()
        return "none"
    except RuntimeError as error:
        return str(error)
    finally:
        dist.destroy_process_group(group)


def out_of_step_worker(rank: int, world_size: int) -> dict[str, str]:
    errors = {}
    for case in OUT_OF_STEP:
        errors[case] = out_of_step(rank, case)
        gc.collect()  # the model, and with it the group's connections
    return errors


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run_on_ranks(out_of_step_worker, RANKS, tmp_path_factory.mktemp("stopped"))


@pytest.mark.parametrize("case", OUT_OF_STEP)
def test_a_rank_out_of_step_is_named_and_nobody_waits_for_ever(
    case: str, stopped: list[dict[str, str]]
) -> None:
    """The one out of step says so; when it leaves, the others learn in which norm they waited.

    Not after the time-out of the collectives, the minute that `run_on_ranks` gives them.
    """
    errors = [rank[case] for rank in stopped]
    told = [error for error in errors if "is out of step with the ranks" in error]
    assert told and all(re.search(OUT_OF_STEP[case][1], error) for error in told), errors
    assert "Call a head on an empty batch too" in told[0] and "may_skip=True" in told[0]
    assert not any("Timed out" in error for error in errors)
    for error in errors:
        assert error in told or re.search(
            r"^rank \d cannot pool .* over 3 ranks in (a|b|trunk)\.\d", error
        )


def unprotected(rank: int, world_size: int) -> str:
    """Rank 0 skips the head in the second forward, and comes back later than the time-out."""
    model = build(trunk_norm=False)
    for step in range(2):
        if rank == 0 and step:
            time.sleep(3 * TIME_OUT.total_seconds())
            return ""
        try:
            model(batch(rank, step), ["a"])["losses"]["a0"].backward()
        except RuntimeError as error:
            return str(error)
    return ""


TIME_OUT = timedelta(seconds=2)


def test_without_turns_the_same_ranks_wait_until_the_time_out(tmp_path: Path) -> None:
    """What the other tests here protect from: the process group's time-out is the only end."""
    with pytest.raises(ProcessRaisedException):  # of the barrier at the end
        run_on_ranks(unprotected, 2, tmp_path, timeout=TIME_OUT)
    error = torch.load(tmp_path / "rank1.pt")
    assert "rank 1 cannot pool statistics over 2 ranks" in error and "2000ms" in error
