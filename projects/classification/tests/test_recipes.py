"""Every recipe builds what its name says, for the published batch, and takes a step."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from tests.recipe_models import narrow
from wsbcn_d2 import register_norms
from wsbcn_d2.checkpoint.norm_kinds import describe_norms
from wsbcn_d2.config.targets import check_targets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.glob("*/*.py")
    if path.parent.name != "common"
)
# Convolutions that a norm follows: one in the stem, those of the blocks, and projections.
LAYERS = {
    "resnet50": 1 + 3 * 16 + 4,
    "resnet101": 1 + 3 * 33 + 4,
    "resnet8": 1 + 2 * 3 + 2,
    "resnet20": 1 + 2 * 9 + 2,
    "resnet56": 1 + 2 * 27 + 2,
    "resnet110": 1 + 2 * 54 + 2,
    "r18": 1 + 2 * 6 + 2,
}
KINDS = {
    "ln": "LN_CHW",
    "sn_in_ln": "SN_IN_LN",
    "ssn_hard": "SSN",
    "ssn_hard_finetune": "SSN",
    "ws_gn": "GN",
    "ws_bcn": "BCN",
}
# arXiv:1907.10473, Table II and Section 4.1.3: top-1 of ResNet-50 by (GPUs, images a GPU).
SETTINGS = ("8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8")
TABLE_II = {
    "bn": (76.4, 76.3, 75.2, 72.7, 65.3, 76.2, 76.5, None, 75.4),
    "gn": (75.9, 75.8, 76.0, 75.8, 75.9, 75.9, 75.8, 75.5, 75.5),
    "sn": (76.9, 76.7, 76.7, 75.9, 75.6, 76.3, 76.6, 75.0, 75.9),
}


def load(recipe):
    return LazyConfig.load(str(CONFIGS / f"{recipe}.py"))


def parts(recipe):
    """Network and norm, from the name."""
    match = re.search(r"(resnet\d+|r18)_((?:ws_)?[a-z_]+?)(?:_|$)(?=\d|cifar|$)", recipe)
    return match[1], match[2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_the_layers_of_its_name(recipe):
    register_norms()
    cfg = load(recipe)
    check_targets(cfg)
    assert cfg.train.output_dir == f"./output/classification/{recipe}"
    with torch.device("meta"):
        model = instantiate(cfg.model)
    network, norm = parts(recipe)
    found = describe_norms(model)
    kind = KINDS.get(norm, norm.upper())
    if recipe.startswith("imagenet") and kind == "BCN":
        kind = "BatchBCN"
    assert Counter(found["norms"].values()) == {kind: LAYERS[network]}
    standardized = norm.startswith("ws_")
    assert list(found["convs"].values()) == [standardized] * LAYERS[network]
    classes = {"imagenet": 1000, "cifar/cifar100": 100}
    expected = next((n for start, n in classes.items() if recipe.startswith(start)), 10)
    assert model.backbone.linear.out_features == expected


def test_settings_of_table_ii_are_all_there_with_their_batch_and_accuracy():
    for norm, accuracies in TABLE_II.items():
        for setting, accuracy in zip(SETTINGS, accuracies, strict=True):
            kind = "sn_in_ln" if (norm, setting) == ("sn", "8x1") else norm
            recipe = f"imagenet/resnet50_{kind}_{setting}"
            assert (recipe in RECIPES) == (accuracy is not None)
            if accuracy is None:
                continue
            cfg = load(recipe)
            gpus, images = map(int, setting.split("x"))
            assert cfg.train.images_per_gpu == images
            assert cfg.dataloader.train.total_batch_size == gpus * images
            assert cfg.optimizer.lr == pytest.approx(0.1 * gpus * images / 256)
            assert cfg.train.max_iter == 100 * -(-1_281_167 // (gpus * images))
            averaged = cfg.train.batch_average_iters * gpus * images
            assert 50_000 <= averaged < 50_000 + gpus * images if kind == "sn" else averaged == 0
            multiplier = instantiate(cfg.lr_multiplier)
            rates = [multiplier(epoch / 100) for epoch in (0, 29.9, 30.1, 60.1, 90.1)]
            assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
            text = (CONFIGS / f"{recipe}.py").read_text()
            assert f"Table II: {accuracy} top-1" in text


def test_hard_ratios_are_finetuned_at_what_the_schedule_has_left():
    scratch, finetuned = (
        load(f"imagenet/resnet50_ssn_hard_{name}8x32") for name in ("", "finetune_")
    )
    assert scratch.optimizer.lr == 0.1
    assert finetuned.optimizer.lr == 0.01
    assert finetuned.train.max_iter * 100 == scratch.train.max_iter * 60
    rates = [instantiate(finetuned.lr_multiplier)(epoch / 60) for epoch in (0, 29.9, 30.1, 60)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize(
    "recipe",
    [r for r in RECIPES if re.search(r"(8x32|8x4|8x1|\de|resnet20_\w+|r18_\w+)$", r)],
)
def test_recipe_takes_a_step(recipe):
    register_norms()
    torch.manual_seed(0)
    cfg = load(recipe)
    if recipe.startswith("imagenet"):
        narrow(cfg.model)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    size = 32 if recipe.startswith("cifar/") else 64
    batch = [
        {"image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8), "label": i}
        for i in range(2)
    ]
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(batch)["loss_cls"]
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
