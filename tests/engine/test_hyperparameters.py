"""A resumed run whose learning rate, momentum and weight decay are the config's."""

from __future__ import annotations

import pytest
import torch
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CosineParamScheduler

from wsbcn_d2.engine.resume import Hyperparameters


def build(lr: float, decay: float) -> tuple[torch.optim.SGD, LRMultiplier]:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 2 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=decay)
    return optimizer, LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), max_iter=10)


def run(optimizer: torch.optim.SGD, scheduler: LRMultiplier, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return rates


def test_the_new_base_rate_goes_on_at_the_same_place_of_the_schedule() -> None:
    before, schedule = build(0.1, 0.01)
    run(before, schedule, 4)
    saved, saved_schedule = before.state_dict(), schedule.state_dict()

    optimizer, scheduler = build(0.3, 0.0)
    ours = Hyperparameters(optimizer, scheduler)
    optimizer.load_state_dict(saved)
    scheduler.load_state_dict(saved_schedule)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    ours.restore()

    expected = run(*build(0.3, 0.0), 10)[4:]
    found = run(optimizer, scheduler, 6)
    assert found == [pytest.approx(rates) for rates in expected]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    # What the optimizer has learned of the gradients stays.
    assert all("momentum_buffer" in state for state in optimizer.state.values())


def test_a_schedule_that_detectron2_makes_when_training_starts_takes_the_new_base_rate() -> None:
    before, schedule = build(0.1, 0.0)
    run(before, schedule, 4)
    saved = before.state_dict()
    optimizer, _ = build(0.3, 0.0)
    optimizer.param_groups[0].pop("initial_lr"), optimizer.param_groups[1].pop("initial_lr")
    ours = Hyperparameters(optimizer, CosineParamScheduler(1.0, 0.0))
    optimizer.load_state_dict(saved)
    ours.restore()
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.3, 0.6]
    later = LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), max_iter=10, last_iter=3)
    expected = run(*build(0.3, 0.0), 10)[4:]
    assert run(optimizer, later, 6) == [pytest.approx(rates) for rates in expected]
