"""Segmentation networks on dilated ResNets. Without norms; `use_norm` puts them in."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.projects.deeplab import DeepLabV3PlusHead

from projects.semantic_segmentation.semantic_segmentation import (
    DeepLabV3Head,
    FCNHead,
    PSPHead,
    Segmentor,
)

constants = model_zoo.get_config("common/data/constants.py").constants


def dilated_resnet(depth, output_stride=8, out_features=("res4", "res5")):
    """ResNet-50 or 101 whose last stages are dilated in the place of a stride.

    Such a stage's first block has the dilation of the stage before, as in the code of the papers.

    Args:
        depth: 50 or 101.
        output_stride: 8 or 16.
        out_features: stages that the heads take.
    """
    stages = []
    stride, dilation = 4, 1
    for i, num_blocks in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
        first_dilation = dilation
        strided = i > 0 and stride < output_stride
        if strided:
            stride *= 2
        elif i > 0:
            dilation *= 2
        stages.append(
            L(ResNet.make_stage)(
                block_class=BottleneckBlock,
                num_blocks=num_blocks,
                stride_per_block=[2 if strided else 1] + [1] * (num_blocks - 1),
                dilation_per_block=[first_dilation] + [dilation] * (num_blocks - 1),
                in_channels=64 if i == 0 else 128 * 2**i,
                out_channels=256 * 2**i,
                bottleneck_channels=64 * 2**i,
                stride_in_1x1=False,
                norm="",
            )
        )
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm=""),
        stages=stages,
        out_features=list(out_features),
    )


def segmentor(backbone, head, auxiliary_head=None):
    """A network with the detectors' input: RGB, ImageNet's mean and deviation."""
    return L(Segmentor)(
        backbone=backbone,
        sem_seg_head=head,
        auxiliary_head=auxiliary_head,
        pixel_mean=constants.imagenet_rgb256_mean,
        pixel_std=constants.imagenet_rgb256_std,
    )


def deeplab_v3(depth, num_classes, output_stride=8, auxiliary=True):
    """DeepLabV3.

    Args:
        depth: of the ResNet.
        num_classes: of the prediction.
        output_stride: 8 or 16; the branches' dilations are 12, 24, 36 or half of that.
        auxiliary: whether with an auxiliary head on res4.
    """
    rate = 96 // output_stride
    return segmentor(
        dilated_resnet(depth, output_stride, ("res4", "res5") if auxiliary else ("res5",)),
        L(DeepLabV3Head)(
            in_channels=2048,
            num_classes=num_classes,
            dilations=(rate, 2 * rate, 3 * rate),
            norm="",
        ),
        L(FCNHead)(in_channels=1024, num_classes=num_classes, norm="") if auxiliary else None,
    )


def deeplab_v3_plus(depth, num_classes):
    """DeepLabV3+ with an output stride of 16."""
    return segmentor(
        dilated_resnet(depth, 16, ("res2", "res5")),
        L(DeepLabV3PlusHead)(
            input_shape=dict(
                res2=L(ShapeSpec)(channels=256, stride=4),
                res5=L(ShapeSpec)(channels=2048, stride=16),
            ),
            project_channels=[48],
            aspp_dilations=[6, 12, 18],
            aspp_dropout=0.1,
            decoder_channels=[256, 256],
            common_stride=4,
            norm="",
            train_size=None,
            num_classes=num_classes,
        ),
    )


def pspnet(depth, num_classes):
    """PSPNet with an output stride of 8 and its auxiliary head."""
    return segmentor(
        dilated_resnet(depth, 8),
        L(PSPHead)(in_channels=2048, num_classes=num_classes, norm=""),
        L(FCNHead)(in_channels=1024, num_classes=num_classes, norm=""),
    )
