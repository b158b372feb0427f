"""Every recipe builds the layers of its name, and one of each network takes a step."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from projects.semantic_segmentation.semantic_segmentation.data import IGNORE
from tests.recipe_models import narrow
from wsbcn_d2 import register_norms
from wsbcn_d2.checkpoint.catalog import CATALOG
from wsbcn_d2.checkpoint.norm_kinds import describe_norms
from wsbcn_d2.config.targets import check_targets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.glob("*/*.py")
    if path.parent.name != "common"
)
# Norms of backbone, head and auxiliary head, and convolutions without one, counted by hand. ASPP
# has four branches and the projection, of which the pooled one has a norm in the releases only.
LAYERS = {
    "digits_deeplab_v3_plus_r18": (15, 5 + 1 + 2, 1, 2 + 1),
    "coco_deeplab_v3_plus_r18": (15, 5 + 1 + 2, 1, 2 + 1),
    "deeplab_v3_r101": (104, 6, 0, 1),
    "deeplab_r50": (53, 1, 1, 1 + 1),
    "pspnet_r50": (53, 3 + 1, 1, 2 + 1),
    "deeplab_v3_plus_r50": (53, 5 + 1 + 2, 0, 2),
}
NORMS = {
    "bn": "BN",
    "syncbn": "SyncBN",
    "gn": "GN",
    "sn": "SN",
    "syncsn": "SyncSN",
    "ws_gn": "GN",
    "ws_bcn": "SyncBCN",
    "ws_syncsn": "SyncSN",
}
CLASSES = {"digits": 11, "coco": 133, "voc": 21, "ade20k": 150, "cityscapes": 19}


def load(recipe):
    register_norms()
    return LazyConfig.load(str(CONFIGS / f"{recipe}.py"))


def parts(recipe):
    """Network and norm, from the name."""
    name = recipe.split("/")[1]
    network = next(network for network in LAYERS if name.startswith(f"{network}_"))
    rest = re.sub(r"(_8x\d+)?(_\d+\w)?$", "", name.removeprefix(f"{network}_"))
    return network, rest


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_the_layers_of_its_name(recipe):
    cfg = load(recipe)
    check_targets(cfg)
    assert cfg.train.output_dir == f"./output/semantic_segmentation/{recipe}"
    if cfg.train.pretrained:
        assert cfg.train.pretrained.removeprefix("wsbcn://") in CATALOG
    network, norm = parts(recipe)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    found = describe_norms(model)
    backbone, head, auxiliary, plain = LAYERS[network]
    places = Counter(name.split(".")[0] for name in found["norms"])
    assert [places[x] for x in ("backbone", "sem_seg_head", "auxiliary_head")] == [
        *(backbone, head, auxiliary)
    ]
    assert set(found["norms"].values()) == {NORMS[norm]}
    normed = backbone + head + auxiliary
    standardized = normed if norm.startswith("ws_") else 0
    assert sum(found["convs"].values()) == standardized
    assert len(found["convs"]) == normed + plain
    classes = CLASSES[recipe.split("/")[0]]
    assert cfg.dataloader.train.mapper.num_classes == classes
    for head_module in (model.sem_seg_head, model.auxiliary_head):
        assert head_module is None or head_module.predictor.out_channels == classes


@pytest.mark.parametrize(("output_stride", "expected"), [(8, (1, 2, 4)), (16, (1, 1, 2))])
def test_dilation_keeps_the_receptive_field_of_strides(output_stride, expected):
    cfg = load(
        "voc/deeplab_v3_r101_ws_gn_50e" if output_stride == 16 else "ade20k/deeplab_r50_gn_100k"
    )
    stages = cfg.model.backbone.stages
    assert math.prod(stage.stride_per_block[0] for stage in stages) * 4 == output_stride
    last = [stage.dilation_per_block[-1] for stage in stages[1:]]
    assert tuple(last) == expected
    for before, stage in itertools.pairwise(stages):
        # The convolution that had the stride sees as far as the stage before.
        assert stage.dilation_per_block[0] == before.dilation_per_block[-1]


@pytest.mark.parametrize(
    "recipe",
    [
        "voc/deeplab_v3_r101_ws_gn_50e",
        "voc/deeplab_v3_r101_ws_bcn_50e",
        "ade20k/deeplab_r50_sn_8x2_100k",
        "cityscapes/pspnet_r50_syncsn_8x2_90k",
        "cityscapes/pspnet_r50_syncbn_90k",
        "cityscapes/deeplab_v3_plus_r50_ws_syncsn_90k",
    ],
)
def test_recipe_takes_a_step_and_segments(recipe):
    cfg = load(recipe)
    narrow(cfg.model)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((65, 65), (65, 49))]
    labels = [torch.randint(0, 19, image.shape[1:]) for image in images]
    labels[0][:9] = IGNORE
    batch = [{"image": x, "sem_seg": y} for x, y in zip(images, labels, strict=True)]
    losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert len(losses) == 1 + (model.auxiliary_head is not None)
    assert all(p.grad is not None and p.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        (found,) = model([{"image": images[1], "height": 130, "width": 98}])
    assert found["sem_seg"].shape == (CLASSES[recipe.split("/")[0]], 130, 98)
    assert torch.allclose(found["sem_seg"].sum(0), torch.ones(130, 98), atol=1e-4)
