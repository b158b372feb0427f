"""DeepLabV3+ with SyncSN and weight standardization: detectron2's own project and trainer."""

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import SemSegEvaluator
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler

from wsbcn_d2 import add_wsbcn_config, register_norms, standardize_convs
from wsbcn_d2.data.label_maps import read_label_map
from wsbcn_d2.engine import BufferAverager


class Trainer(DefaultTrainer):
    """detectron2's, with DeepLab's schedule and crops, and three things for micro-batches."""

    build_lr_scheduler = staticmethod(build_lr_scheduler)

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        if cfg.MODEL.WSBCN.STANDARDIZE:
            standardize_convs(model, cfg.MODEL.WSBCN.EPS, cfg.MODEL.WSBCN.EPS_MODE)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN)
        augmentations = [T.ResizeShortestEdge(*sizes, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)]
        if cfg.INPUT.CROP.ENABLED:
            crop = cfg.INPUT.CROP
            area = (crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
            augmentations.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, *area))
        augmentations.append(T.RandomFlip())
        mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        folder = f"{cfg.OUTPUT_DIR}/inference"
        return SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=read_label_map)

    def build_hooks(self):
        # Running statistics, one set for all processes, before any checkpoint or evaluation.
        periods = [self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD]
        return [BufferAverager([self.model], periods), *super().build_hooks()]


def load_config(args):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_wsbcn_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    return cfg


def main(args):
    register_norms()  # NORM: "SyncSN" and the others are names in the config from here on
    cfg = load_config(args)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    return trainer.test(cfg, trainer.model) if args.eval_only else trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    machines = (args.num_machines, args.machine_rank, args.dist_url)
    launch(main, args.num_gpus, *machines, args=(args,))
