"""A small Mask R-CNN for images of about 160 pixels: half-width ResNet-18, FPN over strides 4-16.

Without norms; `use_norm` puts them in. 64 channels in FPN and heads: a multiple of 32, for GN.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from .mask_rcnn_fpn import model

WIDTH = 64

model.backbone.bottom_up.stem = L(BasicStem)(in_channels=3, out_channels=32, norm="")
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=2,
        stride_per_block=[stride, 1],
        in_channels=in_channels,
        out_channels=out_channels,
        norm="",
    )
    for stride, in_channels, out_channels in ((1, 32, 32), (2, 32, 64), (2, 64, 128))
]
model.backbone.bottom_up.out_features = ["res2", "res3", "res4"]
model.backbone.out_channels = WIDTH
model.backbone.top_block = None

levels = ["p2", "p3", "p4"]
strides = [4, 8, 16]
rpn = model.proposal_generator
rpn.in_features = levels
rpn.head.in_channels = WIDTH
rpn.anchor_generator.sizes = [[16], [32], [64]]
rpn.anchor_generator.strides = strides
rpn.batch_size_per_image = 128
rpn.pre_nms_topk = (300, 150)
rpn.post_nms_topk = (150, 75)

heads = model.roi_heads
heads.num_classes = 10
heads.batch_size_per_image = 64
heads.box_in_features = heads.mask_in_features = levels
heads.box_pooler.scales = heads.mask_pooler.scales = [1 / stride for stride in strides]
# The finest level holds the digits (16 to 60 pixels); 224 is for objects of COCO's size.
heads.box_pooler.canonical_box_size = heads.mask_pooler.canonical_box_size = 56
heads.box_pooler.canonical_level = heads.mask_pooler.canonical_level = 3
heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = WIDTH
heads.box_head.conv_dims = [WIDTH, WIDTH]
heads.box_head.fc_dims = [256]
heads.box_predictor.input_shape.channels = 256
heads.mask_head.conv_dims = [WIDTH, WIDTH, WIDTH]
