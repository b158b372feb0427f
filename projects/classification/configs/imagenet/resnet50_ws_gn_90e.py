"""ResNet-50 with GN and WS, as the WS release trains it: 76.28 top-1 in its README."""

from wsbcn_d2.modeling import use_norm

from ..common.ws_imagenet import dataloader, optimizer, train, use_schedule
from ..common.ws_imagenet import lr_multiplier_90e as lr_multiplier
from ..common.ws_imagenet import resnet50 as model

use_norm(model, "GN", standardize=True)
use_schedule(epochs=90, total_batch_size=256)
train.output_dir = "./output/classification/imagenet/resnet50_ws_gn_90e"
