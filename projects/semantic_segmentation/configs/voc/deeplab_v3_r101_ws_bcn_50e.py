"""DeepLabV3 with synchronized BCN and WS on PASCAL VOC. README of the BCN release: 78.10 mIoU."""

from wsbcn_d2.modeling import use_norm

from ..common.voc import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncBCN", standardize=True)
train.pretrained = "wsbcn://resnet101_bcn_ws"
train.output_dir = "./output/semantic_segmentation/voc/deeplab_v3_r101_ws_bcn_50e"
