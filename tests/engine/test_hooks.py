"""Weight averaging, and when things are due."""

import types

import pytest
import torch
from torch import nn

from wsbcn_d2.engine import EvalHook, ModelEMA
from wsbcn_d2.engine.hooks import is_due


def test_is_due_on_multiples_of_the_period_and_at_the_end():
    assert [i for i in range(7) if is_due(i, 3, 7)] == [2, 5, 6]
    assert [i for i in range(7) if is_due(i, 0, 7)] == [6]


def test_ema_follows_its_formula_and_copies_counters():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)
    ema = ModelEMA(model, decay=0.3)
    expected = None
    for iteration in range(5):
        ema.trainer = types.SimpleNamespace(iter=iteration)
        with torch.no_grad():
            model.weight.normal_()
        model(torch.randn(4, 3))
        decay = min(0.3, (1 + iteration) / (10 + iteration))
        current = torch.stack([model.weight.detach(), model.running_var]).clone()
        expected = current if expected is None else decay * expected + (1 - decay) * current
        ema.after_step()
    averaged = ema.averaged.module
    actual = torch.stack([averaged.weight, averaged.running_var])
    torch.testing.assert_close(actual, expected)
    assert averaged.num_batches_tracked == 5
    assert not averaged.training and not averaged.weight.requires_grad


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_ema_refuses_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"ema\.decay"):
        ModelEMA(nn.Linear(1, 1), decay)


@pytest.mark.parametrize(("iteration", "evaluations"), [(9, 0), (10, 1)])
def test_a_training_that_failed_is_not_evaluated(iteration, evaluations):
    calls = []
    hook = EvalHook(5, lambda: calls.append(1))
    hook.trainer = types.SimpleNamespace(iter=iteration, max_iter=10)
    hook.after_train()
    assert len(calls) == evaluations
