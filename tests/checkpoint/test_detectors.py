"""Whole detectors, converted: the outputs and final boxes of those that they come from."""

from __future__ import annotations

import pickle
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2 import model_zoo
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes
from PIL import Image
from torch import nn
from torchvision.ops import roi_align
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
from wsbcn_d2.checkpoint import CATALOG, WSBCNCheckpointer, convert_state, convert_weights
from wsbcn_d2.data import digits
from wsbcn_d2.norms import SwitchNorm2d

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


def bottleneck_stages(layers, norm):
    return [
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
        for i, blocks in enumerate(layers)
    ]


def model_of(recipe):
    """A recipe's model, as narrow as `Detector`; whatever is not loaded into it shows."""
    model = recipes.get_config(recipe).model
    norm = model.backbone.bottom_up.stem.norm
    model.backbone.bottom_up.stages = bottleneck_stages(LAYERS, norm)
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


def pools_as_detectron2(model):
    """The recipe has the released protocol; detectron2's own defaults differ in this."""
    for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
        for level in pooler.level_poolers:
            level.aligned, level.sampling_ratio = True, 0
    return model


def test_sn_of_detectron_pytorch_is_evaluated_as_there(sn, image, tmp_path, caplog):
    path = tmp_path / "e2e_mask_rcnn_R-50-FPN_2x_sn.pth"
    torch.save({"model": detectron_pytorch(sn), "step": 9}, path)
    ours = pools_as_detectron2(model_of("finetune/mask_rcnn_r50_fpn_sn_2x"))
    conversion = loaded(ours, path, tmp_path)
    assert conversion.pretraining.source == "sn_detection"
    assert "roi_align: 'ROIAlign' in the checkpoint, 'ROIAlignV2' in the model" in caplog.text
    assert "boxes: 'inclusive' in the checkpoint, 'exclusive' in the model" in caplog.text
    assert "DIFFERS" not in caplog.text
    assert_same_heads(sn, ours, image)
    assert_same_detections(sn, ours, image)


def test_a_training_from_it_is_warned_and_its_model_stays(sn, tmp_path, caplog):
    torch.save({"model": detectron_pytorch(sn)}, tmp_path / "sn.pth")
    ours = pools_as_detectron2(model_of("finetune/mask_rcnn_r50_fpn_sn_2x"))
    convert_weights(tmp_path / "sn.pth", tmp_path / "converted.pth")
    WSBCNCheckpointer(ours).load(str(tmp_path / "converted.pth"))
    assert "DIFFERS" in caplog.text and "roi_sampling: 2 in the checkpoint" in caplog.text
    assert ours.roi_heads.box_pooler.level_poolers[0].aligned


@pytest.fixture(scope="module")
def detectron(tmp_path_factory):
    detector = Detector(GN, background_first=True, inclusive=True, aligned=False, sampling=2)
    path = tmp_path_factory.mktemp("detectron") / "model_final.pkl"
    path.write_bytes(pickle.dumps(detectron_blobs(detector), protocol=2))
    return detector, path


def test_detectrons_pickle_is_as_detectron2_reads_it(detectron, tmp_path):
    """Name by name, channel by channel: detectron2 knows Detectron's names too."""
    theirs, path = detectron
    conversion = convert_weights(path, tmp_path / "converted.pth")
    assert conversion.detector and not conversion.pretraining.unbiased
    blobs = {k: torch.from_numpy(x) for k, x in detectron_blobs(theirs)["blobs"].items()
             if not k.endswith("_momentum")}  # fmt: skip
    expected, _ = convert_c2_detectron_names(blobs)
    assert len(expected) == len(conversion.state)
    for name, tensor in expected.items():
        (ours,) = (ours for ours in conversion.state if f".{ours}".endswith(f".{name}"))
        assert torch.equal(conversion.state[ours], tensor), name


def test_detectrons_input_is_folded_and_its_mean_taken(detectron, image, tmp_path):
    theirs, path = detectron
    ours = model_of("finetune/mask_rcnn_r50_fpn_gn_gn_2x")
    loaded(ours, path, tmp_path, **CATALOG["mask_rcnn_r50_fpn_gn_gn_2x"].options)
    mean = torch.tensor([102.9801, 115.9465, 122.7717]).double().view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.features((image.flip(0) - mean)[None])
        batch = ours.preprocess_image([{"image": image}]).tensor
        for level, feature in zip(expected, ours.backbone(batch).values(), strict=True):
            close(feature, level)


# --- C4: res5 is the head, and one level has anchors of all sizes ----------------------------

C4_HEADS = {
    "RPN.RPN_conv": (1024, 1024, 3, 3),
    "RPN.RPN_cls_score": (30, 1024, 1, 1),
    "RPN.RPN_bbox_pred": (60, 1024, 1, 1),
    "Box_Outs.cls_score": (CLASSES + 1, 2048),
    "Box_Outs.bbox_pred": (4 * (CLASSES + 1), 2048),
    "Mask_Head.upconv5": (2048, 256, 2, 2),
    "Mask_Outs.classify": (CLASSES + 1, 256, 1, 1),
}


@pytest.fixture(scope="module")
def c4():
    """The backbone with res5, and what SwitchNorm_Detection saves of a Mask R-CNN around it."""
    reference = Reference(ReleasedSN, rename=detectron_pytorch_backbone("Conv_Body."))
    state = {k.replace("Conv_Body.res5", "Box_Head.res5"): x for k, x in reference.state().items()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in C4_HEADS.items():
        out_channels = shape[1] if name.endswith("upconv5") else shape[0]
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        state[f"{name}.bias"] = torch.randn(out_channels, generator=generator)
    # The mask head has the box head's res5.
    state |= {k.replace("Box_", "Mask_"): x for k, x in state.items() if "res5" in k}
    return reference, state


def test_c4_heads_give_the_same_boxes_and_masks(c4, tmp_path):
    reference, state = c4
    torch.save({"model": state}, tmp_path / "c4.pth")
    model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
    norm = model.backbone.stem.norm = partial(SwitchNorm2d, unbiased=True)
    model.backbone.stages = bottleneck_stages(reference.layers[:3], norm)
    model.roi_heads.res5.update(
        num_blocks=1, stride_per_block=[2], bottleneck_channels=256, stride_in_1x1=False, norm=norm
    )
    model.roi_heads.num_classes = CLASSES
    ours = instantiate(model).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(float("nan"))
    conversion = loaded(ours, tmp_path / "c4.pth", tmp_path)
    assert (conversion.pretraining.roi_align, conversion.pretraining.roi_sampling) == (
        "ROIAlign",
        0,
    )
    assert "a copy of the box" in conversion.ignored["Mask_Head.res5.0.conv1.weight"]
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    boxes = torch.tensor([[3.0, 5.0, 60.0, 50.0], [20, 8, 90, 60]]).double()
    rois = torch.cat([torch.zeros(2, 1), boxes], 1)
    with torch.no_grad():
        res4 = reference.features(image)["res4"]
        network = reference.network.double()
        res5 = network.layer4(roi_align(res4, rois, 14, 1 / 16, 0, False))
        network.float()
        weights = {name: tensor.double() for name, tensor in state.items()}

        def theirs(name, layer, x, **options):
            return layer(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

        mean = res5.mean((2, 3))
        scores = theirs("Box_Outs.cls_score", F.linear, mean)
        deltas = theirs("Box_Outs.bbox_pred", F.linear, mean)
        masks = theirs("Mask_Head.upconv5", F.conv_transpose2d, res5, stride=2).relu()
        masks = theirs("Mask_Outs.classify", F.conv2d, masks)

        ours.double()
        features = ours.backbone(image)["res4"]
        close(features, res4)
        pooled = ours.roi_heads._shared_roi_transform([features], [Boxes(boxes)])
        our_scores, our_deltas = ours.roi_heads.box_predictor(pooled.mean((2, 3)))
        close(our_scores, scores.roll(-1, 1))
        close(our_deltas, deltas[:, 4:])
        close(ours.roi_heads.mask_head.layers(pooled), masks[:, 1:])


def test_c4_anchors_are_ordered_as_the_generator_has_them(c4):
    """Detectron has the ratio first. Each anchor's biases say which it is; softmax of two."""
    state = dict(c4[1])
    anchors = [(size, ratio) for ratio in (0.5, 1.0, 2.0) for size in (32, 64, 128, 256, 512)]
    sizes, ratios = (torch.tensor(column) for column in zip(*anchors, strict=True))
    background = torch.randn(15, generator=torch.Generator().manual_seed(0))
    state["RPN.RPN_cls_score.bias"] = torch.cat([background, background + sizes])
    state["RPN.RPN_bbox_pred.bias"] = (ratios[:, None] + torch.arange(4) * 10).flatten()
    found = convert_state(state).state
    generator = DefaultAnchorGenerator(
        sizes=[[32, 64, 128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[16]
    )
    (cells,) = generator.cell_anchors
    width, height = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    rpn = "proposal_generator.rpn_head"
    assert torch.allclose(found[f"{rpn}.objectness_logits.bias"], (width * height).sqrt())
    deltas = found[f"{rpn}.anchor_deltas.bias"].view(15, 4)
    assert torch.allclose(deltas, (height / width)[:, None] + torch.arange(4) * 10)
    assert found[f"{rpn}.objectness_logits.weight"].shape == (15, 1024, 1, 1)


def test_a_detector_of_mmdetection_1_is_refused(sn):
    state = {name.replace("roi_head.", ""): x for name, x in mmdetection(sn).items()}
    gn = {k: x for k, x in state.items() if not re.search(r"running|mean_weight|var_weight", k)}
    with pytest.raises(ValueError, match=r"mmdetection before 2\.0.*--backbone-only"):
        convert_state(gn, source="mmdet", ws=False)
    assert not convert_state(gn, source="mmdet", ws=False, backbone_only=True).detector
