"""The ratios of many layers at once are each layer's own, and the record keeps them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wsbcn_d2.analysis import RatioLog, collect_ratios, read_ratio_log, switch_layers
from wsbcn_d2.norms import SparseSwitchNorm1d, SparseSwitchNorm2d, SwitchNorm2d, SyncSwitchNorm2d


def mixed_model() -> nn.Module:
    """Softmax and sparse layers with two and three statistics, with and without groups."""
    torch.manual_seed(0)
    model = nn.Sequential(
        SwitchNorm2d(4),
        SparseSwitchNorm2d(4, radius=0.4),
        nn.BatchNorm2d(4),
        SyncSwitchNorm2d(4, num_groups=2),
        SwitchNorm2d(4, statistics=("in", "ln")),
        SparseSwitchNorm2d(4, num_groups=4, radius=0.8165),
        SparseSwitchNorm2d(4, radius=0.6),
        SparseSwitchNorm1d(4),
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("mean_weight", "var_weight")):
            nn.init.normal_(parameter)
    model[6].var_fixed.fill_(1)
    return model


def test_together_they_are_each_layers_own() -> None:
    layers = switch_layers(mixed_model())
    assert list(layers) == ["0", "1", "3", "4", "5", "6", "7"]
    for layer, found in zip(layers.values(), collect_ratios(layers.values()), strict=True):
        own = torch.stack(layer.ratios()).view(2, layer.num_groups, -1)
        torch.testing.assert_close(found, own.detach().double(), rtol=0, atol=1e-6)
    assert collect_ratios([]) == []


def test_the_record_keeps_them_to_its_unit(tmp_path) -> None:
    layers = switch_layers(mixed_model())
    log = RatioLog(tmp_path / "ratios.json", layers)
    written = []
    for iteration in (1, 3):
        for layer in layers.values():
            nn.init.normal_(layer.mean_weight)
        written.append(collect_ratios(layers.values()))
        log.write(iteration, written[-1])
    read = read_ratio_log(tmp_path / "ratios.json")
    assert list(read) == list(layers)
    for i, (name, layer) in enumerate(layers.items()):
        assert read[name].statistics == layer.statistics
        assert read[name].iterations.tolist() == [2, 4]
        values = np.stack([read[name].mean, read[name].var], 1)
        expected = np.stack([ratios[i].numpy() for ratios in written])
        np.testing.assert_allclose(values, expected, rtol=0, atol=0.5e-4 + 1e-12)


def test_a_resumed_record_repeats_nothing_and_survives_a_half_written_line(tmp_path) -> None:
    layers = {"norm": SwitchNorm2d(3)}
    path = tmp_path / "ratios.json"
    through, ratios = RatioLog(tmp_path / "through.json", layers), collect_ratios(layers.values())
    for iteration in range(5):
        through.write(iteration, ratios)
    first = RatioLog(path, layers)
    for iteration in range(4):
        first.write(iteration, ratios)
    with path.open("a") as file:
        file.write('{"iteration": 4, "mean": [[33')
    resumed = RatioLog(path, layers, start_iter=2)
    for iteration in (2, 3, 4):
        resumed.write(iteration, ratios)
    assert path.read_bytes() == through.path.read_bytes()


def test_a_run_that_goes_on_with_other_layers_has_those_of_its_end(tmp_path) -> None:
    path = tmp_path / "ratios.json"
    old = {"a": SwitchNorm2d(3)}
    RatioLog(path, old).write(0, collect_ratios(old.values()))
    new = {"b": SwitchNorm2d(3, num_groups=3)}
    RatioLog(path, new, start_iter=1).write(1, collect_ratios(new.values()))
    read = read_ratio_log(path)
    assert list(read) == ["b"] and read["b"].iterations.tolist() == [2]
    assert read_ratio_log(tmp_path / "none.json") == {}
