"""The optimizer's state and hyper-parameters in a resumed run."""

from __future__ import annotations

import pytest
import torch
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CosineParamScheduler

from wsbcn_d2.engine.resumed_optimizer import ResumedOptimizer


def make_model(**shapes: int) -> torch.nn.ParameterDict:
    sizes = shapes or {"a": 2, "b": 2}
    return torch.nn.ParameterDict({name: torch.ones(size) for name, size in sizes.items()})


def build(lr: float, decay: float) -> tuple[torch.optim.SGD, LRMultiplier, torch.nn.ParameterDict]:
    model = make_model()
    groups = [{"params": [model["a"]]}, {"params": [model["b"]], "lr": 2 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=decay)
    return optimizer, LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), max_iter=10), model


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
    before, schedule, _ = build(0.1, 0.01)
    run(before, schedule, 4)
    saved, saved_schedule = before.state_dict(), schedule.state_dict()

    optimizer, scheduler, model = build(0.3, 0.0)
    resumed = ResumedOptimizer(optimizer, scheduler, model)
    optimizer.load_state_dict(saved)
    scheduler.load_state_dict(saved_schedule)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    resumed.after_load(new_hyperparameters=True)

    expected = run(*build(0.3, 0.0)[:2], 10)[4:]
    found = run(optimizer, scheduler, 6)
    assert found == [pytest.approx(rates) for rates in expected]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    # What the optimizer has learned of the gradients stays.
    assert all("momentum_buffer" in state for state in optimizer.state.values())


def test_a_schedule_that_detectron2_makes_when_training_starts_takes_the_new_base_rate() -> None:
    before, schedule, _ = build(0.1, 0.0)
    run(before, schedule, 4)
    saved = before.state_dict()
    optimizer, _, model = build(0.3, 0.0)
    optimizer.param_groups[0].pop("initial_lr"), optimizer.param_groups[1].pop("initial_lr")
    resumed = ResumedOptimizer(optimizer, CosineParamScheduler(1.0, 0.0), model)
    optimizer.load_state_dict(saved)
    resumed.after_load(new_hyperparameters=True)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.3, 0.6]
    later = LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), max_iter=10, last_iter=3)
    expected = run(*build(0.3, 0.0)[:2], 10)[4:]
    assert run(optimizer, later, 6) == [pytest.approx(rates) for rates in expected]


# --- by name -----------------------------------------------------------------------------------

SHAPES = {"a": 2, "b": 3, "c": 4}
# The momenta after `trained`.
STEP = {"a": 1.0, "b": 2.0, "c": 3.0}


def trained(
    model: torch.nn.ParameterDict, groups: list[list[str]], **options: float
) -> torch.optim.SGD:
    """An optimizer after a step whose momentum is told apart by parameter."""
    optimizer = make_optimizer(model, groups, **options)
    for i, name in enumerate(sorted(model.keys())):
        model[name].grad = torch.full_like(model[name], i + 1.0)
    optimizer.step()
    return optimizer


def make_optimizer(
    model: torch.nn.ParameterDict, groups: list[list[str]], **options: float
) -> torch.optim.SGD:
    listed = [
        {"params": [model[name] for name in names], "nesterov": i > 0}
        for i, names in enumerate(groups)
    ]
    options = {"lr": 0.5, "momentum": 0.9, **options}
    optimizer = torch.optim.SGD(listed, **options)
    ResumedOptimizer(optimizer, None, model)
    return optimizer


def momenta(optimizer: torch.optim.SGD, model: torch.nn.ParameterDict) -> dict[str, float]:
    state = optimizer.state
    return {
        name: state[parameter]["momentum_buffer"][0].item()
        for name, parameter in model.items()
        if parameter in state
    }


def test_the_state_follows_the_names_into_other_groups_and_another_order() -> None:
    saved = trained(make_model(**SHAPES), [["a", "b"], ["c"]]).state_dict()
    model = make_model(**SHAPES)
    optimizer = make_optimizer(model, [["c"], ["b"], ["a"]], lr=0.1)
    optimizer.load_state_dict(saved)
    assert momenta(optimizer, model) == STEP
    assert [group["nesterov"] for group in optimizer.param_groups] == [True, False, False]
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_what_is_new_or_of_another_shape_starts_anew_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = trained(make_model(**SHAPES), [["a", "b", "c"]]).state_dict()
    model = make_model(a=2, b=7, d=4)
    optimizer = make_optimizer(model, [["a"], ["b", "d"]])
    optimizer.load_state_dict(saved)
    assert momenta(optimizer, model) == {"a": 1.0}
    assert "fits 2 of 3 parameters, such as b" in caplog.text
    for parameter in model.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_another_kind_of_optimizer_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    saved = trained(make_model(**SHAPES), [["a", "b", "c"]]).state_dict()
    model = make_model(**SHAPES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    ResumedOptimizer(optimizer, None, model)
    optimizer.load_state_dict(saved)
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.001
    assert "fits 3 of 3 parameters" in caplog.text


def test_an_unchanged_optimizer_loads_what_was_saved() -> None:
    saved = trained(make_model(**SHAPES), [["a", "b"], ["c"]]).state_dict()
    model = make_model(**SHAPES)
    optimizer = make_optimizer(model, [["a", "b"], ["c"]], lr=0.1)
    optimizer.load_state_dict(saved)
    found = optimizer.state_dict()
    assert {**found["param_groups"][0], "initial_lr": 0.5} == {
        **saved["param_groups"][0],
        "initial_lr": 0.5,
    }
    assert torch.equal(found["state"][2]["momentum_buffer"], saved["state"][2]["momentum_buffer"])


def test_a_state_without_names_is_taken_by_position() -> None:
    saved = trained(make_model(**SHAPES), [["a", "b", "c"]]).state_dict()
    del saved["param_groups"][0]["param_names"]
    model = make_model(**SHAPES)
    optimizer = make_optimizer(model, [["a", "b", "c"]])
    optimizer.load_state_dict(saved)
    assert momenta(optimizer, model) == STEP
