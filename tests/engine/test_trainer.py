"""The training step: what it logs, clips, scales, and refuses."""

import pytest
import torch
from detectron2.utils.events import EventStorage
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
