"""detectron2's own model configs, with what the papers of WS, BCN and SN change in all of them."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from wsbcn_d2.modeling import CeilPoolStem


def from_zoo(name):
    """Model ``name`` of detectron2's ``configs/common/models``, for these papers' weights.

    RGB input with ImageNet's mean and standard deviation, the stride of a bottleneck in its 3x3
    convolution, box heads of four convolutions and one linear layer. `use_norm` chooses the norms.
    """
    constants = model_zoo.get_config("common/data/constants.py").constants
    model = model_zoo.get_config(f"common/models/{name}.py").model
    model.pixel_mean = constants.imagenet_rgb256_mean
    model.pixel_std = constants.imagenet_rgb256_std
    if "input_format" in model:  # FCOS has none
        model.input_format = "RGB"
    model.backbone.get("bottom_up", model.backbone).stages.stride_in_1x1 = False
    heads = model.get("roi_heads", {})
    if "res5" in heads:
        heads.res5.stride_in_1x1 = False
    for head in [heads.box_head] if "box_head" in heads else heads.get("box_heads", []):
        head.conv_dims = [256, 256, 256, 256]
        head.fc_dims = [1024]
    return model


def as_msra(model, dataloader):
    """For MSRA's ResNets, which Detectron and its BN† rows start from; in place.

    BGR input of unit deviation, and the stride of a bottleneck in its first convolution.
    """
    constants = model_zoo.get_config("common/data/constants.py").constants
    model.pixel_mean = constants.imagenet_bgr256_mean
    model.pixel_std = constants.imagenet_bgr256_std
    model.input_format = dataloader.train.mapper.image_format = "BGR"
    model.backbone.get("bottom_up", model.backbone).stages.stride_in_1x1 = True
    if "res5" in model.roi_heads:
        model.roi_heads.res5.stride_in_1x1 = True


def ceil_pool_stem(model):
    """The stem of Caffe's ResNets, faster-rcnn.pytorch's and Sparse_SwitchNorm's; in place."""
    model.backbone.get("bottom_up", model.backbone).stem._target_ = CeilPoolStem


def two_layer_box_head(model):
    """Detectron's box head of two linear layers, which has no norm; in place."""
    model.roi_heads.box_head.conv_dims = []
    model.roi_heads.box_head.fc_dims = [1024, 1024]


def resnext_stages(depth, norm, num_groups=32, width_per_group=4):
    """The stages of a ResNeXt, by default 32x4d: 3x3 convolutions in groups, twice as wide.

    In the place of ``ResNet.make_default_stages``, which has no groups of that width.
    """
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    return [
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=num_blocks,
            stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
            in_channels=64 if i == 0 else 128 * 2**i,
            out_channels=256 * 2**i,
            bottleneck_channels=num_groups * width_per_group * 2**i,
            num_groups=num_groups,
            stride_in_1x1=False,
            norm=norm,
        )
        for i, num_blocks in enumerate(blocks)
    ]
