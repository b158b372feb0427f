"""DeepLabV3+ with SyncSN and weight standardization: detectron2's own project on this engine."""

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.evaluation import SemSegEvaluator
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler

from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.engine import Task, run_command_line


class DeepLab(Task):
    """Semantic segmentation with DeepLab's keys, schedule and crops."""

    metrics = ("mIoU", "fwIoU", "mACC", "pACC")

    def add_config(self, cfg):
        add_deeplab_config(cfg)

    def build_lr_scheduler(self, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    def train_loader_arguments(self, cfg):
        sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN)
        augmentations = [T.ResizeShortestEdge(*sizes, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)]
        if cfg.INPUT.CROP.ENABLED:
            crop = cfg.INPUT.CROP
            area = (crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
            augmentations.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, *area))
        augmentations.append(T.RandomFlip())
        mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        return build_detection_train_loader.from_config(cfg, mapper=mapper)

    def build_evaluator(self, cfg, dataset_name, output_dir):
        return SemSegEvaluator(
            dataset_name, output_dir=output_dir, sem_seg_loading_fn=read_label_map
        )


TASK = DeepLab()

if __name__ == "__main__":
    run_command_line(TASK)
