"""detectron2's loaders for panoptic segmentation (things and stuff apart), in RGB."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator

from wsbcn_d2.data.label_maps import read_label_map

dataloader = model_zoo.get_config("common/data/coco_panoptic_separated.py").dataloader
dataloader.train.mapper.image_format = "RGB"
# The one loader wants one evaluator.
_evaluators = dataloader.evaluator
for _evaluator in _evaluators:
    _evaluator.dataset_name = "${dataloader.test.dataset.names}"
    _evaluator.output_dir = "${train.output_dir}/inference"
    if _evaluator._target_ is SemSegEvaluator:
        _evaluator.sem_seg_loading_fn = read_label_map
dataloader.evaluator = L(DatasetEvaluators)(evaluators=_evaluators)
