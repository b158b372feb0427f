"""How a batch is shared out, and what is scaled with it."""

import logging

import pytest
import torch
from torch import nn

from wsbcn_d2.config.batch import (
    BatchPlan,
    correct_momentum,
    plan_batch,
    scale_learning_rate,
)
from wsbcn_d2.engine import ConfigError
from wsbcn_d2.norms import BatchChannelNorm2d, SwitchNorm2d


@pytest.mark.parametrize(
    ("total", "images_per_gpu", "world_size", "steps"),
    [(16, 1, 1, 16), (16, 2, 4, 2), (16, 4, 4, 1), (16, 0, 4, 1), (64, 1, 64, 1)],
)
def test_the_batch_is_the_product(total, images_per_gpu, world_size, steps):
    plan = plan_batch(total, images_per_gpu, world_size)
    assert plan.steps == steps
    assert plan.images_per_gpu * plan.world_size * plan.steps == plan.total == total


@pytest.mark.parametrize(
    ("total", "images_per_gpu", "world_size", "nearest"),
    [
        (16, 3, 2, "total_batch_size 12 or 18; or images_per_gpu 2 or 4$"),
        (16, 2, 3, r"total_batch_size 12 or 18; or 2 or 4 process\(es\)$"),
        (16, 1, 32, r"total_batch_size 32; or 16 process\(es\)$"),
        (12, 0, 8, r"total_batch_size 8 or 16; or 6 or 12 process\(es\)$"),
        (8, 4, 4, r"16; or images_per_gpu 2; or 2 process\(es\)$"),
        (0, 1, 2, "total_batch_size 2$"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(total, images_per_gpu, world_size, nearest):
    with pytest.raises(
        ConfigError, match=rf"^total_batch_size \({total}\).*nearest: .*{nearest}"
    ) as e:
        plan_batch(total, images_per_gpu, world_size)
    assert f"the {world_size} process(es)" in str(e.value)
    assert (f"images_per_gpu ({images_per_gpu})" in str(e.value)) == (images_per_gpu > 0)
    with pytest.raises(ConfigError, match=r"images_per_gpu \(-1\)"):
        plan_batch(16, -1, 2)


def test_the_nearest_settings_are_valid():
    for total in range(1, 20):
        for images_per_gpu in range(5):
            for world_size in range(1, 7):
                try:
                    plan_batch(total, images_per_gpu, world_size)
                except ConfigError as error:
                    for part in str(error).partition("nearest: ")[2].split("; or "):
                        for number in [int(w) for w in part.split() if w.isdigit()]:
                            settings = [total, images_per_gpu, world_size]
                            names = ("total_batch_size", "images_per_gpu", "process(es)")
                            settings[[n in part for n in names].index(True)] = number
                            plan_batch(*settings)


def test_a_config_without_a_batch_accumulates_nothing():
    assert BatchPlan(0, 0, 4).steps == 1


def test_the_linear_rule_is_applied_to_every_group_and_told(caplog):
    caplog.set_level(logging.INFO)
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.02, 0.04)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scale_learning_rate(optimizer, 8, 16)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert "group 0: 0.02 × 8 / 16 images = 0.01" in caplog.text


def test_four_corrected_micro_batches_forget_as_much_as_one_batch():
    models = [
        nn.Sequential(
            nn.BatchNorm2d(32), SwitchNorm2d(32), BatchChannelNorm2d(32), nn.GroupNorm(4, 32)
        )
        for _ in range(2)
    ]
    assert correct_momentum(models[1], 4) == 3
    x = torch.randn(2, 32, 5, 5)
    for model, times in zip(models, (1, 4), strict=True):
        for layer in model:
            for _ in range(times):
                layer(x)
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        if a.is_floating_point() and a is not models[0][2].bn.running_var:
            torch.testing.assert_close(a, b)
    # BCN's variance is about the estimated mean, which moves in between.
    assert models[1][2].bn.momentum == pytest.approx(1 - 0.9**0.25)


def test_a_plain_average_stays_one():
    model = nn.BatchNorm2d(3, momentum=None)
    assert correct_momentum(model, 4) == 0 and model.momentum is None
    assert correct_momentum(nn.BatchNorm2d(3, track_running_stats=False), 4) == 0
