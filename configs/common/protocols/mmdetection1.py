"""mmdetection's protocol in its version 1: that of its pull request 521, GN beside GN+WS.

Detectron's losses and pooling; 2,000 proposals an image, in testing too until its version 1.0rc0;
anchors that cross the image's border are not trained; gradients are clipped; everything decays. Not
the same: mmdetection 1 counts a box's last pixel in, as Detectron does.
"""

from ..coco_schedule import iterations, multiplier
from .detectron1 import follow as follow_detectron


def follow(model, optimizer, train, schedule):
    """As Detectron's `follow`."""
    follow_detectron(model, optimizer, train, schedule)
    train.protocol = "mmdetection 1"
    model.proposal_generator.update(
        pre_nms_topk=(2000, 2000), post_nms_topk=(2000, 2000), anchor_boundary_thresh=0
    )
    optimizer.params.update(weight_decay_norm=None, weight_decay_bias=None, bias_lr_factor=1.0)
    train.clip_grad.update(enabled=True, max_norm=35.0)
    train.max_iter, drops = iterations(schedule)
    return multiplier(train.max_iter, drops, warmup_steps=500, warmup_factor=1 / 3)
