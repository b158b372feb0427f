"""Starting processes, and what two of them do together."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from wsbcn_d2.engine import ConfigError, RankFailedError, average_buffers, launch
from wsbcn_d2.engine.launch import planned_world_size


def check_two_ranks(folder):
    rank = comm.get_rank()
    assert (comm.get_world_size(), comm.get_local_rank()) == (2, rank)
    assert dist.get_backend() == "gloo"
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3).double())
    model[0].running_mean.fill_(float(rank))
    model[0].num_batches_tracked.fill_(rank)
    model[1].running_var.fill_(4.0 * rank)
    assert average_buffers(model) == 4
    assert model[0].running_mean.tolist() == [0.5, 0.5]
    assert model[0].running_var.tolist() == [1.0, 1.0]
    assert model[1].running_var.tolist() == [2.0, 2.0, 2.0]
    assert model[1].running_var.dtype == torch.float64
    assert model[0].num_batches_tracked == 1  # the larger one
    (folder / f"rank{rank}").touch()
    comm.synchronize()
    if rank == 1:
        raise KeyError("the original error")
    # Without being stopped by the launcher, this rank would wait for ever.
    comm.synchronize()


def test_two_cpu_processes_average_their_buffers_and_a_failing_one_ends_both(tmp_path):
    with pytest.raises(RankFailedError, match=r"^rank 1 of 2 .*failed:\s+Traceback"):
        launch(check_two_ranks, 2, args=(tmp_path,), device="cpu")
    assert (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists()


def test_one_process_is_a_call():
    seen = []
    launch(lambda pid: seen.append(pid == os.getpid()), 1, args=(os.getpid(),), device="cpu")
    assert seen == [True]


def test_more_processes_than_gpus_says_how_to_use_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--num-gpus is 3.* 2 GPU.*train\.device=cpu"):
        launch(print, 3, device="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_gpus_per_machine": 0}, "--num-gpus is 0"),
        ({"num_gpus_per_machine": 1, "machine_rank": 1}, "--machine-rank is 1, but must be below"),
        ({"num_gpus_per_machine": 1, "num_machines": 2}, "--dist-url is needed"),
        ({"num_gpus_per_machine": 2, "dist_url": "file:///tmp/x"}, r"--dist-url .* must be tcp://"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        launch(print, device="cpu", **arguments)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port} .* take a free port"):
            launch(print, 2, dist_url=f"tcp://127.0.0.1:{port}", device="cpu")


def test_under_torchrun_its_world_size_counts(monkeypatch):
    assert planned_world_size(2, 3) == 6
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert planned_world_size(1, 1) == 8
