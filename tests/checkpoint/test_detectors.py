"""Whole detectors, converted: the outputs and final boxes of those that they come from."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import wsbcn_d2
from tests.checkpoint.published import Reference, ReleasedSN, WSConv
from tests.checkpoint.published import detectron_pytorch as detectron_pytorch_backbone
from tests.checkpoint.published_detectors import (
    BOTTLENECK,
    CLASSES,
    FC,
    LAYERS,
    WIDTH,
    Detector,
    detectron_blobs,
    detectron_pytorch,
    mmdetection,
)
from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint import WSBCNCheckpointer, convert_state, convert_weights
from wsbcn_d2.data import digits

GN = partial(nn.GroupNorm, 32)
MMDETECTION = {"source": "mmdet", "ws": True}


@pytest.fixture(autouse=True)
def names_of_norms():
    wsbcn_d2.register_norms()
    yield
    wsbcn_d2.unregister_norms()


@pytest.fixture(scope="module")
def image():
    """A photograph, 160 x 224, RGB in 0..255, of a size that needs no padding."""
    path = digits.__file__.replace("digits.py", "digit_sources/china.jpg")
    return pil_to_tensor(Image.open(path).convert("RGB").resize((224, 160))).double()


def model_of(recipe):
    """A recipe's model, as narrow as `Detector`; whatever is not loaded into it shows."""
    model = recipes.get_config(recipe).model
    norm = model.backbone.bottom_up.stem.norm
    model.backbone.bottom_up.stages = [
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=blocks,
            stride_per_block=[1 if i == 0 else 2] + [1] * (blocks - 1),
            in_channels=64 if i == 0 else 128 * 2**i,
            out_channels=256 * 2**i,
            bottleneck_channels=BOTTLENECK * 2**i,
            stride_in_1x1=False,
            norm=norm,
        )
        for i, blocks in enumerate(LAYERS)
    ]
    model.backbone.out_channels = model.proposal_generator.head.in_channels = WIDTH
    heads = model.roi_heads
    heads.num_classes = CLASSES
    heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = WIDTH
    heads.box_head.conv_dims, heads.box_head.fc_dims = [WIDTH] * 4, [FC]
    heads.box_predictor.input_shape.channels = FC
    heads.mask_head.conv_dims = [WIDTH] * 5
    model = instantiate(model).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


def loaded(model, path, tmp_path, **options):
    conversion = convert_weights(path, tmp_path / "converted.pth", **options)
    WSBCNCheckpointer(model, complete=True).load(str(tmp_path / "converted.pth"))
    return conversion


def close(found, expected, bound=1e-5):
    scale = max(expected.abs().max().item(), 1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < bound * scale


@torch.no_grad()
def assert_same_heads(theirs, ours, image):
    """The same features, and from them and the same proposals the same outputs."""
    batch = ours.preprocess_image([{"image": image}]).tensor
    levels = theirs.features(batch)
    features = ours.backbone(batch)
    for level, feature in zip(levels, features.values(), strict=True):
        close(feature, level)
    logits, deltas = ours.proposal_generator.rpn_head(list(features.values()))
    for i, (their_logits, their_deltas) in enumerate(theirs.rpn(levels)):
        close(logits[i][0].permute(1, 2, 0).reshape(-1), their_logits)
        close(deltas[i][0].permute(1, 2, 0).reshape(-1, 4), their_deltas)
    corners = torch.tensor([[3.0, 5.0, 60.0, 50.0], [0.0, 0.0, 220.0, 158.0], [90, 20, 130, 140]])
    rois = torch.cat([torch.zeros(3, 1), corners], 1).double()
    heads, boxes = ours.roi_heads, [Boxes(corners.double())]
    used = [features[name] for name in heads.box_in_features]
    scores, deltas = heads.box_predictor(heads.box_head(heads.box_pooler(used, boxes)))
    their_scores, their_deltas = theirs.boxes(levels, rois)
    if theirs.background_first:
        their_scores, their_deltas = their_scores.roll(-1, 1), their_deltas[:, 4:]
    close(scores, their_scores)
    close(deltas, their_deltas)
    masks = heads.mask_head.layers(heads.mask_pooler(used, boxes))
    close(masks, theirs.masks(levels, rois))


@torch.no_grad()
def assert_same_detections(theirs, ours, image):
    # detectron2's NMS is in float32.
    theirs, ours, image = theirs.float(), ours.float(), image.float()
    height, width = image.shape[1:]
    batch = ours.preprocess_image([{"image": image}]).tensor
    found = ours([{"image": image, "height": height, "width": width}])[0]["instances"]
    boxes, scores, labels = theirs.detect(batch)
    assert len(found) == len(boxes) > 10 and len(set(labels.tolist())) > 1
    assert found.pred_classes.tolist() == labels.tolist()
    close(found.scores, scores, 1e-4)
    close(found.pred_boxes.tensor, boxes, 1e-4)
    theirs.double()


@pytest.fixture(scope="module")
def gn_ws(tmp_path_factory):
    detector = Detector(GN, WSConv)
    path = tmp_path_factory.mktemp("mmdetection") / "mask_rcnn_r50_fpn_gn_ws-all_2x_coco.pth"
    torch.save({"meta": {"epoch": 24}, "state_dict": mmdetection(detector)}, path)
    return detector, path


def test_mmdetections_detector_is_the_recipes(gn_ws, image, tmp_path, caplog):
    theirs, path = gn_ws
    ours = model_of("finetune/mask_rcnn_r50_fpn_ws_gn_2x")
    conversion = loaded(ours, path, tmp_path, **MMDETECTION)
    assert "DIFFERS" not in caplog.text
    assert conversion.detector and conversion.pretraining.boxes == "exclusive"
    assert set(conversion.mapped) == set(theirs_names(path))
    assert_same_heads(theirs, ours, image)
    assert_same_detections(theirs, ours, image)


def theirs_names(path):
    return torch.load(path)["state_dict"]


def test_mmdetections_config_in_the_file_is_read(gn_ws):
    # As mmengine writes it.
    config = """conv_cfg = dict(type='ConvWS')
        data_preprocessor=dict(
            bgr_to_rgb=False,
            mean=[
                103.53,
                116.28,
                123.675,
            ],
            std=[1.0, 1.0, 1.0]),
        roi_layer=dict(output_size=7, sampling_ratio=2, type='RoIAlign', aligned=False)"""
    state = theirs_names(gn_ws[1])
    made = convert_state(state, {"meta": {"cfg": config}}, source="mmdet").pretraining
    assert made.ws and made.input_format == "BGR" and made.pixel_std == (1, 1, 1)
    assert made.pixel_mean == (103.53, 116.28, 123.675)
    assert (made.roi_sampling, made.roi_align, made.boxes) == (2, "ROIAlign", "exclusive")


def test_only_the_backbone_on_request(gn_ws):
    conversion = convert_state(theirs_names(gn_ws[1]), backbone_only=True, **MMDETECTION)
    assert not conversion.detector and "stem.conv1.weight" in conversion.state
    assert "only the backbone" in conversion.ignored["roi_head.bbox_head.fc_cls.weight"]


def test_a_part_of_a_head_that_is_missing_or_unknown_is_an_error(gn_ws):
    state = theirs_names(gn_ws[1])
    with pytest.raises(ValueError, match=r"missing, such as backbone\.fpn_output4\.weight"):
        convert_state({k: v for k, v in state.items() if k != "neck.fpn_convs.2.conv.weight"},
                      **MMDETECTION)  # fmt: skip
    extra = {"roi_head.keypoint_head.upsample.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 of \d+ keys .*keypoint_head.*--backbone-only"):
        convert_state(state | extra, **MMDETECTION)


@pytest.fixture(scope="module")
def sn():
    return Detector(ReleasedSN, background_first=True, inclusive=True, aligned=False, sampling=2)


def test_sn_of_detectron_pytorch_is_evaluated_as_there(sn, image, tmp_path, caplog):
    path = tmp_path / "e2e_mask_rcnn_R-50-FPN_2x_sn.pth"
    torch.save({"model": detectron_pytorch(sn), "step": 9}, path)
    ours = model_of("finetune/mask_rcnn_r50_fpn_sn_2x")
    conversion = loaded(ours, path, tmp_path)
    assert conversion.pretraining.source == "sn_detection"
    assert "roi_align: 'ROIAlign' in the checkpoint, 'ROIAlignV2' in the model" in caplog.text
    assert "unbiased: True in the checkpoint, False in the model" in caplog.text
    assert "boxes: 'inclusive' in the checkpoint, 'exclusive' in the model" in caplog.text
    assert "DIFFERS" not in caplog.text
    assert_same_heads(sn, ours, image)
    assert_same_detections(sn, ours, image)


def test_a_training_from_it_is_warned_and_its_model_stays(sn, tmp_path, caplog):
    torch.save({"model": detectron_pytorch(sn)}, tmp_path / "sn.pth")
    ours = model_of("finetune/mask_rcnn_r50_fpn_sn_2x")
    convert_weights(tmp_path / "sn.pth", tmp_path / "converted.pth")
    WSBCNCheckpointer(ours).load(str(tmp_path / "converted.pth"))
    assert "DIFFERS" in caplog.text and "roi_sampling: 2 in the checkpoint" in caplog.text
    assert ours.roi_heads.box_pooler.level_poolers[0].aligned


def test_detectrons_pickle_is_as_detectron2_reads_it(tmp_path):
    """Name by name, channel by channel: detectron2 knows Detectron's names too."""
    theirs = Detector(GN, background_first=True, inclusive=True, aligned=False, sampling=2)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(detectron_blobs(theirs), protocol=2))
    conversion = convert_weights(path, tmp_path / "converted.pth")
    assert conversion.detector and not conversion.pretraining.unbiased
    blobs = {k: torch.from_numpy(x) for k, x in detectron_blobs(theirs)["blobs"].items()
             if not k.endswith("_momentum")}  # fmt: skip
    expected, _ = convert_c2_detectron_names(blobs)
    assert len(expected) == len(conversion.state)
    for name, tensor in expected.items():
        (ours,) = (ours for ours in conversion.state if f".{ours}".endswith(f".{name}"))
        assert torch.equal(conversion.state[ours], tensor), name


def test_anchors_of_several_sizes_are_ordered_as_the_generator_has_them(tmp_path):
    """A C4 model whose objectness is a softmax. Each anchor's numbers say which it is."""
    reference = Reference(ReleasedSN, rename=detectron_pytorch_backbone("Conv_Body."))
    state = {key.replace("Conv_Body.res5", "Box_Head.res5"): x
             for key, x in reference.state().items()}  # fmt: skip
    anchors = [(size, ratio) for ratio in (0.5, 1.0, 2.0) for size in (32, 64, 128, 256, 512)]
    sizes, ratios = (torch.tensor(column) for column in zip(*anchors, strict=True))
    weights = {"RPN.RPN_conv": (8, 1024, 3, 3), "RPN.RPN_cls_score": (30, 8, 1, 1),
               "RPN.RPN_bbox_pred": (60, 8, 1, 1), "Box_Outs.cls_score": (6, 2048),
               "Box_Outs.bbox_pred": (24, 2048)}  # fmt: skip
    state |= {f"{name}.weight": torch.zeros(shape) for name, shape in weights.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in weights.items()}
    background = torch.randn(15, generator=torch.Generator().manual_seed(0))
    state["RPN.RPN_cls_score.bias"] = torch.cat([background, background + sizes])
    state["RPN.RPN_bbox_pred.bias"] = (ratios[:, None] + torch.arange(4) * 10).flatten()
    state["Box_Outs.cls_score.bias"] = torch.arange(6.0)
    state |= {f"Mask_Head.res5.0.{k}": torch.ones(1) for k in ("conv1.weight", "sn1.bias")}
    conversion = convert_state(state)
    found = conversion.state
    assert {"backbone.res4.0.conv1.weight", "roi_heads.res5.0.conv1.weight"} <= set(found)
    assert conversion.pretraining.roi_sampling == 0
    generator = DefaultAnchorGenerator(
        sizes=[[32, 64, 128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[16]
    )
    (cells,) = generator.cell_anchors
    width, height = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    rpn = "proposal_generator.rpn_head"
    assert torch.allclose(found[f"{rpn}.objectness_logits.bias"], (width * height).sqrt())
    deltas = found[f"{rpn}.anchor_deltas.bias"].view(15, 4)
    assert torch.allclose(deltas, (height / width)[:, None] + torch.arange(4) * 10)
    scores = found["roi_heads.box_predictor.cls_score.bias"]
    assert scores.tolist() == [1, 2, 3, 4, 5, 0]
    assert len(found["roi_heads.box_predictor.bbox_pred.bias"]) == 20
