"""Faster R-CNN R-50-C4 with conv5 as the box head, as in Table IV of the SN paper.

Where the implementation that the paper follows (faster-rcnn.pytorch) differs from detectron2's C4,
the details are the former's: four anchor sizes, 7x7 features of a box into conv5 (detectron2:
14x14), 256 boxes an image in training, 300 proposals in testing. Score threshold and NMS of the
final detections are detectron2's.
"""

from .zoo import from_zoo

model = from_zoo("mask_rcnn_c4")
model.proposal_generator.anchor_generator.sizes = [[64, 128, 256, 512]]
model.proposal_generator.head.num_anchors = 12
model.proposal_generator.post_nms_topk = (2000, 300)
model.roi_heads.batch_size_per_image = 256
model.roi_heads.pooler.output_size = 7
model.roi_heads.mask_head = None
