"""Classifiers on detectron2's ResNets. Without norms; `use_norm` puts them in.

The last stage is among the features because ``ResNet`` drops stages behind the last that is named.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from projects.classification.classification import CifarStem, ImageClassifier

constants = model_zoo.get_config("common/data/constants.py").constants


def classifier(backbone):
    """A classifier with the detectors' input: RGB, ImageNet's mean and deviation."""
    return L(ImageClassifier)(
        backbone=backbone,
        pixel_mean=constants.imagenet_rgb256_mean,
        pixel_std=constants.imagenet_rgb256_std,
    )


def imagenet_resnet(depth, stages=None):
    """ResNet-50, 101 or 152 with the stride in the 3x3 convolutions.

    Args:
        depth: of the network.
        stages: others than its own, such as a ResNeXt's.
    """
    return classifier(
        L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm=""),
            stages=stages
            or L(ResNet.make_default_stages)(depth=depth, stride_in_1x1=False, norm=""),
            num_classes=1000,
            out_features=["res5", "linear"],
        )
    )


def cifar_resnet(depth, num_classes=10):
    """The ResNet of 6n + 2 layers for images of 32 pixels: 16, 32 and 64 channels, basic blocks.

    arXiv:1512.03385, Section 4.2; a projection where the number of channels changes.
    """
    num_blocks = (depth - 2) // 6
    return classifier(
        L(ResNet)(
            stem=L(CifarStem)(in_channels=3, out_channels=16, norm=""),
            stages=[
                L(ResNet.make_stage)(
                    block_class=BasicBlock,
                    num_blocks=num_blocks,
                    stride_per_block=[stride] + [1] * (num_blocks - 1),
                    in_channels=in_channels,
                    out_channels=out_channels,
                    norm="",
                )
                for stride, in_channels, out_channels in ((1, 16, 16), (2, 16, 32), (2, 32, 64))
            ],
            num_classes=num_classes,
            out_features=["res4", "linear"],
        )
    )
