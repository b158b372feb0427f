"""ResNet-101 with BCN and WS, as the BCN release trains it: batch statistics, of 32 images."""

from wsbcn_d2.modeling import use_norm

from ..common.ws_imagenet import dataloader, optimizer, train, use_schedule
from ..common.ws_imagenet import lr_multiplier_100e as lr_multiplier
from ..common.ws_imagenet import resnet101 as model

use_norm(model, "BatchBCN", standardize=True)
model.ws_eps_mode = "inside"
use_schedule(epochs=100, total_batch_size=128)
train.images_per_gpu = 32
train.output_dir = "./output/classification/imagenet/resnet101_ws_bcn_100e"
