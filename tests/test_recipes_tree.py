"""Every recipe is what its name says: norms, schedule, data, optimizer. On the meta device."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from tests.recipe_models import config, model_without_weights
from tests.recipe_table import NORMS, PARTS, PROTOCOLS
from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint.norm_kinds import describe_norms
from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.modeling import standardized, use_norm

NAMES = recipes.list_configs()
COCO_NAMES = [name for name in NAMES if not name.startswith("quick/")]


def rows(table):
    """The lines of a table as dicts, by the names in its first line."""
    header, *lines = (
        [cell.strip() for cell in line.split(" |")] for line in table.split("\n")[1:-1]
    )
    return [dict(zip(header, line, strict=True)) for line in lines]


CLAIMS = {row.pop("recipe"): row for row in rows(NORMS)}


def part_of(module_name):
    return next(part for start, part in PARTS.items() if module_name.startswith(start))


def test_the_table_has_every_recipe_and_no_other():
    assert sorted(CLAIMS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_norms_and_standardized_convolutions_sit_where_the_row_says(name):
    found = describe_norms(model_without_weights(name))
    norms = Counter((part_of(module), kind) for module, kind in found["norms"].items())
    ws = Counter(part_of(module) for module, standardized in found["convs"].items() if standardized)

    claimed_norms, claimed_ws = Counter(), Counter()
    for part, cell in CLAIMS[name].items():
        for number, kind in re.findall(r"(\d+) (\w+\S*)", cell.replace(",", "")):
            if kind == "WS":
                claimed_ws[part] += int(number)
                continue
            kind, _, standardizes = kind.partition("+")
            claimed_norms[part, kind] += int(number)
            claimed_ws[part] += int(number) if standardizes else 0
    assert norms == claimed_norms
    assert ws == +claimed_ws


@pytest.mark.parametrize("name", [name for name in NAMES if "ws_" in name])
def test_a_standardized_convolution_has_a_norm_behind_it_and_no_bias_before_it(name):
    model = model_without_weights(name)
    found = describe_norms(model)
    for conv_name in (conv for conv, standardizes in found["convs"].items() if standardizes):
        conv = model.get_submodule(conv_name)
        if f"{conv_name}.norm" in found["norms"]:
            assert conv.bias is None
        else:  # a Sequential: of RetinaNet's and FCOS' heads, whose convolutions keep their bias
            owner, _, index = conv_name.rpartition(".")
            assert f"{owner}.{int(index) + 1}" in found["norms"]
        inside = "bcn" in name and not name.startswith("quick/")
        assert (conv.eps, conv.eps_mode) == (1e-5, "inside" if inside else "outside")


@pytest.mark.parametrize("name", COCO_NAMES)
def test_protocol_is_the_published_one(name):
    (row,) = (row for row in rows(PROTOCOLS) if re.fullmatch(row["recipes"], name))
    cfg = config(name)
    assert cfg.train.max_iter == int(row["iterations"])
    assert cfg.optimizer.lr == float(row["rate"])
    assert cfg.dataloader.train.total_batch_size == int(row["images"])

    # What the multiplier gives before and after each drop, against the drops of the row.
    multiplier = instantiate(cfg.lr_multiplier)
    drops = [int(drop) for drop in row["drops"].split(",")]
    for number, drop in enumerate(drops):
        before, after = (multiplier((drop + step) / cfg.train.max_iter) for step in (-2, 2))
        assert before == pytest.approx(0.1**number) and after == pytest.approx(0.1 ** (number + 1))
    assert multiplier(0) <= 0.1  # warm-up
    assert multiplier(1 - 1e-6) == pytest.approx(0.1 ** len(drops))

    resize = cfg.dataloader.train.mapper.augmentations[0]
    if row["short sides"] != "-":
        assert list(resize.short_edge_length) == [int(side) for side in row["short sides"].split()]
        assert resize.max_size == int(row["long side"])
    else:  # large-scale jitter
        assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
        assert (resize.target_height, resize.target_width) == (1024, 1024)
    assert cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.dataloader.test.mapper.image_format == "RGB"

    model = model_without_weights(name)
    bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
    stages = [bottom_up.stem, *bottom_up.stages]
    trains = [any(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert trains.index(True) + 1 == int(row["trained from"])


@pytest.mark.parametrize("name", NAMES)
def test_input_stride_and_box_head_are_the_papers(name):
    cfg = config(name)
    bit = "_bit_" in name  # in [-1, 1]
    assert list(cfg.model.pixel_mean) == ([127.5] * 3 if bit else [123.675, 116.28, 103.53])
    assert list(cfg.model.pixel_std) == ([127.5] * 3 if bit else [58.395, 57.12, 57.375])
    assert cfg.model.get("input_format", "RGB") == "RGB"

    model = model_without_weights(name)
    for module_name, module in model.named_modules():
        if hasattr(module, "conv3") and hasattr(module, "shortcut"):  # a bottleneck
            assert module.conv1.stride == (1, 1), module_name
            assert max(module.conv2.stride) == (2 if module.stride == 2 else 1), module_name
    if "_fpn" in name and hasattr(model, "roi_heads") and not name.startswith("quick/"):
        heads = model.roi_heads.box_head
        for head in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
            assert (len(head.conv_norm_relus), len(head.fcs)) == (4, 1)


@pytest.mark.parametrize("name", NAMES)
def test_norm_parameters_are_not_decayed_and_all_others_are(name):
    model = model_without_weights(name)
    optimizer_config = OmegaConf.merge(config(name).optimizer)  # a copy
    optimizer_config.params.model = model
    optimizer = instantiate(optimizer_config)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}

    norms = {model.get_submodule(norm) for norm in describe_norms(model)["norms"]}
    of_norms = {p for norm in norms for p in norm.parameters()}
    trainable = {p for p in model.parameters() if p.requires_grad}
    assert set(decay) == trainable
    for parameter, value in decay.items():
        plain = 4e-5 if name.endswith("100ep_lsj") else 1e-4
        assert value == (0 if parameter in of_norms else plain)


@pytest.mark.parametrize("name", NAMES)
def test_leaf_is_short_and_names_its_output_folder(name):
    lines = recipes.config_file(name).read_text().splitlines()
    assert len(lines) <= 25
    cfg = config(name)
    assert cfg.train.output_dir == f"./output/{name}"
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}


@pytest.mark.parametrize("name", NAMES)
def test_leaf_quotes_the_published_result_of_the_book(name):
    file = recipes.config_root().parent / "docs" / "recipes" / "published.json"
    published = [
        " ".join(
            f"{row[f'{kind}_ap']:.1f} {kind} AP," for kind in ("box", "mask") if row[f"{kind}_ap"]
        )
        for row in json.loads(file.read_text())["rows"]
        if row["recipe"] == name
    ]
    docstring = recipes.config_file(name).read_text().split('"""')[1]
    quoted = re.findall(r"Published: ([^()]*) \(", docstring)
    assert [f"{text}," for text in quoted] == published


@pytest.mark.parametrize("name", NAMES)
def test_finetuning_names_its_weights_and_scratch_does_not(name):
    assert bool(config(name).train.pretrained) == name.startswith("finetune/")
    assert config(name).train.init_checkpoint == ""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("finetune/")])
def test_weights_by_name_are_in_the_catalog(name):
    catalog = pytest.importorskip("wsbcn_d2.checkpoint.catalog").CATALOG
    weights = config(name).train.pretrained
    assert "://" not in weights or weights.removeprefix("wsbcn://") in catalog


@pytest.mark.parametrize("name", NAMES)
def test_total_batch_is_the_one_that_the_learning_rate_is_for(name):
    # `images_per_gpu` stays a choice of its own, by default none.
    cfg = config(name)
    assert cfg.train.scale_lr.reference_batch_size == cfg.dataloader.train.total_batch_size
    assert cfg.train.images_per_gpu == 0 and not cfg.train.scale_lr.enabled


@pytest.mark.parametrize("name", NAMES)
def test_a_loader_has_an_evaluator(name):
    dataloader = config(name).dataloader
    assert OmegaConf.is_dict(dataloader.test) and OmegaConf.is_dict(dataloader.evaluator)


def test_panoptic_recipes_evaluate_boxes_masks_stuff_and_both():
    cfg = config("finetune/panoptic_fpn_r50_ws_gn_1x")
    evaluators = cfg.dataloader.evaluator.evaluators
    assert [evaluator._target_.__name__ for evaluator in evaluators] == [
        *("COCOEvaluator", "SemSegEvaluator", "COCOPanopticEvaluator")
    ]
    for evaluator in evaluators:
        assert evaluator.dataset_name == "coco_2017_val_panoptic_separated"
        assert evaluator.output_dir == f"{cfg.train.output_dir}/inference"
    # detectron2's own reader does not take numpy 2
    assert evaluators[1].sem_seg_loading_fn is read_label_map


def test_saved_config_describes_the_same_model(tmp_path):
    for name in ("finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x", "finetune/fcos_r50_fpn_syncsn_1x"):
        file = str(tmp_path / "config.yaml")
        LazyConfig.save(config(name), file)
        with torch.device("meta"):
            again = instantiate(LazyConfig.load(file).model)
        assert describe_norms(again) == describe_norms(model_without_weights(name))


def test_norms_reach_what_a_config_leaves_to_defaults():
    model = recipes.get_config("common/panoptic_fpn").model
    for node in (model.backbone.bottom_up.stem, model.backbone.bottom_up.stages):
        del node["norm"]  # BN then
    del model.sem_seg_head["norm"]  # GN then
    use_norm(model, "SN", "LN")
    assert model.backbone.bottom_up.stem.norm == model.backbone.bottom_up.stages.norm == "SN"
    assert model.sem_seg_head.norm == model.roi_heads.mask_head.conv_norm == "LN"


def test_standardizing_twice_is_standardizing_once(tmp_path):
    cfg = recipes.get_config("quick/mask_rcnn_r18_fpn_ws_gn")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for again in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        use_norm(again.model, "GN", standardize=True)
        assert again.model.module_class.rpartition(".")[2] == "GeneralizedRCNN"
    assert cfg.model._target_ is standardized
