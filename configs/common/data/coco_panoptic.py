"""detectron2's loaders for panoptic segmentation (things and stuff apart), in RGB."""

from detectron2 import model_zoo

dataloader = model_zoo.get_config("common/data/coco_panoptic_separated.py").dataloader
dataloader.train.mapper.image_format = "RGB"
