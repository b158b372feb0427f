"""SyncSN and BCN on 2 and 4 gloo ranks against one float64 formula over all of them.

All cases of one world size run in a single set of processes; the tests look at what came back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.norms.oracles import (
    along,
    batch_channel_norm,
    pooled_positions,
    randomize,
    sn_statistics,
    state64,
    switch_norm,
    tensors,
)
from tests.norms.processes import run_on_ranks
from wsbcn_d2.norms import (
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncBatchNorm2d,
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
    SyncSwitchNorm3d,
    WSConv2d,
    update_batch_average,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on one sample")
C = 6
WORLDS = [2, 4]
Shape = tuple[int, ...]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sync_sn": lambda: SyncSwitchNorm2d(C, eps=1e-3),
    "sync_sn_grouped": lambda: SyncSwitchNorm2d(C, num_groups=3),
    "sync_sn_bn": lambda: SyncSwitchNorm2d(C, statistics=("bn",), momentum=None),
    "sync_bn": lambda: SyncBatchNorm2d(C, eps=1e-3, momentum=0.3),
    "bcn_sync": lambda: BatchChannelNorm2d(C, 2, eps=1e-3, momentum=0.3, statistics="sync"),
    "bcn": lambda: BatchChannelNorm2d(C, 2, eps=1e-3, momentum=0.3),
}
SHAPES: dict[str, Callable[[int], Shape]] = {
    "equal": lambda rank: (2, C, 5, 4),
    "one_image_each": lambda rank: (1, C, 5, 4),
    "different_n": lambda rank: (rank + 1, C, 5, 4),
    "empty_rank": lambda rank: (0 if rank == 1 else rank + 2, C, 5, 4),
    "empty_first_rank": lambda rank: (0 if rank == 0 else 3, C, 5, 4),
    "different_sizes": lambda rank: (2, C, 3 + rank, 7 - rank),
    "all_different": lambda rank: ((3, 0, 1, 2)[rank], C, 2 + 3 * rank, 4 + rank),
    "map_without_positions": lambda rank: (2, C, 0 if rank == 1 else 4, 5),
    "all_empty": lambda rank: (0, C, 5, 4),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Shape]]] = {
    "sync_sn_vectors": (lambda: SyncSwitchNorm1d(C), lambda rank: (rank + 2, C)),
    "sync_sn_vectors_unbiased": (
        lambda: SyncSwitchNorm1d(C, unbiased=True),
        lambda rank: (rank + 2, C),
    ),
    "sync_sn_unbiased": (
        lambda: SyncSwitchNorm2d(C, unbiased=True),
        lambda rank: (rank + 2, C, 5, 4),
    ),
    "sync_sn_3d": (lambda: SyncSwitchNorm3d(C), lambda rank: (2, C, 2 + rank, 3, 2)),
    "bcn_sync_vectors": (
        lambda: BatchChannelNorm1d(C, 2, statistics="sync"),
        lambda rank: (rank + 2, C),
    ),
}
CASES = {f"{a}-{b}": (LAYERS[a], SHAPES[b]) for a in LAYERS for b in SHAPES} | OTHERS


def build(case: str) -> nn.Module:
    norm = CASES[case][0]().double()
    randomize(norm, 0)
    return norm


def data(case: str, rank: int) -> tuple[Tensor, Tensor]:
    """Input and output gradient of this rank; means differ between ranks."""
    x, dy = tensors(100 + rank, *[CASES[case][1](rank)] * 2)
    return 2 + rank + (1 + rank) * x, dy


@contextmanager
def counted_collectives() -> Iterator[list[int]]:
    """The size of each all_reduce that Python code asks for."""
    sizes: list[int] = []
    original = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        yield sizes
    finally:
        dist.all_reduce = original


def train_step(
    norm: nn.Module, x: Tensor, dy: Tensor, run: Callable[..., Tensor]
) -> dict[str, Any]:
    leaf = x.clone().requires_grad_()
    with counted_collectives() as sizes:
        y = run(leaf)
        forward = list(sizes)
        y.backward(dy)
    return {
        "y": y.detach(),
        "dx": leaf.grad,
        "grads": {n: p.grad for n, p in norm.named_parameters()},
        "buffers": {n: b.clone() for n, b in norm.named_buffers()},
        "forward": forward,
        "backward": sizes[len(forward) :],
    }


# --- what every rank runs ----------------------------------------------------------------------


def synced(case: str, rank: int) -> dict[str, Any]:
    norm = build(case)
    result = train_step(norm, *data(case, rank), norm)
    norm.zero_grad()
    x, dy = data(case, rank)
    with counted_collectives() as sizes:
        norm.eval()(x.requires_grad_()).backward(dy)
        norm.train().requires_grad_(False)(x).sum().backward()
    result["evaluation"] = sizes
    norm.requires_grad_(True)
    with counted_collectives() as sizes, torch.no_grad():
        norm(x)
    result["no_grad"] = sizes
    return result


def checkpointed(case: str, rank: int) -> dict[str, Any]:
    results = {}
    for reentrant in (True, False):
        norm = build(case)
        results[f"reentrant={reentrant}"] = train_step(
            norm,
            *data(case, rank),
            lambda x, n=norm, r=reentrant: checkpoint(n, x, use_reentrant=r),
        )
    return results


def twice_differentiated(case: str, rank: int) -> Tensor:
    norm = build(case)
    x, dy = data(case, rank)
    leaf = x.requires_grad_()
    (first,) = torch.autograd.grad(norm(leaf), leaf, dy, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), leaf)
    return second


def far_from_zero(rank: int) -> dict[str, Any]:
    """Mean 1e4, deviation 1, in float32, from running statistics of (0, 1)."""
    results = {}
    for name, norm in (
        ("sync_sn", SyncSwitchNorm2d(C, momentum=1.0)),
        ("bcn_sync", BatchChannelNorm2d(C, 2, momentum=1.0, statistics="sync")),
    ):
        y = norm(far_batch(rank))
        results[name] = {"y": y.detach(), "buffers": dict(norm.named_buffers())}
    return results


def far_batch(rank: int) -> Tensor:
    (x,) = tensors(300 + rank, (rank + 1, C, 23, 19))
    return (1e4 + x).float()


def ddp_model() -> nn.Sequential:
    model = nn.Sequential(
        WSConv2d(3, C, 3),
        SyncSwitchNorm2d(C),
        nn.ReLU(inplace=True),
        WSConv2d(C, C, 1),
        BatchChannelNorm2d(C, 2, statistics="sync"),
        nn.ReLU(inplace=True),
        nn.Conv2d(C, C, 1),
        SwitchNorm2d(C, statistics=("in", "ln")),
        SparseSwitchNorm2d(C, radius=0.70711, statistics=("in", "ln")),
        nn.Conv2d(C, 2, 1),
    ).double()
    randomize(model, 1)
    return model


def ddp_batch(rank: int, step: int) -> Tensor:
    """One rank has an empty batch in the second step."""
    (x,) = tensors(400 + 10 * step + rank, (0 if (rank, step) == (1, 1) else 2, 3, 8, 8))
    return x


def under_ddp(rank: int) -> dict[str, Any]:
    model = ddp_model()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (1e-3 * wrapped(ddp_batch(rank, step)).square().sum()).backward()
        optimizer.step()
    return {k: v.clone() for k, v in model.state_dict().items()}


def average_batches(rank: int) -> list[Tensor]:
    return tensors(500 + rank, (2, C, 4, 5), (3, C, 4, 5), dtype=torch.float32)


def batch_averaged(rank: int) -> dict[str, Any]:
    results = {}
    for name, layer in (("sn", SwitchNorm2d), ("sync_sn", SyncSwitchNorm2d)):
        norm = layer(C)
        update_batch_average(norm, average_batches(rank), 2)
        results[name] = dict(norm.named_buffers())
    return results


def in_groups(rank: int, world_size: int) -> dict[str, Any]:
    """Pairs of ranks, each pooling on its own."""
    groups = [dist.new_group([r, r + 1]) for r in range(0, world_size, 2)]
    results = {}
    for name, norm in (
        ("sync_sn", SyncSwitchNorm2d(C, eps=1e-3, process_group=groups[rank // 2])),
        ("bcn_sync", BatchChannelNorm2d(C, 2, 1e-3, 0.3, "sync", process_group=groups[rank // 2])),
        ("bcn", BatchChannelNorm2d(C, 2, 1e-3, 0.3, process_group=groups[rank // 2])),
    ):
        norm.load_state_dict(build(f"{name}-different_n").state_dict())
        norm.double()
        randomize(norm, 0)
        results[name] = train_step(norm, *data(f"{name}-different_n", rank), norm)
    return results


def worker(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "synced": {case: synced(case, rank) for case in CASES},
        "checkpointed": {
            case: checkpointed(case, rank) for case in CASES if case.endswith("-all_different")
        },
        "twice": {
            case: twice_differentiated(case, rank)
            for case in CASES
            if case.endswith(("-different_sizes", "-empty_rank"))
        },
        "far": far_from_zero(rank),
        "ddp": under_ddp(rank),
        "average": batch_averaged(rank),
        "groups": in_groups(rank, world_size),
    }


# --- what is expected --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=WORLDS, ids=lambda w: f"{w}_ranks")
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    return run_on_ranks(worker, request.param, tmp_path_factory.mktemp("ranks"))


class Expected:
    """The formula over the batches of several ranks, with parameters of its own for each rank.

    Summing the loss over ranks and giving each its own copy of the parameters makes autograd
    return what each rank should: full input gradients and local parameter gradients.
    """

    def __init__(self, case: str, members: list[int]) -> None:
        norm = build(case)
        self.x = [data(case, r)[0].requires_grad_() for r in members]
        self.dy = [data(case, r)[1] for r in members]
        self.states = [state64(norm) for _ in members]
        self.names = [n for n, _ in norm.named_parameters()]
        positions = sum(x.numel() // C for x in self.x)
        if positions:
            mean, var = pooled_positions(self.x)
        else:
            mean, var = torch.zeros(C).double(), torch.zeros(C).double()
        if getattr(norm, "unbiased", False):
            mean, var = (t.flatten() for t in sn_statistics(torch.cat(self.x), unbiased=True)["bn"])
        self.y, moved = [], var
        prefix = "bn." if "bn.weight" in self.names else ""
        rate = (1.0 if norm.momentum is None else norm.momentum) if positions else 0.0
        old = self.states[0]
        estimates = getattr(norm, "statistics", "") == "estimate"
        if estimates:
            # Moved before use, the variance about the old mean; no gradient.
            if positions:
                about = old["bn.running_mean"]
                moved = pooled_positions([(x - along(about, x)) ** 2 for x in self.x])[0]
            used = [
                torch.lerp(old[f"bn.running_{name}"], t, rate).detach()
                for name, t in (("mean", mean), ("var", moved))
            ]
        for x, state in zip(self.x, self.states, strict=True):
            if not x.numel():
                self.y.append(x * 1)
            elif isinstance(norm, BatchChannelNorm2d | BatchChannelNorm1d):
                inner = used if estimates else (mean, var)
                self.y.append(batch_channel_norm(x, state, norm.num_groups, *inner, norm.eps))
                if not estimates:
                    moved = var * positions / max(positions - 1, 1)
            elif isinstance(norm, SyncBatchNorm2d):
                hat = (x - along(mean, x)) / torch.sqrt(along(var, x) + norm.eps)
                self.y.append(hat * along(state["weight"], x) + along(state["bias"], x))
                moved = var * positions / max(positions - 1, 1)
            else:
                bn = (mean, var)
                y = switch_norm(x, state, norm.statistics, norm.eps, norm.unbiased, bn)
                self.y.append(y)
        self.buffers = {
            f"{prefix}running_mean": torch.lerp(old[f"{prefix}running_mean"], mean.detach(), rate),
            f"{prefix}running_var": torch.lerp(old[f"{prefix}running_var"], moved.detach(), rate),
            f"{prefix}num_batches_tracked": torch.tensor(int(positions > 0)),
        }

    def grads(self, create_graph: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        total = sum((y * dy).sum() for y, dy in zip(self.y, self.dy, strict=True))
        leaves = self.x + [state[n] for state in self.states for n in self.names]
        found = torch.autograd.grad(
            total, leaves, create_graph=create_graph, materialize_grads=True, allow_unused=True
        )
        dx, rest = list(found[: len(self.x)]), iter(found[len(self.x) :])
        return dx, [{n: next(rest) for n in self.names} for _ in self.states]


def check(results: list[dict[str, Any]], expected: Expected) -> None:
    dx, grads = expected.grads()
    for r, result in enumerate(results):
        assert_close(result["y"], expected.y[r].detach())
        assert_close(result["dx"], dx[r])
        for name, wanted in grads[r].items():
            assert result["grads"][name] is not None, name
            assert_close(result["grads"][name], wanted, msg=lambda m, n=name: f"{n}: {m}")
        assert_close(result["buffers"], expected.buffers)


@pytest.mark.parametrize("case", CASES)
def test_ranks_together_equal_one_process_on_the_joined_batch(
    case: str, ranks: list[dict[str, Any]]
) -> None:
    """Design traps 2 and 9: outputs, input and parameter gradients, running statistics."""
    check([r["synced"][case] for r in ranks], Expected(case, list(range(len(ranks)))))


@pytest.mark.parametrize("shapes", ["equal", "different_n", "empty_rank"])
@pytest.mark.parametrize("layer", LAYERS)
def test_ranks_together_equal_the_same_layer_alone(
    layer: str, shapes: str, ranks: list[dict[str, Any]]
) -> None:
    case = f"{layer}-{shapes}"
    norm = build(case)
    x, dy = zip(*(data(case, r) for r in range(len(ranks))), strict=True)
    alone = train_step(norm, torch.cat(x), torch.cat(dy), norm)
    assert alone["forward"] == alone["backward"] == []
    results = [r["synced"][case] for r in ranks]
    assert_close(torch.cat([r["y"] for r in results]), alone["y"])
    assert_close(torch.cat([r["dx"] for r in results]), alone["dx"])
    for name, grad in alone["grads"].items():
        assert_close(torch.stack([r["grads"][name] for r in results]).sum(0), grad)
    for result in results:
        assert_close(result["buffers"], alone["buffers"])


@pytest.mark.parametrize("case", CASES)
def test_one_collective_each_way_and_none_in_evaluation(
    case: str, ranks: list[dict[str, Any]]
) -> None:
    """Design trap 2: the released layer keeps its all_reduce in evaluation."""
    for rank in ranks:
        result = rank["synced"][case]
        assert result["forward"] == [2 * C + 1]
        # No gradient flows through estimates.
        assert result["backward"] == ([] if case.startswith("bcn-") else [2 * C])
        assert result["evaluation"] == []
        assert result["no_grad"] == [2 * C + 1]


@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("-empty_rank")])
def test_an_empty_rank_has_zero_gradients_not_none(case: str, ranks: list[dict[str, Any]]) -> None:
    """Design trap 9."""
    result = ranks[1]["synced"][case]
    for grad in result["grads"].values():
        assert_close(grad, torch.zeros_like(grad))
    assert result["dx"].shape[0] == 0


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("-all_different")])
def test_checkpointing_moves_estimates_once(
    case: str, reentrant: bool, ranks: list[dict[str, Any]]
) -> None:
    """Design trap 12. The recomputation asks the other ranks again, as SyncBatchNorm's does, but
    uses the estimates of the first time."""
    results = [r["checkpointed"][case][f"reentrant={reentrant}"] for r in ranks]
    check(results, Expected(case, list(range(len(ranks)))))
    for rank, result in zip(ranks, results, strict=True):
        assert result["forward"] == rank["synced"][case]["forward"]
        recomputed = [] if case.startswith("bcn-") else [2 * C + 1]
        assert result["backward"] == recomputed + rank["synced"][case]["backward"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.endswith(("-different_sizes", "-empty_rank"))]
)
def test_second_derivatives_cross_ranks(case: str, ranks: list[dict[str, Any]]) -> None:
    expected = Expected(case, list(range(len(ranks))))
    dx, _ = expected.grads(create_graph=True)
    squares = sum((g**2).sum() for g in dx)
    wanted = torch.autograd.grad(squares, expected.x, materialize_grads=True)
    for rank, second in zip(ranks, wanted, strict=True):
        assert_close(rank["twice"][case], second)


@pytest.mark.parametrize("name", ["sync_sn", "bcn_sync"])
def test_sums_over_ranks_do_not_cancel_far_from_zero(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    """Design trap 3: running_mean is 0 and the mean 1e4."""
    batches = [far_batch(r).double() for r in range(len(ranks))]
    mean, var = pooled_positions(batches)
    prefix = "bn." if name == "bcn_sync" else ""
    count = sum(b.numel() // C for b in batches)
    truth = var * count / (count - 1) if name == "bcn_sync" else var
    norm = SyncSwitchNorm2d(C) if name == "sync_sn" else BatchChannelNorm2d(C, 2)
    for rank, x in zip(ranks, batches, strict=True):
        result, state = rank["far"][name], state64(norm)
        assert_close(result["buffers"][f"{prefix}running_mean"].double(), mean, rtol=1e-7, atol=0)
        assert_close(result["buffers"][f"{prefix}running_var"].double(), truth, rtol=1e-3, atol=0)
        if name == "sync_sn":
            y = switch_norm(x, state, ("in", "ln", "bn"), bn=(mean, var))
        else:
            y = batch_channel_norm(x, state, 2, mean, var, 1e-5)
        assert_close(result["y"].double(), y.detach(), rtol=0, atol=5e-3)


def test_ddp_trains_as_one_process_with_an_empty_rank(ranks: list[dict[str, Any]]) -> None:
    """Design traps 2 and 9: no find_unused_parameters, gradients averaged as all others."""
    model, world_size = ddp_model(), len(ranks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        joined = torch.cat([ddp_batch(r, step) for r in range(world_size)])
        (1e-3 * model(joined).square().sum() / world_size).backward()
        optimizer.step()
    for rank in ranks:
        assert_close(rank["ddp"], model.state_dict())


def test_batch_average_is_averaged_over_ranks(ranks: list[dict[str, Any]]) -> None:
    all_batches = [[b.double() for b in average_batches(r)] for r in range(len(ranks))]
    local = [pooled_positions([b]) for batches in all_batches for b in batches]
    joined = [pooled_positions(list(together)) for together in zip(*all_batches, strict=True)]
    for name, parts in (("sn", local), ("sync_sn", joined)):
        mean = torch.stack([m for m, _ in parts]).mean(0)
        var = torch.stack([v for _, v in parts]).mean(0)
        for rank in ranks:
            buffers = rank["average"][name]
            assert_close(buffers["running_mean"].double(), mean, rtol=1e-5, atol=1e-5)
            assert_close(buffers["running_var"].double(), var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sync_sn", "bcn_sync", "bcn"])
def test_a_process_group_pools_its_own_ranks_only(name: str, ranks: list[dict[str, Any]]) -> None:
    for first in range(0, len(ranks), 2):
        members = [first, first + 1]
        expected = Expected(f"{name}-different_n", members)
        check([ranks[r]["groups"][name] for r in members], expected)


def test_every_rank_keeps_the_same_running_statistics(ranks: list[dict[str, Any]]) -> None:
    """Design trap 20 does not concern synchronized statistics: they agree to the last bit."""
    for case in CASES:
        buffers = [r["synced"][case]["buffers"] for r in ranks]
        assert_close(buffers, [buffers[0]] * len(buffers), rtol=0, atol=0)
