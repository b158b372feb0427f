"""Each check of a config has one that trips it and one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from tests.engine.tiny_run import train_net
from tests.recipe_models import config, model_without_weights
from wsbcn_d2 import recipes, standardize_convs
from wsbcn_d2.checkpoint import WSBCNCheckpointer
from wsbcn_d2.checks.advice import CHECKS, Advice, give_advice, look_for_advice, report_advice
from wsbcn_d2.engine import ConfigError, UserError, load_config, read_config
from wsbcn_d2.modeling import WSConv2d, use_norm
from wsbcn_d2.norms import SwitchNorm2d

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[DictConfig], Any]
QUICK = "quick/mask_rcnn_r18_fpn_syncsn"


def advice(name: str, change: Change, world_size: int, edit: Any = None) -> list[Advice]:
    cfg = recipes.get_config(name)
    cfg.train.silence = []
    change(cfg)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    if edit is not None:
        edit(model)
    return look_for_advice(read_config(cfg, world_size=world_size), model)


def same(cfg: DictConfig) -> None:
    pass


def set_(key: str, value: Any) -> Change:
    def change(cfg: DictConfig) -> None:
        node: Any = cfg
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value

    return change


def norm(name: str, head: str | None = None) -> Change:
    return lambda cfg: use_norm(cfg.model, name, head)


def images(count: int) -> Change:
    return set_("train.images_per_gpu", count)


def both(*changes: Change) -> Change:
    return lambda cfg: [change(cfg) for change in changes]


def append(*modules: nn.Module) -> Callable[[nn.Module], None]:
    return lambda model: model.add_module("extra", nn.Sequential(*modules))


def freeze_stem(with_norm: bool) -> Callable[[nn.Module], None]:
    def edit(model: Any) -> None:
        conv = model.backbone.bottom_up.stem.conv1
        conv.weight.requires_grad_(False)
        for parameter in conv.norm.parameters():
            parameter.requires_grad_(not with_norm)

    return edit


def start_from(weights: str) -> Change:
    return set_("train.init_checkpoint", f"wsbcn://{weights}")


POOL, POOL_7 = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(7)
WEIGHTS = set_("train.init_checkpoint", "weights.pth")
SCALE = set_("train.scale_lr.enabled", True)
R50 = "finetune/mask_rcnn_r50_fpn_sn_2x"
RETINA = "finetune/retinanet_r50_fpn_syncsn_1x"
DECAY = "optimizer.params.weight_decay_norm"
TOTAL = "dataloader.train.total_batch_size"

# Check, recipe, change of the config, processes, edit of the model; first what trips it.
TRIPS = [
    ("one-image-a-process", QUICK, norm("SN"), 2, None),
    ("one-image-a-process", QUICK, norm("SSN"), 2, None),
    ("one-image-a-process", QUICK, images(1), 1, None),
    ("one-image-a-process", QUICK, set_("train.sync_group_size", 1), 2, None),
    ("norm-after-global-pooling", QUICK, same, 2, append(POOL, SwitchNorm2d(4))),
    ("norm-after-global-pooling", QUICK, same, 2, append(POOL, SwitchNorm2d(4, statistics="in"))),
    ("pretraining-minibatch", R50, start_from("resnet50_sn_8x32"), 8, None),
    ("norm-weight-decay", QUICK, set_(DECAY, 1e-4), 2, None),
    ("norm-weight-decay", QUICK, set_(DECAY, None), 2, None),
    ("dropout-behind-sn", QUICK, same, 2, append(SwitchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))),
    ("ws-without-norm", QUICK, same, 2, append(WSConv2d(3, 3, 3))),
    ("frozen-estimates", QUICK, WEIGHTS, 2, freeze_stem(with_norm=False)),
    ("frozen-estimates", QUICK, set_("model.backbone.bottom_up.freeze_at", 2), 2, None),
    ("learning-rate-of-another-batch", QUICK, set_(TOTAL, 8), 2, None),
    ("gn-one-channel", QUICK, norm("GN"), 2, None),
    ("gn-one-channel", QUICK, norm("BCN"), 2, None),
    ("shared-norms", RETINA, norm("SyncSN"), 8, None),
    ("shared-norms", RETINA, norm("SN_IN_LN", "BCN"), 8, None),
]  # fmt: skip
KEEPS = [
    ("one-image-a-process", QUICK, norm("SN_IN_LN"), 2, None),
    ("one-image-a-process", QUICK, both(norm("SN"), images(2)), 1, None),
    ("one-image-a-process", QUICK, both(norm("BCN")), 2, None),
    ("norm-after-global-pooling", QUICK, same, 2, append(POOL_7, SwitchNorm2d(4))),
    ("pretraining-minibatch", R50, start_from("resnet50_sn_8x2"), 8, None),
    ("norm-weight-decay", QUICK, both(norm("BN"), set_(DECAY, 1e-4)), 2, None),
    ("dropout-behind-sn", QUICK, same, 2, append(SwitchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))),
    ("ws-without-norm", QUICK, same, 2, standardize_convs),
    ("frozen-estimates", QUICK, WEIGHTS, 2, freeze_stem(with_norm=True)),
    ("learning-rate-of-another-batch", QUICK, both(set_(TOTAL, 8), SCALE), 2, None),
    ("gn-one-channel", QUICK, norm("LN"), 2, None),
    ("shared-norms", RETINA, norm("SyncSN", "GN"), 8, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "recipe", "change", "world_size", "edit"), TRIPS)
def test_a_config_that_trips_it(
    name: str, recipe: str, change: Change, world_size: int, edit: Any
) -> None:
    found = [each for each in advice(recipe, change, world_size, edit) if each.name == name]
    assert len(found) >= 1
    for each in found:
        assert re.search(r"arXiv:\d{4}\.\d{5}|docs/traps.md|random weights", each.reason)
        assert each.key and each.change


@pytest.mark.parametrize(("name", "recipe", "change", "world_size", "edit"), KEEPS)
def test_a_config_that_does_not(
    name: str, recipe: str, change: Change, world_size: int, edit: Any
) -> None:
    assert name not in [each.name for each in advice(recipe, change, world_size, edit)]


def test_ratios_that_do_not_start_uniform() -> None:
    run, model = read_config(config(QUICK)), nn.Sequential(SwitchNorm2d(4, num_groups=2))
    assert not look_for_advice(run, model)
    model[0].mean_weight.data[1, 2] = 2
    assert [each.name for each in look_for_advice(run, model)] == ["controls-not-uniform"]


@pytest.mark.parametrize(("norm", "frozen", "told"), [("BN", 0, 1), ("BN", 9, 0), ("GN", 0, 0)])
def test_a_checkpoint_says_the_minibatch_of_its_statistics(
    tmp_path: Path, norm: str, frozen: int, told: int
) -> None:
    cfg = recipes.get_config(QUICK)
    use_norm(cfg.model, norm)
    cfg.train.init_checkpoint = str(tmp_path / "pretrained.pth")
    cfg.model.backbone.bottom_up.freeze_at = frozen
    model = instantiate(cfg.model)
    WSBCNCheckpointer(model, str(tmp_path), images_per_process=32).save("pretrained")
    found = look_for_advice(read_config(cfg, world_size=2), model)
    reasons = [each.reason for each in found if each.name == "pretraining-minibatch"]
    assert len(reasons) == told
    assert all("over 32 images, BN takes them over 1" in reason for reason in reasons)


def test_every_check_has_both_and_a_row_in_the_page() -> None:
    look_for_advice(read_config(config(QUICK)), nn.Identity())  # registers them
    by_hand = {"controls-not-uniform"}
    assert {name for name, *_ in TRIPS} | by_hand == set(CHECKS)
    assert {name for name, *_ in KEEPS} | by_hand == set(CHECKS)
    rows = re.findall(r"^\| `([\w-]+)`", (ROOT / "docs" / "checks.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(CHECKS)


@pytest.mark.parametrize("name", recipes.list_configs())
def test_a_shipped_recipe_trips_none_but_those_it_gives_a_reason_for(name: str) -> None:
    cfg = config(name)
    total, text = cfg.dataloader.train.total_batch_size, recipes.config_file(name).read_text()
    # As its docstring says, or its table: 8 x 2, 4 x 3, the quick ones 2 x 1.
    world_size = 1 if "--num-gpus 1" in text else min(8, total // {2: 1, 12: 3}.get(total, 2))
    run = read_config(cfg, world_size=world_size)
    assert look_for_advice(run, model_without_weights(name)) == []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("train.silence"):
            assert lines[number - 1].startswith("# ")


def test_a_name_that_no_check_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean one-image-a-process"):
        advice(QUICK, set_("train.silence", ["one-image-a-proces"]), 2)


def test_an_error_ends_the_run_and_silence_lets_it_go_on() -> None:
    cfg = recipes.get_config(QUICK)
    run, model = read_config(cfg), nn.Sequential(POOL, SwitchNorm2d(4, statistics="in"))
    run.build_model = lambda device=None: model  # type: ignore[method-assign]
    for act in (lambda: give_advice(run, model), lambda: report_advice(run)):
        with pytest.raises(UserError, match="error: norm-after-global-pooling"):
            act()
    cfg.train.silence = ["norm-after-global-pooling"]
    run = read_config(cfg)
    run.build_model = lambda device=None: model  # type: ignore[method-assign]
    report = report_advice(run)
    assert "10 checks, 0 finding(s)" in report and "Silenced by the config" in report


def test_yaml_configs_are_told_their_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {WEIGHTS: '', RESNETS: {NORM: SN}}\nSOLVER: {WEIGHT_DECAY_NORM: 0.1}\n")
    run = read_config(load_config(str(path), ["SOLVER.IMS_PER_BATCH", "4"]), world_size=4)
    with torch.device("meta"):
        model = nn.Sequential(SwitchNorm2d(4))
    keys = {each.name: each.key for each in look_for_advice(run, model)}
    assert keys == {
        "one-image-a-process": "SOLVER.IMAGES_PER_GPU",
        "norm-weight-decay": "SOLVER.WEIGHT_DECAY_NORM",
        "learning-rate-of-another-batch": "SOLVER.IMS_PER_BATCH",
    }


def test_the_command_looks_and_starts_nothing(tmp_path: Path) -> None:
    overrides = [f"train.output_dir={tmp_path / 'run'}", "train.sync_group_size=1"]
    run = train_net(
        *("--config-file", QUICK, "--num-gpus", "2", "--check", *overrides),
        datasets=tmp_path,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout
    assert "11 checks, 1 finding(s)" in run.stdout
    assert "warning: one-image-a-process (train.images_per_gpu)" in run.stdout
    assert "train.silence=[one-image-a-process]" in run.stdout
    assert not (tmp_path / "run").exists()
