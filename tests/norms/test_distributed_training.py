"""Training on several ranks, wrapped and run in every way that is supported, is one training.

One model with every norm and a head on two levels trains on all ranks; another rank has an empty
batch in the second step. The oracle is the plain model on the joined batches, in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import randomize, tensors
from tests.norms.processes import run_on_ranks
from tests.norms.test_distributed import counted_collectives
from wsbcn_d2.norms import (
    BatchChannelNorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncSwitchNorm2d,
    WSConv2d,
    prepare_sync_norms,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")
C = 4
RANKS = 2
STEPS = 3


class Net(nn.Module):
    """A stem, a trunk, and a head that runs on two levels.

    Args:
        recompute: None, or ``use_reentrant`` of the checkpoints around the trunk and,
        shared: …, the head.
    """

    def __init__(self, recompute: bool | None = None, shared: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(WSConv2d(3, C, 3), SyncSwitchNorm2d(C), nn.ReLU(inplace=True))
        self.trunk = nn.Sequential(
            WSConv2d(C, C, 3, padding=1),
            BatchChannelNorm2d(C, 2, momentum=0.3),
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 1),
            SyncSwitchNorm2d(C, num_groups=2),
            nn.ReLU(),
            WSConv2d(C, C, 3, padding=1),
            BatchChannelNorm2d(C, 2, statistics="sync"),
        )
        self.head = nn.Sequential(
            WSConv2d(C, C, 3, padding=1),
            SyncSwitchNorm2d(C),
            nn.ReLU(inplace=True),
            nn.Conv2d(C, C, 1),
            BatchChannelNorm2d(C, 2, momentum=0.3),
            SwitchNorm2d(C, statistics=("in", "ln")),
            SparseSwitchNorm2d(C, radius=0.70711, statistics=("in", "ln")),
            nn.Conv2d(C, 2, 1),
        )
        self.recompute = recompute
        self.shared = shared

    def _run(self, part: nn.Module, x: Tensor, again: bool = True) -> Tensor:
        if self.recompute is None or not again:
            return part(x)
        return checkpoint(part, x, use_reentrant=self.recompute)

    def forward(self, x: Tensor) -> Tensor:
        x = self._run(self.trunk, self.stem(x))
        levels = [self._run(self.head, level, self.shared) for level in (x, x[..., ::2, ::2])]
        return sum(level.square().sum((1, 2, 3)) for level in levels)


def build(**options: Any) -> Net:
    model = Net(**options).double()
    randomize(model, 3)
    return model


def batch(rank: int, step: int, micro: int = 0) -> Tensor:
    empty = (rank, step) == (1, 1)
    return tensors(900 + 100 * micro + 10 * step + rank, (0 if empty else rank + 1, 3, 8, 9))[0]


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return 1e-3 * model(x).sum()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(
    model: Net, wrapped: Callable[[Tensor], Tensor], rank: int, micro_batches: int = 1
) -> dict[str, Tensor]:
    """The state after a few steps; with ``no_sync`` on all micro-batches but the last."""
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(micro_batches):
            inner = micro + 1 < micro_batches
            with wrapped.no_sync() if inner else nullcontext():  # type: ignore[attr-defined]
                loss_of(wrapped, batch(rank, step, micro)).backward()
        optimizer.step()
    return {name: full(t).clone() for name, t in model.state_dict().items()}


def full(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


# --- what every rank runs ------------------------------------------------------------------------


def under_ddp(rank: int, model: Net, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, broadcast_buffers=False, **options)


def ddp(rank: int) -> dict[str, Tensor]:
    model = build()
    return train(model, under_ddp(rank, model), rank)


def ddp_in_step(rank: int) -> dict[str, Tensor]:
    model = build()
    prepare_sync_norms(model)
    return train(model, under_ddp(rank, model), rank)


def ddp_static_graph(rank: int) -> dict[str, Tensor]:
    model = build()
    return train(model, under_ddp(rank, model, static_graph=True), rank)


def ddp_recomputing(rank: int) -> dict[str, Tensor]:
    model = build(recompute=False)
    prepare_sync_norms(model)
    return train(model, under_ddp(rank, model), rank)


def ddp_recomputing_reentrant(rank: int) -> dict[str, Tensor]:
    # DistributedDataParallel refuses parameters in two reentrant checkpoints.
    model = build(recompute=True, shared=False)
    prepare_sync_norms(model)
    return train(model, under_ddp(rank, model), rank)


def ddp_static_graph_recomputing_reentrant(rank: int) -> dict[str, Tensor]:
    model = build(recompute=True)
    return train(model, under_ddp(rank, model, static_graph=True), rank)


def ddp_no_sync(rank: int) -> dict[str, Tensor]:
    model = build()
    return train(model, under_ddp(rank, model), rank, micro_batches=2)


def ddp_evaluating(rank: int) -> dict[str, Tensor]:
    """Before every training forward one rank evaluates, at length, while the other goes on."""
    model = build()
    prepare_sync_norms(model)
    wrapped = under_ddp(rank, model)

    def step(x: Tensor) -> Tensor:
        if rank == 0:
            model.eval()
            with counted_collectives() as sizes:
                for _ in range(3):
                    model(batch(0, 0)).sum().backward()
                with torch.no_grad():
                    model(batch(1, 0))
            assert sizes == []
            model.zero_grad()
            model.train()
        return wrapped(x)

    return train(model, step, rank)


def shard(model: Net, **options: Any) -> Net:
    mesh = init_device_mesh("cpu", (RANKS,))
    for part in (model.stem, model.trunk, model.head, model):
        fully_shard(part, mesh=mesh, **options)
    return model


def fsdp(rank: int) -> dict[str, Tensor]:
    model = build()
    prepare_sync_norms(model)
    return train(model, shard(model), rank)


def fsdp_kept_unsharded(rank: int) -> dict[str, Tensor]:
    model = build()
    return train(model, shard(model, reshard_after_forward=False), rank)


def fsdp_recomputing(rank: int) -> dict[str, Tensor]:
    model = build(recompute=False)
    prepare_sync_norms(model)
    return train(model, shard(model), rank)


WAYS: dict[str, Callable[[int], dict[str, Tensor]]] = {
    f.__name__: f
    for f in (
        ddp,
        ddp_in_step,
        ddp_static_graph,
        ddp_recomputing,
        ddp_recomputing_reentrant,
        ddp_static_graph_recomputing_reentrant,
        ddp_evaluating,
        fsdp,
        fsdp_kept_unsharded,
        fsdp_recomputing,
        ddp_no_sync,
    )
}


def written_in_place(rank: int) -> list[Tensor]:
    """Outputs of a sharded model whose weights change between forwards, by no optimizer.

    Several times, as a gathered weight may or may not come to lie where the one before it lay.
    """
    model = shard(build().eval())
    outputs = []
    for _ in range(REWRITES):
        outputs.append(model(batch(0, 0)).detach())
        rewrite(model)
    return outputs


REWRITES = 12


def rewrite(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sin_().add_(0.1)


def in_bfloat16(rank: int, together: bool) -> dict[str, Tensor]:
    """One step under autocast, gradients summed over ranks, or all of it on one rank."""
    model = build().float()
    x = [batch(r, 0).float() for r in range(RANKS)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, torch.cat(x) if together else x[rank])
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    if not together:
        for grad in grads.values():
            dist.all_reduce(grad)
    return grads | dict(model.named_buffers())


def compiled(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    """Gradients and buffers after two steps, plain and compiled."""
    results = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        norms = (
            SyncSwitchNorm2d(C),
            BatchChannelNorm2d(C, 2),
            BatchChannelNorm2d(C, 2, statistics="sync"),
        )
        model = nn.Sequential(*norms).double()
        randomize(model, 4)
        prepare_sync_norms(model)
        run = wrap(model)
        for step in range(2):
            x, dy = tensors(70 + 2 * step + rank, *[(2, C, 4, 5)] * 2)
            x.requires_grad_()
            run(x).backward(dy)
        results.append({"dx": x.grad, **{n: p.grad for n, p in model.named_parameters()}})
        results[-1].update(model.named_buffers())
    return results


def worker(rank: int, world_size: int) -> dict[str, Any]:
    return {
        **{name: way(rank) for name, way in WAYS.items()},
        "written": written_in_place(rank),
        "bfloat16": in_bfloat16(rank, False),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(worker, RANKS, tmp_path_factory.mktemp("ranks"))


def joined(micro_batches: int) -> dict[str, Tensor]:
    model = build()
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(micro_batches):
            together = torch.cat([batch(r, step, micro) for r in range(RANKS)])
            (loss_of(model, together) / RANKS).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("way", WAYS)
def test_ranks_train_as_one_process(way: str, ranks: list[dict[str, Any]]) -> None:
    """Design traps 2, 9, 12: weights and running statistics, an empty batch on one rank."""
    expected = joined(2 if way == "ddp_no_sync" else 1)
    for rank in ranks:
        assert_close(rank[way], expected)


def test_a_sharded_weight_that_was_written_is_standardized_anew(
    ranks: list[dict[str, Any]],
) -> None:
    """The gathered weight is one tensor in all forwards, and its version does not tell."""
    model = build().eval()
    for step in range(REWRITES):
        expected = model(batch(0, 0))
        for rank in ranks:
            assert_close(rank["written"][step], expected)
        rewrite(model)


def test_autocast_does_not_reach_the_statistics(ranks: list[dict[str, Any]]) -> None:
    """Design trap 11: a bfloat16 sum of theirs would be off by 1e-3."""
    alone = in_bfloat16(0, True)
    norms = [n for n, m in build().named_modules() if not isinstance(m, nn.Conv2d | nn.ReLU)]
    for rank in ranks:
        compared = {n: t for n, t in rank["bfloat16"].items() if n.rpartition(".")[0] in norms}
        assert len(compared) == 53
        for name, value in compared.items():
            assert_close(
                value, alone[name], rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.slow
def test_compiled_layers_pool_gradients_too(tmp_path: Path) -> None:
    """torch.compile would replace the collective by its own, which has another gradient."""
    for plain, compiled_results in run_on_ranks(compiled, RANKS, tmp_path):
        assert_close(compiled_results, plain)
