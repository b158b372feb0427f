"""The quick recipe, on small images, evaluated on four of them: seconds, not minutes."""

from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts
from torch.utils.data import Subset

from tests.slurm.accidents import AccidentProneRCNN, SlowMapper
from wsbcn_d2 import get_config

_quick = get_config("quick/mask_rcnn_r18_fpn_gn")
model, dataloader, optimizer = _quick.model, _quick.dataloader, _quick.optimizer
lr_multiplier, train = _quick.lr_multiplier, _quick.train

model._target_ = AccidentProneRCNN
model.update(train_accident="", test_accident="")
model.proposal_generator.pre_nms_topk = (100, 100)
model.proposal_generator.post_nms_topk = (30, 30)
model.roi_heads.batch_size_per_image = 16
model.roi_heads.box_predictor.test_score_thresh = 0.0  # hardly trained, but it predicts something

dataloader.train.mapper.augmentations[0].short_edge_length = (48, 64)
dataloader.train.mapper = L(SlowMapper)(
    mapper=dataloader.train.mapper, seconds=0.0, until="", accident=""
)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.dataset = L(Subset)(
    dataset=L(get_detection_dataset_dicts)(names="digits_val", filter_empty=False),
    indices=[0, 1, 2, 3],
)
dataloader.test.num_workers = 0
dataloader.evaluator.dataset_name = "digits_val"

train.update(max_iter=12, eval_period=0, log_period=1, device="cpu", seed=0)
train.checkpointer.period = 1000
train.vis.num_images = 1
