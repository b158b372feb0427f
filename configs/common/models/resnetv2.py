"""BiT's pre-activation ResNets, in the place of a detector's own."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet

from wsbcn_d2.modeling import PreActBottleneckBlock, PreActStem


def use_resnetv2(model, depth, width=1):
    """Give a detector BiT's backbone of a depth and width ("R50x1": 50, 1), and its input.

    The input is RGB in [-1, 1].
    """
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    bottom_up = model.backbone.bottom_up
    bottom_up.stem = L(PreActStem)(in_channels=3, out_channels=64 * width)
    bottom_up.stages = [
        L(ResNet.make_stage)(
            block_class=PreActBottleneckBlock,
            num_blocks=num_blocks,
            stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
            in_channels=64 * width if i == 0 else 128 * width * 2**i,
            out_channels=256 * width * 2**i,
            bottleneck_channels=64 * width * 2**i,
            norm="GN",
        )
        for i, num_blocks in enumerate(blocks)
    ]
    model.pixel_mean = model.pixel_std = [127.5, 127.5, 127.5]
