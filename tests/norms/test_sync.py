"""Groups of ranks: sizes, copies, what cannot be copied, and ranks that skip a layer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from tests.norms.processes import run_on_ranks
from tests.norms.test_distributed import Expected, build, check, data, train_step
from wsbcn_d2.norms import BatchChannelNorm2d, SyncSwitchNorm2d, prepare_sync_norms

RANKS = 4
LAYERS = ("sync_sn", "bcn_sync", "bcn")
SIZES = (1, 2, 4, 0)


def message(run: Any) -> str:
    """Of the ValueError or RuntimeError that it raises; empty if none."""
    try:
        run()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def grouped(rank: int, layer: str, size: int) -> dict[str, Any]:
    case = f"{layer}-different_n"
    norm = build(case)
    pooling = prepare_sync_norms(norm, size)
    copies = {"copy": copy.deepcopy(norm)}
    results = {"itself": train_step(norm, *data(case, rank), norm), "pooling": pooling}
    # Two copies at once: what one does is nothing to the other.
    return results | {k: train_step(n, *data(case, rank), n) for k, n in copies.items()}


def pickled(rank: int, layer: str) -> dict[str, Any]:
    case = f"{layer}-different_n"
    norm = build(case)
    prepare_sync_norms(norm, 2)
    norm = pickle.loads(pickle.dumps(norm))
    x, dy = data(case, rank)
    refused = message(lambda: norm(x))
    evaluated = norm.eval()(x).detach()
    prepare_sync_norms(norm.train(), 2)
    return {
        "refused": refused,
        "evaluated": evaluated,
        "again": train_step(norm, x, dy, norm),
    }


def worker(rank: int, world_size: int) -> dict[str, Any]:
    pair = dist.new_group([0, 1])
    return {
        "groups": {(n, s): grouped(rank, n, s) for n in LAYERS for s in SIZES},
        "pickled": {n: pickled(rank, n) for n in LAYERS},
        "size": message(lambda: prepare_sync_norms(SyncSwitchNorm2d(2), 3)),
        "negative": message(lambda: prepare_sync_norms(SyncSwitchNorm2d(2), -1)),
        "outside": message(lambda: BatchChannelNorm2d(2, 1, process_group=pair)),
        "nothing": prepare_sync_norms(
            nn.Sequential(nn.BatchNorm2d(2), BatchChannelNorm2d(2, 1, statistics="batch"))
        ),
        "timeouts": [
            group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
            for group in (dist.group.WORLD, build_group())
        ],
    }


def build_group() -> Any:
    norm = SyncSwitchNorm2d(2)
    prepare_sync_norms(norm, 2)
    return norm.process_group


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(worker, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("which", ["itself", "copy"])
def test_ranks_pool_in_groups_of_any_size(
    layer: str, size: int, which: str, ranks: list[dict[str, Any]]
) -> None:
    members = size or RANKS
    for first in range(0, RANKS, members):
        group = list(range(first, first + members))
        results = [ranks[r]["groups"][layer, size] for r in group]
        check([result[which] for result in results], Expected(f"{layer}-different_n", group))
        for result in results:
            assert result["pooling"] == (size != 1)
            assert bool(result[which]["forward"]) == (size != 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_pickled_norm_asks_for_its_ranks_instead_of_taking_others(
    layer: str, ranks: list[dict[str, Any]]
) -> None:
    for rank, result in enumerate(ranks):
        pickled = result["pickled"][layer]
        members = [0, 1] if rank < 2 else [2, 3]
        assert pickled["refused"].startswith("RuntimeError")
        assert f"pooled over ranks {members} when it was pickled" in pickled["refused"]
        assert "prepare_sync_norms(model, group_size)" in pickled["refused"]
        x, _ = data(f"{layer}-different_n", rank)
        assert_close(pickled["evaluated"], build(f"{layer}-different_n").eval()(x).detach())
    for first in (0, 2):
        pair = [ranks[r]["pickled"][layer]["again"] for r in (first, first + 1)]
        check(pair, Expected(f"{layer}-different_n", [first, first + 1]))


def test_a_pickled_norm_runs_in_a_single_process() -> None:
    norm = SyncSwitchNorm2d(2)
    norm.ranks.assign(None, (0, 1))  # as it was in a group of two
    norm = pickle.loads(pickle.dumps(norm))
    assert norm.process_group is None and norm.ranks.size() == 1
    norm(torch.randn(2, 2, 3, 3)).sum().backward()


def test_sizes_that_do_not_divide_the_processes_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["size"].startswith("ValueError: sync_group_size (3) must divide")
        assert "processes (4); nearest: 2 or 4, or 0 for all" in rank["size"]
        assert "sync_group_size (-1)" in rank["negative"] and "1 or 2" in rank["negative"]


def test_a_group_without_this_rank_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert [bool(rank["outside"]) for rank in ranks] == [False, False, True, True]
    assert "process_group does not contain this process (rank 3)" in ranks[3]["outside"]


def test_norms_of_local_statistics_pool_nothing(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["nothing"] == 0 for rank in ranks)


def test_a_single_process_has_nothing_to_prepare() -> None:
    model = nn.Sequential(SyncSwitchNorm2d(2))
    assert prepare_sync_norms(model) == 0 and not model._forward_hooks
    with pytest.raises(ValueError, match=r"sync_group_size \(2\) must divide.*\(1\)"):
        prepare_sync_norms(model, 2)


def test_groups_wait_as_long_as_the_default_group(ranks: list[dict[str, Any]]) -> None:
    """torch's own default would end an evaluation on one rank after ten minutes."""
    for rank in ranks:
        assert rank["timeouts"][0] == rank["timeouts"][1] == 60


def skipping(rank: int, world_size: int) -> str:
    """Rank 1 skips the first of two layers."""
    dist.set_debug_level(dist.DebugLevel.DETAIL)  # what the variable does, for groups made now
    group = dist.new_group()
    model = nn.Sequential(
        SyncSwitchNorm2d(2, process_group=group),
        nn.Conv2d(2, 3, 1),
        SyncSwitchNorm2d(3, process_group=group),
    )
    prepare_sync_norms(model)
    x = torch.randn(1, 2, 3, 3)
    return message(lambda: model(x) if rank == 0 else model[1:](x))


def test_debug_mode_names_a_rank_that_skips_a_layer(tmp_path: Path) -> None:
    """As TORCH_DISTRIBUTED_DEBUG=DETAIL does for torch's own SyncBatchNorm."""
    told = run_on_ranks(skipping, 2, tmp_path)
    for rank, (error, norm) in enumerate(zip(told, ("'0'", "'2'"), strict=True)):
        assert f"rank {rank} cannot pool statistics over 2 ranks in norm {norm}" in error
        assert "Detected mismatch between collectives on ranks" in error
        assert "TensorShape=[5]" in error and "TensorShape=[7]" in error
