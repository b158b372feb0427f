"""The quick job with sparse Switchable Normalization, whose ratios are all one-hot after 70 %.

Both images of a step in one process (`--num-gpus 1`): the batch statistic needs more than one.
The book's figures are of its moving average.
"""

from wsbcn_d2.modeling import use_norm

from ..common.quick import dataloader, lr_multiplier, model, optimizer, train

use_norm(model, "SSN")
train.batch_average_iters = 50
train.ssn_full_at = 0.7
train.output_dir = "./output/quick/mask_rcnn_r18_fpn_ssn"
