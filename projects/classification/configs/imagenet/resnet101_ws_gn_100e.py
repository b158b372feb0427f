"""ResNet-101 with GN and WS, as the WS release trains it: 77.90 top-1 in its README."""

from wsbcn_d2.modeling import use_norm

from ..common.ws_imagenet import dataloader, optimizer, train, use_schedule
from ..common.ws_imagenet import lr_multiplier_100e as lr_multiplier
from ..common.ws_imagenet import resnet101 as model

use_norm(model, "GN", standardize=True)
use_schedule(epochs=100, total_batch_size=128)
train.output_dir = "./output/classification/imagenet/resnet101_ws_gn_100e"
