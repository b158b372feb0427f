"""detectron2's Mask R-CNN R-50-FPN with what the papers of WS, BCN and SN change.

RGB input with ImageNet's mean and standard deviation, the stride of a bottleneck in its 3x3
convolution, a box head of four convolutions and one linear layer. `use_norm` puts the norms in.
"""

from detectron2 import model_zoo

constants = model_zoo.get_config("common/data/constants.py").constants
model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model

model.backbone.bottom_up.stages.stride_in_1x1 = False
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
