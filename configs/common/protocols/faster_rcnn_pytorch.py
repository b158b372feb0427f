"""faster-rcnn.pytorch's protocol: that of Table IV of the SN paper, 3 images on each of 4 GPUs.

Its configuration of ResNet-50: 80k iterations at a learning rate of 0.01, 40k at 0.001, without a
warm-up. Not the same: its RPN has a softmax of two scores an anchor, ours a sigmoid of one.
"""

from detectron2.config import LazyCall as L

from wsbcn_d2.modeling import CropPooler

from ..coco_schedule import multiplier


def follow(model, optimizer, train):
    """Make the config of a C4 Faster R-CNN follow it, in place; returns the multiplier.

    Args:
        model, optimizer, train: of the detector.
    """
    train.protocol = "faster-rcnn.pytorch"
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.anchor_generator.sizes = [[64, 128, 256, 512]]
    rpn.head.update(num_anchors=12, conv_dims=[512])
    rpn.update(smooth_l1_beta=1 / 9, post_nms_topk=(2000, 300), anchor_boundary_thresh=0)
    heads.batch_size_per_image = 256
    heads.pooler = L(CropPooler)(output_size=7, scale=1 / 16)
    heads.box_predictor.update(smooth_l1_beta=1.0, test_nms_thresh=0.3, test_score_thresh=0.0)
    optimizer.params.weight_decay_bias = 0.0
    optimizer.lr = 0.01
    train.max_iter = 120_000
    train.scale_lr.reference_batch_size = 12
    return multiplier(train.max_iter, drops=[80_000], warmup_steps=0)
