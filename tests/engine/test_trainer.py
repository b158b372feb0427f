"""The training step: what it logs, clips, scales, and refuses."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from wsbcn_d2.engine import Trainer


class Toy(nn.Module):
    """Loss "a" is the square of the weight times the input, "b" is the input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.seen = None

    def forward(self, batch):
        x = torch.tensor([item["x"] for item in batch]).mean()
        product = torch.mm(self.weight.view(1, 1), x.view(1, 1))
        self.seen = product.dtype
        return {"a": product.float().square().sum(), "b": x.clone()}


def step(trainer):
    with EventStorage() as storage:
        trainer.iter = 7
        trainer.run_step()
    return {name: value for name, (value, _) in storage.latest().items()}


def toy_trainer(x, lr=0.1, **options):
    model = Toy()
    batch = [{"x": x, "image_id": 41}, {"x": x, "file_name": "b.png"}]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, Trainer(model, [batch] * 3, optimizer, device="cpu", **options)


def test_a_step_is_gradient_descent_and_logs_the_losses():
    model, trainer = toy_trainer(1.0)
    logged = step(trainer)
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 2 * 2.0)
    assert logged["total_loss"] == 5.0 and logged["a"] == 4.0
    assert "grad_norm" not in logged


def test_clipping_limits_the_step_and_logs_the_norm_before_it():
    model, trainer = toy_trainer(1.0, clip_grad={"max_norm": 1.0, "norm_type": 2.0})
    logged = step(trainer)
    assert model.weight.item() == pytest.approx(1.9, abs=1e-5)
    assert logged["grad_norm"] == 4.0


def test_bfloat16_autocast_without_a_scaler_on_the_cpu():
    model, trainer = toy_trainer(1.0, amp_dtype=torch.bfloat16)
    step(trainer)
    assert model.seen == torch.bfloat16 and model.weight.dtype == torch.float32
    assert not trainer.grad_scaler.is_enabled()


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing():
    model, trainer = toy_trainer(float("inf"), last_checkpoint=lambda: "out/model_5.pth")
    with pytest.raises(FloatingPointError) as error:
        step(trainer)
    message = str(error.value)
    assert "iteration 7" in message and "rank 0 of 1" in message
    assert "image ids: 41, b.png" in message
    assert "a: inf   <-- not finite" in message and "b: inf" in message
    assert "out/model_5.pth" in message
    assert model.weight.item() == 2.0 and model.weight.grad is None


def test_an_rpn_that_diverged_is_reported_with_the_image_ids_too(monkeypatch):
    model, trainer = toy_trainer(1.0)

    def diverge(batch):
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    monkeypatch.setattr(model, "forward", diverge)
    with pytest.raises(FloatingPointError, match=r"(?s)iteration 7.*ids: 41, b\.png.*Inf/NaN"):
        step(trainer)


def test_state_survives_a_change_of_precision():
    _, plain = toy_trainer(1.0)
    _, half = toy_trainer(1.0, amp_dtype=torch.float16)
    for trainer in (plain, half):
        trainer.iter = 3
    half.load_state_dict(plain.state_dict())
    assert half.grad_scaler.is_enabled()
    plain.load_state_dict(half.state_dict())
    assert plain.iter == 3


def test_a_model_in_eval_mode_is_refused():
    model, trainer = toy_trainer(1.0)
    model.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        step(trainer)


class Draws(nn.Module):
    """The loss is the weight times a random number and the mean input; logs both."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.numbers = []

    def forward(self, batch):
        drawn = torch.rand(())
        self.numbers.append((drawn.item(), np.random.rand(), random.random()))
        x = torch.tensor([item["x"] for item in batch]).mean()
        get_event_storage().put_scalar("drawn", drawn)
        get_event_storage().put_image("image", torch.zeros(3, 2, 2))
        get_event_storage().put_histogram("histogram", torch.ones(2))
        return drawn * x * self.weight


def accumulate(xs, iteration=7, **options):
    model = Draws()
    batches = [[{"x": x, "image_id": i}] for i, x in enumerate(xs)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(
        model, batches, optimizer, device="cpu", accumulation_steps=len(xs), **options
    )
    backwards = []
    trainer.after_backward = lambda: backwards.append(model.weight.grad.item())
    with EventStorage() as storage:
        trainer.iter = iteration
        trainer.run_step()
    assert len(backwards) == 1
    return model, storage


def test_an_accumulated_step_is_the_mean_over_its_micro_batches():
    xs = [1.0, 2.0, 4.0]
    model, storage = accumulate(xs)
    drawn = [numbers[0] for numbers in model.numbers]
    gradient = sum(d * x for d, x in zip(drawn, xs, strict=True)) / 3
    # float32 at a magnitude of 2 and of the gradient's terms, whatever is left of their difference
    assert model.weight.item() == pytest.approx(2.0 - gradient, abs=2e-6)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["total_loss"] == pytest.approx(2.0 * gradient, abs=2e-6)
    # What the model logs counts once a step, too.
    assert latest["drawn"] == pytest.approx(sum(drawn) / 3)
    assert len(storage.history("drawn").values()) == 1
    assert len(storage._vis_data) == len(storage._histograms) == 3


def test_clipping_sees_the_accumulated_gradient():
    _, storage = accumulate([1.0, -1.0, 1.0, -1.0], clip_grad={"max_norm": 9.0}, seed=3)
    model, _ = accumulate([1.0, -1.0, 1.0, -1.0], seed=3)
    a, b, c, d = (numbers[0] for numbers in model.numbers)
    exact = abs(a - b + c - d) / 4
    assert storage.latest()["grad_norm"][0] == pytest.approx(exact, abs=1e-6)


def test_random_numbers_follow_from_seed_iteration_and_micro_batch(monkeypatch):
    four = accumulate([1.0] * 4, seed=3)[0].numbers
    torch.manual_seed(99)
    assert accumulate([1.0] * 4, seed=3)[0].numbers == four
    assert len({n for numbers in four for n in numbers}) == 12
    for other in ({"seed": 4}, {"seed": 3, "iteration": 8}):
        assert not set(accumulate([1.0] * 4, **other)[0].numbers) & set(four)
    # Rank 1 of 2 has the step's micro-batches 1 and 3.
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "gather", lambda x: [x])
    assert accumulate([1.0] * 2, seed=3)[0].numbers == [four[1], four[3]]


def test_a_loss_that_is_not_finite_in_a_later_micro_batch_changes_no_weight():
    model = Toy()
    batches = [[{"x": x, "image_id": i}] for i, x in enumerate([1.0, float("nan")])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, batches, optimizer, device="cpu", accumulation_steps=2)
    with pytest.raises(FloatingPointError, match=r"image ids: 1\n"):
        step(trainer)
    assert model.weight.item() == 2.0


def test_gradients_are_exchanged_in_the_last_micro_batch_only():
    entered = []

    class Wrapped(Toy):
        @contextmanager
        def no_sync(self):
            entered.append(True)
            yield

    model = Wrapped()
    batch = [{"x": 1.0}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps in (1, 3):
        entered.clear()
        step(Trainer(model, [batch] * 3, optimizer, device="cpu", accumulation_steps=steps))
        assert len(entered) == steps - 1
