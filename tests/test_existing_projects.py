"""`register_norms` in detectron2's stock configs and projects: two iterations on real images.

Each model with its own config and detectron2's own trainer. A norm is a name in the config, weight
standardization is `standardize_convs`; docs/existing_projects.md says what that took.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from PIL import Image

from tests.annotated_images import HAS_COCO, NUM_STUFF, NUM_THINGS, annotated_images
from wsbcn_d2 import register_norms, standardize_convs
from wsbcn_d2.checkpoint.norm_kinds import describe_norms

# What a config calls the norms of its parts.
RCNN_NORMS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
ZOO = {
    # config: norms, and how many norm layers there are
    # ResNet-50 53, FPN 8, box head 4, mask head 4
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": (RCNN_NORMS, 69),
    # three box heads
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": (RCNN_NORMS, 77),
    # FPN of three levels, two subnets of 4 in the head
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml": (("RESNETS", "FPN", "RETINANET"), 67),
    # semantic head 1 + 1 + 2 + 3
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": ((*RCNN_NORMS, "SEM_SEG_HEAD"), 76),
    # the keypoint head has no norms
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml": (("RESNETS", "FPN", "ROI_BOX_HEAD"), 65),
}
# A stem of three convolutions and 52 more. DeepLabV3+: 1 projection, 2 to fuse, 5 of ASPP.
# Panoptic-DeepLab's decoders: 2 projections, 2 separable convolutions (two norms each) to fuse, in
# ASPP 1 + 3 separable + 1 = 8; 14 each. Semantic head: 1 separable more; instance head: 2 + 1
# separable. PointRend: as Mask R-CNN, but a mask head without norms.
PROJECTS = {"deeplab": 55 + 8, "panoptic_deeplab": 55 + 14 + 2 + 14 + 4, "point_rend": 53 + 8 + 4}

NORMS = ("SN", "SyncSN", "BCN", "GN+WS")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    """The images as two datasets: with all annotations, and with people only."""
    register_norms()
    images = annotated_images(tmp_path_factory.mktemp("maps"))
    people = []
    for image in images:
        chosen = [a for a in image["annotations"] if a["category_id"] == 0]
        annotations = [{**a, "category_id": 0} for a in chosen or image["annotations"]]
        people.append({**image, "annotations": annotations})
    stock = MetadataCatalog.get("keypoints_coco_2017_train")
    for name, dicts in (("projects_all", images), ("projects_people", people)):
        DatasetCatalog.register(name, functools.partial(list, dicts))
        MetadataCatalog.get(name).set(
            ignore_label=255,
            keypoint_names=stock.keypoint_names,
            keypoint_flip_map=stock.keypoint_flip_map,
            thing_dataset_id_to_contiguous_id={i: i for i in range(NUM_THINGS)},
        )
    yield
    for name in ("projects_all", "projects_people"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules that two projects import, and these tests have no other use for, if absent."""

    def rgb2id(colours):
        return colours.astype(np.int64) @ np.array([1, 256, 256**2])

    utils = types.ModuleType("panopticapi.utils")
    utils.rgb2id = rgb2id
    modules = {"cv2": types.ModuleType("cv2"), "panopticapi": types.ModuleType("panopticapi")}
    for name, module in {**modules, "panopticapi.utils": utils}.items():
        try:
            importlib.import_module(name)
        except ImportError:
            monkeypatch.setitem(sys.modules, name, module)


def small(cfg, dataset="projects_all"):
    """A config that trains on these images at about 96 pixels, on the CPU."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.MAX_SIZE_TRAIN = 128
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    return cfg


def set_norms(cfg, parts, norm):
    for part in parts:
        cfg.MODEL[part].NORM = norm.removesuffix("+WS")


def trains(cfg, norm, number, mapper=None):
    """Two iterations of detectron2's trainer; what that must leave behind."""
    torch.manual_seed(0)
    model = build_model(cfg)
    if norm.endswith("+WS"):
        standardize_convs(model)
    found = describe_norms(model)
    kind = norm.removesuffix("+WS")
    assert Counter(found["norms"].values()) == {kind: number}
    assert sum(found["convs"].values()) == (number if norm.endswith("+WS") else 0)

    optimizer = build_optimizer(cfg, model)
    norms = [f"{name}." for name in found["norms"]]
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decay = 0 if names[parameter].startswith(tuple(norms)) else cfg.SOLVER.WEIGHT_DECAY
            assert group["weight_decay"] == decay, names[parameter]

    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {} if mapper is None else {"mapper": mapper}
    trainer = SimpleTrainer(model, build_detection_train_loader(cfg, **options), optimizer)
    losses = []
    model.register_forward_hook(lambda *arguments: losses.append(arguments[2]))
    trainer.train(0, 2)
    assert len(losses) == 2
    assert all(torch.isfinite(loss) for step in losses for loss in step.values())

    after = model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    # A step may be too small to change a float32 of 1; the optimizer's momentum shows it anyway.
    still = [names[p] for p, s in optimizer.state.items() if not s["momentum_buffer"].any()]
    assert still == []
    assert len(optimizer.state) == sum(p.requires_grad for p in model.parameters())
    assert any(not torch.equal(before[name], after[name]) for name in names.values())
    moved = [
        n for n in after if n.endswith("running_mean") and not torch.equal(before[n], after[n])
    ]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    of_trained = [n for n in after if n.endswith("running_mean") and not _is_frozen(n, frozen)]
    assert sorted(moved) == sorted(of_trained)
    assert bool(moved) == (kind != "GN")


def _is_frozen(buffer, frozen):
    return buffer.replace("running_mean", "weight") in frozen


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ZOO)
def test_stock_config_trains(name, norm):
    trains_stock(name, norm)


def test_stock_mask_rcnn_trains_with_syncsn():
    trains_stock("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "SyncSN")


def trains_stock(name, norm):
    parts, number = ZOO[name]
    cfg = small(model_zoo.get_config(name), f"projects_{'people' if 'keypoint' in name else 'all'}")
    # A box head that can have norms: four convolutions and one linear layer.
    cfg.MODEL.ROI_BOX_HEAD.update(NAME="FastRCNNConvFCHead", NUM_CONV=4, NUM_FC=1)
    set_norms(cfg, parts, norm)
    trains(cfg, norm, number)


def _cropped(cfg):
    """Squares of 96 pixels: DeepLab's loss needs sides that are multiples of the stride."""
    cfg.INPUT.CROP.update(ENABLED=True, TYPE="absolute", SIZE=[96, 96])
    return cfg


def deeplab_config():
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("Base-RCNN-DilatedC5.yaml"))
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.update(NAME="build_resnet_deeplab_backbone", FREEZE_AT=0)
    cfg.MODEL.RESNETS.update(
        OUT_FEATURES=["res2", "res5"], STEM_OUT_CHANNELS=128, STRIDE_IN_1X1=False
    )
    cfg.MODEL.SEM_SEG_HEAD.update(
        NAME="DeepLabV3PlusHead",
        IN_FEATURES=["res2", "res5"],
        # 48 by default: not a multiple of the 32 groups of GN and BCN.
        PROJECT_CHANNELS=[64],
        CONVS_DIM=256,
        COMMON_STRIDE=4,
        NUM_CLASSES=NUM_STUFF,
    )
    return _cropped(small(cfg))


def panoptic_deeplab_config():
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("Base-RCNN-DilatedC5.yaml"))
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.BACKBONE.update(NAME="build_resnet_deeplab_backbone", FREEZE_AT=0)
    cfg.MODEL.RESNETS.update(
        OUT_FEATURES=["res2", "res3", "res5"], STEM_OUT_CHANNELS=128, STRIDE_IN_1X1=False
    )
    cfg.MODEL.SEM_SEG_HEAD.update(
        NAME="PanopticDeepLabSemSegHead",
        IN_FEATURES=["res2", "res3", "res5"],
        PROJECT_FEATURES=["res2", "res3"],
        # The default 32 are as many as BCN's groups: alone in its group, a channel loses the scale
        # and shift of BCN's first stage in the second, and they learn nothing.
        PROJECT_CHANNELS=[64, 128],
        CONVS_DIM=256,
        COMMON_STRIDE=4,
        NUM_CLASSES=133,
        USE_DEPTHWISE_SEPARABLE_CONV=True,
    )
    cfg.MODEL.INS_EMBED_HEAD.update(PROJECT_CHANNELS=[64, 128], HEAD_CHANNELS=64)
    cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV = True
    return _cropped(small(cfg))


def point_rend_config():
    from detectron2.projects.point_rend import add_pointrend_config

    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("Base-RCNN-FPN.yaml"))
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_BOX_HEAD.update(
        NAME="FastRCNNConvFCHead", NUM_CONV=4, NUM_FC=1, TRAIN_ON_PRED_BOXES=True
    )
    # No pooler: the head takes its points from the feature maps.
    cfg.MODEL.ROI_MASK_HEAD.update(NAME="PointRendMaskHead", POOLER_TYPE="", POINT_HEAD_ON=True)
    return small(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PROJECTS)
def test_project_trains(name, norm, stand_ins):
    cfg, mapper = globals()[f"{name}_config"](), None
    parts = ("RESNETS", "SEM_SEG_HEAD")
    if name == "panoptic_deeplab":
        from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper

        parts += ("INS_EMBED_HEAD",)
        mapper = PanopticDeeplabDatasetMapper(cfg)
    if name == "point_rend":
        parts = ("RESNETS", "FPN", "ROI_BOX_HEAD")
    set_norms(cfg, parts, norm)
    trains(cfg, norm, PROJECTS[name], mapper)


@pytest.mark.parametrize("norm", ["GN", "BCN"])
def test_deeplabs_48_channels_are_refused_with_a_reason(norm):
    cfg = deeplab_config()
    cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = [48]
    set_norms(cfg, ("RESNETS", "SEM_SEG_HEAD"), norm)
    with pytest.raises(ValueError, match=r"\b48\b.*\b32\b|\b32\b.*\b48\b"):
        build_model(cfg)


@pytest.mark.skipif(not HAS_COCO, reason="no COCO images")
def test_annotated_images_hold_what_they_say(tmp_path):
    for image in annotated_images(tmp_path):
        semantic = np.asarray(Image.open(image["sem_seg_file_name"]))
        colours = np.asarray(Image.open(image["pan_seg_file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        assert semantic.shape == ids.shape == (image["height"], image["width"])
        for segment in image["segments_info"]:
            labels = set(semantic[ids == segment["id"]].tolist())
            stuff = segment["category_id"] - 79
            assert labels == ({0} if segment["isthing"] else {stuff})
        assert re.search(r"train2017/\d+\.jpg$", image["file_name"])
