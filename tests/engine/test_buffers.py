"""One set of running statistics for all ranks, whatever the norm."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from tests.norms.processes import run_on_ranks
from wsbcn_d2.engine import average_buffers
from wsbcn_d2.norms import (
    BatchChannelNorm2d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    SyncSwitchNorm2d,
    WSConv2d,
)

C = 4
STEPS = 10
SYNCHRONIZED = ("sync_sn", "bcn", "bcn_sync", "frozen")


class Net(nn.ModuleDict):
    """Every norm after a convolution; the "sn" layers also see empty batches."""

    def __init__(self):
        norms = {
            "bn": nn.BatchNorm2d(C),
            "frozen": FrozenBatchNorm2d(C),
            "sn": SwitchNorm2d(C),
            "ssn": SparseSwitchNorm2d(C, radius=0.1),
            "sync_sn": SyncSwitchNorm2d(C),
            "bcn": BatchChannelNorm2d(C, 2),
            "bcn_batch": BatchChannelNorm2d(C, 2, statistics="batch"),
            "bcn_sync": BatchChannelNorm2d(C, 2, statistics="sync"),
        }
        super().__init__({name: nn.Sequential(WSConv2d(C, C, 3), n) for name, n in norms.items()})

    def forward(self, x, proposals):
        x = self["bn"](x)
        for name, layer in self.items():
            if name not in ("bn", "sn"):
                x = layer(nn.functional.pad(x, (1, 1, 1, 1)))
        return x.square().sum() + self["sn"](x[:proposals]).square().sum()


def worker(rank, world_size):
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model["frozen"][1].running_mean.normal_()
        model["frozen"][1].running_var.uniform_(0.1, 3)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(1 + rank)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = rank + torch.randn(1 + rank % 2, C, 9 + rank, 12 - rank)
        wrapped(x, proposals=0 if (rank, step) == (1, 4) else 1).backward()
        optimizer.step()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    averaged = average_buffers(model)
    model.eval()
    torch.manual_seed(9)
    with torch.no_grad():
        outputs = [model(torch.randn(1, C, 16, 16), 1) for _ in range(3)]
    return {
        "before": before,
        "after": dict(model.named_buffers()),
        "averaged": averaged,
        "outputs": outputs,
    }


@pytest.fixture(scope="module", params=[4, 3], ids=lambda w: f"{w}_ranks")
def ranks(request, tmp_path_factory):
    return run_on_ranks(worker, request.param, tmp_path_factory.mktemp("ranks"))


def equal(first, second):
    assert_close(first, second, rtol=0, atol=0)


def test_trap_20_synchronized_statistics_never_differ(ranks):
    """To the last bit, after ten steps on different images; the others do differ."""
    for name in ranks[0]["before"]:
        buffers = [rank["before"][name] for rank in ranks]
        kind, last = name.split(".")[0], name.rpartition(".")[2]
        if kind in SYNCHRONIZED:
            for buffer in buffers:
                equal(buffer, buffers[0])
        elif last in ("running_mean", "running_var"):
            assert not torch.equal(buffers[0], buffers[1]), name


def test_trap_20_averaging_leaves_one_set_for_all_ranks(ranks):
    means_and_variances = 0
    for name in ranks[0]["after"]:
        before = torch.stack([rank["before"][name] for rank in ranks])
        for rank in ranks:
            equal(rank["after"][name], ranks[0]["after"][name])
        after = ranks[0]["after"][name]
        if name.endswith(("running_mean", "running_var")):
            means_and_variances += 1
            assert_close(after, before.double().mean(0).float())
        elif name.endswith("num_batches_tracked"):
            equal(after, before.amax(0))
        if name.split(".")[0] in SYNCHRONIZED:
            equal(after, before[0])
    assert {rank["averaged"] for rank in ranks} == {means_and_variances} == {16}
    assert ranks[1]["before"]["sn.1.num_batches_tracked"] == STEPS - 1


def test_trap_20_every_rank_evaluates_the_same_model(ranks):
    for rank in ranks:
        equal(rank["outputs"], ranks[0]["outputs"])


def test_one_process_has_nothing_to_average():
    model = Net()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    assert average_buffers(model) == 0
    equal(dict(model.state_dict()), state)
