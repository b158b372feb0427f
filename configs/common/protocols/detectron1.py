"""Detectron's protocol: that of Tables V and VI of the SN paper.

As detectron2's ``Detectron1-Comparisons``, whose Faster R-CNN has 36.9 box AP where Detectron's has
36.7 and detectron2's own defaults 37.9; with Detectron's two rules for biases, which those leave
out. Not the same: Detectron keeps the best 2,000 proposals of a GPU's two images together,
detectron2 1,000 of each; Detectron does not train anchors that cross the image's border, and counts
a box's last pixel in.
"""

from ..coco_schedule import iterations, multiplier


def follow(model, optimizer, train, schedule, total_batch_size=16):
    """Make a detector's config follow it, in place; returns the learning rate multiplier.

    Args:
        model, optimizer, train: of a Faster or Mask R-CNN with FPN.
        schedule: as in `iterations`.
        total_batch_size: images a step.
    """
    train.protocol = "Detectron"
    model.proposal_generator.smooth_l1_beta = 1 / 9
    heads = model.roi_heads
    heads.box_predictor.smooth_l1_beta = 1.0
    for pooler in {"box_pooler", "mask_pooler"} & set(heads):
        heads[pooler].update(pooler_type="ROIAlign", sampling_ratio=2)
    optimizer.params.update(base_lr="${..lr}", bias_lr_factor=2.0, weight_decay_bias=0.0)
    train.max_iter, drops = iterations(schedule, total_batch_size)
    return multiplier(train.max_iter, drops, warmup_steps=500, warmup_factor=1 / 3)
