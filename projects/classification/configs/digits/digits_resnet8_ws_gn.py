"""The default: ResNet-8 with GN and WS on the embedded digits."""

from detectron2.config import LazyCall as L

from projects.classification.classification import NormWithGroups
from wsbcn_d2.modeling import use_norm

from ..common.digits import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, L(NormWithGroups)(name="GN", num_groups=8), standardize=True)
train.output_dir = "./output/classification/digits/digits_resnet8_ws_gn"
