"""What SN layers learn is recorded, and what became one-hot is logged."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.engine.tiny_training import prepare, training
from wsbcn_d2.analysis import read_ratio_log
from wsbcn_d2.engine import RatioWriter
from wsbcn_d2.norms import SparseSwitchNorm2d, SwitchNorm2d


def at(hook: RatioWriter, iteration: int, max_iter: int, start_iter: int = 0) -> RatioWriter:
    hook.trainer = types.SimpleNamespace(iter=iteration, max_iter=max_iter, start_iter=start_iter)
    return hook


def test_means_over_layers_are_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        SwitchNorm2d(4), SwitchNorm2d(4, statistics=("in", "ln")), SwitchNorm2d(4, num_groups=2)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    hook = RatioWriter(model, period=5)
    with EventStorage() as storage:
        at(hook, 3, 10).after_step()
        assert not storage.latest()
        at(hook, 4, 10).after_step()
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert set(latest) == {f"ratio/{k}_{s}" for k in ("mean", "var") for s in ("in", "ln", "bn")}
    ratio = [torch.softmax(layer.var_weight.detach(), -1) for layer in model]
    expected = (ratio[0][1] + ratio[1][1] + ratio[2][:, 1].mean()) / 3
    assert latest["ratio/var_ln"] == pytest.approx(float(expected), rel=1e-5)


def test_a_model_without_such_layers_leaves_nothing(tmp_path: Path) -> None:
    hook = RatioWriter(nn.BatchNorm2d(2), 1, tmp_path)
    with EventStorage() as storage:
        at(hook, 0, 2).before_train()
        hook.after_step()
        hook.after_train()
    assert not storage.latest() and not list(tmp_path.iterdir())


def test_tensorboard_gets_each_layer(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"stem": SwitchNorm2d(4), "head": SwitchNorm2d(4, statistics=("in", "ln"))}
    )
    nn.init.normal_(model["head"].mean_weight)
    hook = RatioWriter(model, 2, tmp_path)
    at(hook, 0, 6).before_train()
    with EventStorage():
        for iteration in range(6):
            at(hook, iteration, 6).after_step()
    hook.after_train()
    events = EventAccumulator(str(tmp_path / "ratios"))
    events.Reload()
    assert len(events.Tags()["scalars"]) == 2 * (3 + 2)
    points = events.Scalars("head/mean_ln")
    assert [point.step for point in points] == [1, 3, 5]
    ratio = model["head"].mean_weight.detach().softmax(0)[1]
    assert points[-1].value == pytest.approx(float(ratio), rel=1e-6)


def test_sparse_ratios_are_logged_once_as_they_become_one_hot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.ModuleDict(
        {"a": SparseSwitchNorm2d(4), "b": SparseSwitchNorm2d(4), "c": SwitchNorm2d(4)}
    )
    hook = RatioWriter(model, 1)
    with EventStorage(), caplog.at_level(logging.INFO, "wsbcn_d2"):
        at(hook, 0, 9).before_train()
        hook.after_step()
        assert not caplog.messages
        model["a"].mean_fixed.fill_(2)
        hook.after_step()
        hook.after_step()
        model["b"].var_fixed.fill_(0)
        hook.after_step()
    assert caplog.messages == [
        "1 of 4 ratios are one-hot; new: a mean BN",
        "2 of 4 ratios are one-hot; new: b var IN",
    ]


def test_a_resumed_run_has_the_record_of_one_that_went_through(tmp_path: Path) -> None:
    prepare(tmp_path)
    options = ("train.log_period=1", "train.ema.enabled=True", "train.ema.decay=0.5")
    end: dict[str, Any] = training(tmp_path, "through", *options, norm="SN")
    training(tmp_path, "parts", *options, "train.max_iter=3", norm="SN")
    # Lost: the checkpoint is of iteration 2, and the record has one more.
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000001.pth")
    training(tmp_path, "parts", *options, norm="SN", resume=True)
    through, parts = (tmp_path / run / "ratios.json" for run in ("through", "parts"))
    assert through.read_bytes() == parts.read_bytes()
    record = [json.loads(line) for line in through.read_text().splitlines()]
    assert [line["iteration"] for line in record[1:]] == list(range(6))
    # Under EMA it is the average, which is what the run evaluates.
    layers = read_ratio_log(through)
    name = next(iter(layers))
    averaged = end["ema"][f"module.{name}.mean_weight"].softmax(0).numpy()
    assert layers[name].mean[-1, 0] == pytest.approx(averaged, abs=1e-4)
    assert layers[name].mean[-1, 0] != pytest.approx([1 / 3] * 3, abs=1e-4)
