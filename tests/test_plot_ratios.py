"""tools/plot_ratios.py: pictures and numbers of runs and checkpoints."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_setup import load_tool
from wsbcn_d2.analysis import LayerRatios, RatioLog, collect_ratios, switch_layers
from wsbcn_d2.analysis.ratio_bars import COLORS, plot_layers, plot_parts, plot_spread
from wsbcn_d2.analysis.ratio_curves import divergence, plot_curves, plot_snapshots
from wsbcn_d2.analysis.run_ratios import Layer, RunRatios, load_run_ratios
from wsbcn_d2.norms import SparseSwitchNorm2d, SwitchNorm2d

tool = load_tool("plot_ratios")

NAMES = [
    "backbone.bottom_up.stem.conv1.norm",
    "backbone.bottom_up.res2.0.conv1.norm",
    "backbone.fpn_output3.norm",
    "roi_heads.box_head.conv1.norm",
    "roi_heads.mask_head.mask_fcn1.norm",
]


def a_model(seed: int) -> torch.nn.Module:
    """Layers under a detector's names."""
    torch.manual_seed(seed)
    root = torch.nn.Module()
    for i, name in enumerate(NAMES):
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, torch.nn.Module())
            node = getattr(node, parent)
        kind = SparseSwitchNorm2d if i == 4 else SwitchNorm2d
        node.add_module(last, kind(4, num_groups=2 if i == 1 else 1))
    for name, parameter in root.named_parameters():
        if name.endswith(("mean_weight", "var_weight")):
            torch.nn.init.normal_(parameter)
    return root


def write_run(folder: Path, seed: int = 0) -> torch.nn.Module:
    folder.mkdir(parents=True)
    model = a_model(seed)
    layers = switch_layers(model)
    log = RatioLog(folder / "ratios.json", layers)
    for iteration in (99, 199, 299):
        for layer in layers.values():
            layer.mean_weight.data.mul_(1.3)
        log.write(iteration, collect_ratios(layers.values()))
    torch.save({"model": model.state_dict(), "iteration": 299}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return model


def test_a_run_leaves_its_pictures_and_numbers(tmp_path: Path, capsys) -> None:
    model = write_run(tmp_path / "run")
    assert tool.main([str(tmp_path / "run"), "--csv"]) == 0
    printed = capsys.readouterr().out.split()
    names = ["layers.png", "parts.png", "curves.png", "snapshots.png", "ratios.csv"]
    assert [Path(path).name for path in printed] == names
    for path in printed[:-1]:
        with Image.open(path) as image:
            assert image.width == 1600
        assert "res2" in Path(path).with_suffix(".svg").read_text()
    with open(printed[-1], newline="") as file:
        rows = list(csv.DictReader(file))
    # 3 records of 5 layers, one of them in two groups: mean and var ratios of three statistics.
    assert len(rows) == 3 * 6 * 2 * 3
    last = [row for row in rows if row["iteration"] == "300" and row["label"] == "box head conv1"]
    found = [float(row["ratio"]) for row in last if row["kind"] == "mean"]
    layer = dict(model.named_modules())["roi_heads.box_head.conv1.norm"]
    assert found == pytest.approx(layer.ratios()[0].tolist(), abs=1e-4)


def test_a_checkpoint_says_what_the_run_said_last(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run, checkpoint = (load_run_ratios(tmp_path / path) for path in ("run", "run/model_final.pth"))
    assert checkpoint.name == "run/model_final" and checkpoint.iterations.tolist() == [300]
    assert list(checkpoint.ratios) == list(run.ratios)
    for name, ratios in run.ratios.items():
        np.testing.assert_allclose(checkpoint.ratios[name].mean[0], ratios.mean[-1], atol=1e-4)
        np.testing.assert_allclose(checkpoint.ratios[name].var[0], ratios.var[-1], atol=1e-4)
    (tmp_path / "run" / "ratios.json").unlink()
    assert list(load_run_ratios(tmp_path / "run").ratios) == list(run.ratios)


def test_several_runs_stand_side_by_side_and_seeds_have_a_spread(tmp_path: Path, capsys) -> None:
    folders = [tmp_path / "a" / "0", tmp_path / "a" / "1"]
    for seed, folder in enumerate(folders):
        write_run(folder, seed)
    out = ["--output", str(tmp_path / "out")]
    assert tool.main([*map(str, folders), *out]) == 0
    assert tool.main([*map(str, folders), "--seeds", *out]) == 0
    printed = [Path(path).name for path in capsys.readouterr().out.split()]
    assert printed == ["layers_mean.png", "layers_var.png", "parts.png", "spread.png", "parts.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nothing"], "is not there"),
        (["{}/empty"], "no ratios.json and no checkpoint"),
        (["{}/plain.pth"], "no SN, SyncSN or SSN layer"),
        (["{}/run", "--seeds"], "--seeds needs two runs"),
        (["{}/run", "--names", "a", "b"], "--names has 2 names for 1 runs"),
        (["{}/run", "--snapshots", "30"], "shares of the training"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    torch.save({"model": torch.nn.Conv2d(1, 1, 1).state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(SystemExit, match=message):
        tool.main([argument.format(tmp_path) for argument in arguments])


def by_hand(*mean: list[float], var: list[float] | None = None) -> RunRatios:
    """A run with one layer, of which the mean ratios are given for each record."""
    values = np.array(mean)[:, None]
    other = values if var is None else np.broadcast_to(np.array(var), values.shape)
    ratios = LayerRatios(("in", "ln", "bn"), np.arange(1, len(mean) + 1), values, other)
    return RunRatios("hand", {"x": Layer("x", "x", 7)}, {"x": ratios})


def test_bars_are_as_long_as_the_ratios() -> None:
    run = by_hand([0.2, 0.3, 0.5], var=[0.6, 0.4, 0.0])
    for figure in (plot_layers([run]), plot_parts([run])):
        for axes, expected in zip(figure.axes[:2], ([20, 30, 50], [60, 40, 0]), strict=True):
            rows = len(axes.patches) // 3  # statistic by statistic
            assert [bar.get_width() for bar in axes.patches[::rows]] == pytest.approx(expected)


def test_the_spread_is_that_of_the_runs() -> None:
    runs = [by_hand([0.2, 0.3, 0.5]), by_hand([0.4, 0.3, 0.3])]
    for run in runs:
        run.layers["y"], run.ratios["y"] = run.layers["x"], run.ratios["x"]
    figure = plot_spread(runs)
    deviation = np.std([20, 40], ddof=1) * 2 / 3
    assert f"standard deviation {deviation:.1f} over runs, 0.0 over layers" in figure.get_suptitle()


def test_snapshots_count_what_differs_and_what_changed() -> None:
    figure = plot_snapshots(
        by_hand([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], var=[0.6, 0.2, 0.2]), (0.5, 1)
    )
    assert "differ in 0, 100 %" in figure.get_suptitle()
    labels = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes[:2]]
    assert labels == [["1", "2\n100 % changed"], ["1", "2\n0 % changed"]]


def test_the_divergence_is_symmetric_and_finite() -> None:
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet([1, 1, 1], (2, 5))
    expected = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    np.testing.assert_allclose(divergence(p, q), expected, rtol=1e-3)
    corners = np.eye(3)
    assert divergence(corners[0], corners[1]) == pytest.approx(18.4, abs=0.05)


def test_colors_differ_in_grey() -> None:
    """By 15 of 100 in CIE lightness, so for every kind of colour vision."""
    grey = []
    for color in COLORS.values():
        rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        grey.append(116 * (linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 3) - 16)
    assert np.diff(sorted(grey)).min() > 15


def test_hard_curves_that_coincide_are_all_seen(tmp_path: Path) -> None:
    figure = plot_curves(by_hand(*[[1.0, 0.0, 0.0]] * 3))
    figure.savefig(tmp_path / "curves.png", dpi=100)
    pixels = np.array(Image.open(tmp_path / "curves.png").convert("RGB"))
    box = figure.axes[0].get_window_extent().padded(3)
    height = len(pixels)
    inside = pixels[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1)]
    for name, color in COLORS.items():
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (inside == rgb).all(-1).any(1).sum() >= 1, name
