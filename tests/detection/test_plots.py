"""Predictions beside the truth: a valid PNG, whatever there is to draw."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_api
from torch import nn

from wsbcn_d2.detection.plots import plot_predictions


class Echo(nn.Module):
    """Finds what is in the record, with a mask, and something of score 0.1."""

    def forward(self, batch):
        record = batch[0]
        instances = Instances((record["height"], record["width"]))
        boxes = [a["bbox"] for a in record["annotations"]] + [[0, 0, 5, 5]]
        instances.pred_boxes = Boxes(torch.tensor(boxes).float())
        instances.pred_classes = torch.tensor([0] * len(boxes))
        instances.scores = torch.tensor([0.9] * (len(boxes) - 1) + [0.1])
        instances.pred_masks = torch.ones(len(boxes), record["height"], record["width"]).bool()
        return [{"instances": instances}]


@pytest.fixture
def dataset(tmp_path):
    """Polygons, run lengths, boxes only, nothing; portrait and landscape."""
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[5:20, 10:30] = 1
    shapes = [
        {"segmentation": [[10, 5, 30, 5, 30, 20]]},
        {"segmentation": mask_api.encode(mask)},
        {},
        None,
    ]
    records = []
    for i, shape in enumerate(shapes * 2):
        name = str(tmp_path / f"{i}.png")
        Image.new("RGB", (60, 40), (i * 20, 90, 90)).save(name)
        annotation = {"bbox": [10, 5, 30, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        annotations = [] if shape is None else [{**annotation, **shape}]
        records.append(
            {
                "file_name": name, "image_id": i, "height": 40, "width": 60,
                "annotations": annotations,
            }
        )  # fmt: skip
    DatasetCatalog.register("plots_val", lambda: records)
    MetadataCatalog.get("plots_val").thing_classes = ["thing"]
    yield "plots_val"
    DatasetCatalog.remove("plots_val")
    MetadataCatalog.remove("plots_val")


@pytest.mark.parametrize("num_images", [1, 3, 8])
def test_predictions_are_drawn_and_the_model_keeps_its_mode(dataset, tmp_path, num_images):
    model = Echo().train()
    plot_predictions(model, dataset, dict, tmp_path / "p.png", num_images=num_images)
    assert model.training
    with Image.open(tmp_path / "p.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_no_images_no_picture(dataset, tmp_path):
    plot_predictions(Echo(), dataset, dict, tmp_path / "p.png", num_images=0)
    assert not (tmp_path / "p.png").exists()
