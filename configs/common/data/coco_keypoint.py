"""detectron2's loaders for COCO's person keypoints, in RGB."""

from detectron2 import model_zoo

dataloader = model_zoo.get_config("common/data/coco_keypoint.py").dataloader
dataloader.train.mapper.image_format = "RGB"
