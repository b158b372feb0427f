"""``sync_group_size`` of a run reaches the model's norms."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from tests.norms.processes import run_on_ranks
from wsbcn_d2.engine.train import synchronize_norms
from wsbcn_d2.norms import BatchChannelNorm2d, SyncSwitchNorm2d

SETTINGS = {
    "all": 0,
    "node": "node",
    "two": 2,
    "alone": 1,
}


def worker(rank, world_size):
    comm.create_local_process_group(2)
    results = {}
    for name, size in SETTINGS.items():
        model = nn.Sequential(SyncSwitchNorm2d(2), BatchChannelNorm2d(2, 1))
        synchronize_norms(model, size)
        model(torch.full((1, 2, 3, 3), float(rank)))
        results[name] = {
            # Moved from 0 by a tenth: the mean of the ranks that pooled.
            "mean": 10 * float(model[0].running_mean[0]),
            "same_ranks": model[0].process_group is model[1].process_group,
        }
    results["groups"] = len(dist.distributed_c10d._world.pg_map)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(worker, 4, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("all", [1.5] * 4),
        ("node", [0.5, 0.5, 2.5, 2.5]),
        ("two", [0.5, 0.5, 2.5, 2.5]),
        ("alone", [0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_norms_pool_over_the_processes_that_a_config_asks_for(name, means, ranks):
    assert [rank[name]["mean"] for rank in ranks] == pytest.approx(means)
    assert all(rank[name]["same_ranks"] for rank in ranks)


def test_equal_groups_are_made_once(ranks):
    """The default group, detectron2's of the machine, and one for the norms of all settings."""
    assert [rank["groups"] for rank in ranks] == [3] * 4
