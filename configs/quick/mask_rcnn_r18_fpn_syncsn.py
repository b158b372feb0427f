"""The quick job with Switchable Normalization, batch statistics over all processes.

The README's figures are of its moving average; docs/norms.md compares the two.
"""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SyncSN")
train.batch_average_iters = 50
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_syncsn"
