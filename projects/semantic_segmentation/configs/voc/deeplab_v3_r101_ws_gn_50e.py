"""DeepLabV3 with GN and WS on PASCAL VOC. README of the BCN release: 77.20 mIoU."""

from wsbcn_d2.modeling import use_norm

from ..common.voc import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "GN", standardize=True)
train.pretrained = "wsbcn://resnet101_gn_ws"
train.output_dir = "./output/semantic_segmentation/voc/deeplab_v3_r101_ws_gn_50e"
