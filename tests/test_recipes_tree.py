"""Every recipe is what its name says: norms, schedule, data, optimizer. On the meta device."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from tests.recipe_models import config, model_without_weights
from tests.recipe_table import NORMS, PARTS, PROTOCOLS, SCHEDULES, SMALL, SOURCES, WEIGHTS
from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint.norm_kinds import describe_norms
from wsbcn_d2.config import read_config
from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.modeling import CropPooler, standardized, use_norm
from wsbcn_d2.norms import SwitchNorm

NAMES = recipes.list_configs()
COCO_NAMES = [name for name in NAMES if not name.startswith(("quick/", "small/"))]


def rows(table):
    """The lines of a table as dicts, by the names in its first line."""
    header, *lines = (
        [cell.strip() for cell in line.split(" |")] for line in table.split("\n")[1:-1]
    )
    return [dict(zip(header, line, strict=True)) for line in lines]


CLAIMS = {row.pop("recipe"): row for row in rows(NORMS)}
RULES = {row.pop("protocol"): row for row in rows(PROTOCOLS)}
PUBLISHED = json.loads(
    (recipes.config_root().parent / "docs" / "recipes" / "published.json").read_text()
)


def facts_of(name):
    """Its row of SCHEDULES."""
    (row,) = (row for row in rows(SCHEDULES) if re.fullmatch(row["recipes"], name))
    return row


def number(text):
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


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
        inside = "bcn" in name and "_r18_" not in name
        assert (conv.eps, conv.eps_mode) == (1e-5, "inside" if inside else "outside")


@pytest.mark.parametrize("name", COCO_NAMES)
def test_schedule_and_data_are_the_published_ones(name):
    row = facts_of(name)
    cfg = config(name)
    assert cfg.train.protocol == row["protocol"].partition(",")[0]
    assert cfg.train.max_iter == int(row["iterations"])
    assert cfg.optimizer.lr == float(row["rate"])
    assert cfg.dataloader.train.total_batch_size == int(row["images"])

    # What the multiplier gives before and after each drop, against the drops of the row.
    multiplier = instantiate(cfg.lr_multiplier)
    drops = [int(drop) for drop in row["drops"].split(",")]
    for number_, drop in enumerate(drops):
        before, after = (multiplier((drop + step) / cfg.train.max_iter) for step in (-2, 2))
        assert before == pytest.approx(0.1**number_) and after == pytest.approx(
            0.1 ** (number_ + 1)
        )
    assert multiplier(1 - 1e-6) == pytest.approx(0.1 ** len(drops))

    steps, _, start = RULES[row["protocol"]]["warm-up"].partition(" ")
    if steps == "-":
        assert multiplier(0) == multiplier(1 / cfg.train.max_iter) == 1
    else:
        steps, start = int(steps), number(start)
        for step in (0, steps // 2, steps):
            expected = start + (1 - start) * step / steps
            assert multiplier(step / cfg.train.max_iter) == pytest.approx(expected, abs=1e-4)

    resize = cfg.dataloader.train.mapper.augmentations[0]
    if row["short sides"] != "-":
        assert list(resize.short_edge_length) == [int(side) for side in row["short sides"].split()]
        assert resize.max_size == int(row["long side"])
    else:  # large-scale jitter
        assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
        assert (resize.target_height, resize.target_width) == (1024, 1024)


@pytest.mark.parametrize("name", COCO_NAMES)
def test_backbone_is_the_published_one(name):
    row = facts_of(name)
    model = model_without_weights(name)
    bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
    stages = [bottom_up.stem, *bottom_up.stages]
    trains = [any(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert trains.index(True) + 1 == int(row["trained from"])
    assert getattr(bottom_up.stem, "stem_pool", "padded") == row["stem"]
    for module_name, module in model.named_modules():
        if hasattr(module, "conv3") and hasattr(module, "shortcut"):  # a bottleneck
            stride = (module.stride, module.stride)
            plain = (1, 1)
            expected = (stride, plain) if row["stride"] == "1x1" else (plain, stride)
            assert (module.conv1.stride, module.conv2.stride) == expected, module_name


def _images(number):
    return [{}] * number


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("small/")])
def test_small_data_are_trained_on_as_their_row_says(name):
    (row,) = (row for row in rows(SMALL) if re.fullmatch(row["recipes"], name))
    cfg = config(name)
    assert (cfg.train.epochs, cfg.train.min_iter) == (int(row["epochs"]), int(row["least"]))
    assert cfg.dataloader.train.total_batch_size == int(row["images"])
    assert cfg.optimizer.lr == float(row["rate"])
    assert cfg.train.pretrained == row["weights"]
    sides = [cfg.dataloader[k].mapper.augmentations[0].short_edge_length for k in ("train", "test")]
    assert list(sides[0]) == [int(side) for side in row["short sides"].split()]
    assert sides[1] == int(row["test"])
    bottom_up = model_without_weights(name).backbone.bottom_up
    stages = [bottom_up.stem, *bottom_up.stages]
    trains = [any(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert trains.index(True) + 1 == int(row["trained from"])
    for images in (50, 100, 400):
        run = read_config(copy.deepcopy(cfg), world_size=1)
        run.cfg.dataloader.train.dataset = L(_images)(number=images)
        run.count_epochs()
        assert run.options.max_iter == int(row[f"of {images}"])


@pytest.mark.parametrize("name", NAMES)
def test_colours_and_their_deviation_are_the_weights(name):
    cfg = config(name)
    msra = name in COCO_NAMES and facts_of(name)["stride"] == "1x1"
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    if msra:
        mean, std = [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]
    elif "_bit_" in name:  # in [-1, 1]
        mean, std = [127.5] * 3, [127.5] * 3
    assert (list(cfg.model.pixel_mean), list(cfg.model.pixel_std)) == (mean, std)
    colours = "BGR" if msra else "RGB"
    assert cfg.model.get("input_format", "RGB") == colours
    assert cfg.dataloader.train.mapper.image_format == colours
    assert cfg.dataloader.test.mapper.image_format == colours


@pytest.mark.parametrize("name", COCO_NAMES)
def test_losses_pooling_and_proposals_are_the_protocols(name):
    row = facts_of(name)
    rules = RULES[row["protocol"]]
    model = model_without_weights(name)
    assert (row["head"] == "-") == (not hasattr(model, "roi_heads"))
    if not hasattr(model, "roi_heads"):
        return
    rpn, heads = model.proposal_generator, model.roi_heads
    betas = [number(text) for text in rules["betas"].split(",")]
    predictors = heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        assert (rpn.smooth_l1_beta, predictor.smooth_l1_beta) == pytest.approx(betas)
        assert rpn.box_reg_loss_type == predictor.box_reg_loss_type == "smooth_l1"
    in_training, in_testing = rules["proposals"].split()
    assert rpn.post_nms_topk == {True: int(in_training), False: int(in_testing)}
    assert (rpn.anchor_boundary_thresh < 0) == (rules["border"] == "yes")

    keys = ("pooler", "box_pooler", "mask_pooler")
    poolers = [getattr(heads, key) for key in keys if hasattr(heads, key)]
    for pooler in poolers:
        if rules["pooling"] == "crop":
            assert isinstance(pooler, CropPooler) and pooler.output_size == (7, 7)
            continue
        kind, samples = rules["pooling"].split()
        for level in pooler.level_poolers:
            assert level.aligned == (kind == "ROIAlignV2")
            assert level.sampling_ratio == int(samples)
    layers = {"4conv1fc": (4, 1), "2fc": (0, 2)}
    if row["head"] == "res5":
        assert len(heads.res5) == 3
    else:
        box_heads = heads.box_head
        for head in box_heads if isinstance(box_heads, torch.nn.ModuleList) else [box_heads]:
            assert (len(head.conv_norm_relus), len(head.fcs)) == layers[row["head"]]


@pytest.mark.parametrize("name", NAMES)
def test_decay_and_rates_of_norms_and_biases_are_the_protocols(name):
    plain = {
        "norm decay": "0",
        "bias decay": "1e-4",
        "decay": "1e-4",
        "bias rate": "1",
        "clip": "-",
    }
    rules = RULES[facts_of(name)["protocol"]] if name in COCO_NAMES else plain
    cfg, model = config(name), model_without_weights(name)
    optimizer_config = OmegaConf.merge(cfg.optimizer)  # a copy
    optimizer_config.params.model = model
    optimizer = instantiate(optimizer_config)
    found = {
        p: (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert set(found) == {p for p in model.parameters() if p.requires_grad}
    norms = {model.get_submodule(norm) for norm in describe_norms(model)["norms"]}
    of_norms = {p for norm in norms for p in norm.parameters()}
    biases = {p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"}
    same = rules["bias decay"] == rules["decay"]  # what is called a bias has no decay of its own
    for parameter, (decay, rate) in found.items():
        kind = "norm decay" if parameter in of_norms else "decay"
        is_bias = parameter in biases
        if is_bias and not (same and parameter in of_norms):
            kind = "bias decay"
        assert decay == float(rules[kind])
        assert rate == cfg.optimizer.lr * (float(rules["bias rate"]) if is_bias else 1)
    clip = cfg.train.clip_grad
    assert clip.enabled == (rules["clip"] != "-")
    assert not clip.enabled or (clip.max_norm, clip.norm_type) == (float(rules["clip"]), 2)


@pytest.mark.parametrize("name", [name for name in COCO_NAMES if name.startswith("finetune/")])
def test_weights_are_the_published_rows(name):
    depth = re.search(r"r50|r101|x50_32x4d|x101_32x4d", name)[0]
    (row,) = (row for row in rows(WEIGHTS) if re.fullmatch(row["recipes"], name))
    assert config(name).train.pretrained == row[depth]


@pytest.mark.parametrize("name", NAMES)
def test_sn_is_evaluated_with_the_batch_average_or_the_releases_moving_average(name):
    norms = [m for m in model_without_weights(name).modules() if isinstance(m, SwitchNorm)]
    momenta = {norm.momentum for norm in norms if norm.running_mean is not None}
    averages = config(name).train.batch_average_iters > 0
    released = config(name).train.protocol == "SwitchNorm_Detection"
    assert averages == (bool(momenta) and not released)
    for momentum in momenta:
        assert momentum == pytest.approx(0.003 if released else 0.1)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("finetune/")])
def test_sn_of_released_weights_has_their_variances(name):
    norms = model_without_weights(name).named_modules()
    bottom_up = [m for n, m in norms if isinstance(m, SwitchNorm) and "backbone.fpn" not in n]
    bottom_up = [m for m in bottom_up if name.count("frozenbn") + name.count("gn_sn") == 0]
    heads = ("retinanet", "fcos")  # their head has weights of its own
    assert all(m.unbiased for m in bottom_up) or any(head in name for head in heads)


def test_each_published_row_has_its_recipe_under_its_protocol():
    tables = {(table["source"], table["table"]): table for table in PUBLISHED["tables"]}
    with_recipe = Counter((row["source"], row["table"]) for row in PUBLISHED["rows"])
    assert set(SOURCES) == set(with_recipe) <= set(tables)
    for key, table in tables.items():
        # All rows of a source's table: those with a recipe, and those that say why not.
        assert with_recipe[key] + len(table["without"]) == table["rows"], key
    for row in PUBLISHED["rows"]:
        protocol = facts_of(row["recipe"])["protocol"]
        allowed = SOURCES[row["source"], row["table"]].split(" or ")
        assert protocol in allowed, (row["recipe"], protocol)


@pytest.mark.parametrize("name", NAMES)
def test_leaf_is_short_and_names_its_output_folder(name):
    lines = recipes.config_file(name).read_text().splitlines()
    assert len(lines) <= 25
    cfg = config(name)
    assert cfg.train.output_dir == f"./output/{name}"
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}


def ap_text(value):
    """With the source's decimals: one, or two."""
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"


@pytest.mark.parametrize("name", NAMES)
def test_leaf_quotes_the_published_result_of_the_book(name):
    published = [
        " ".join(
            f"{ap_text(row[f'{kind}_ap'])} {kind} AP,"
            for kind in ("box", "mask")
            if row[f"{kind}_ap"]
        )
        for row in PUBLISHED["rows"]
        if row["recipe"] == name
    ]
    docstring = recipes.config_file(name).read_text().split('"""')[1]
    quoted = re.findall(r"Published: ([^()]*) \(", docstring)
    assert [f"{text}," for text in quoted] == published


@pytest.mark.parametrize("name", NAMES)
def test_finetuning_names_its_weights_and_scratch_does_not(name):
    finetunes = name.startswith("finetune/") or name.endswith("_finetune")
    assert bool(config(name).train.pretrained) == finetunes
    assert config(name).train.init_checkpoint == ""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("finetune/")])
def test_weights_by_name_are_in_the_catalog(name):
    catalog = pytest.importorskip("wsbcn_d2.checkpoint.catalog").CATALOG
    weights = config(name).train.pretrained
    known = [f"wsbcn://{entry}" for entry in catalog]
    known += [f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl" for depth in (50, 101)]
    assert "://" not in weights or weights in known


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
