"""ResNet-50 with BCN and WS, as the BCN release trains it: batch statistics, of 64 images."""

from wsbcn_d2.modeling import use_norm

from ..common.ws_imagenet import dataloader, optimizer, train, use_schedule
from ..common.ws_imagenet import lr_multiplier_90e as lr_multiplier
from ..common.ws_imagenet import resnet50 as model

use_norm(model, "BatchBCN", standardize=True)
model.ws_eps_mode = "inside"
use_schedule(epochs=90, total_batch_size=256)
train.images_per_gpu = 64
train.output_dir = "./output/classification/imagenet/resnet50_ws_bcn_90e"
