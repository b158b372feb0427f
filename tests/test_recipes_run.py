"""Every recipe takes a training step: forward, backward and optimizer, on small real images."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from tests.annotated_images import HAS_COCO, annotated_images
from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint.norm_kinds import describe_norms

# One of each detector and of most norms; `make test-recipes` runs all.
QUICKLY = (
    "finetune/faster_rcnn_r50_c4_sn_120k",
    "finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x",
    "finetune/panoptic_fpn_r50_ws_gn_1x",
    "finetune/keypoint_rcnn_r50_fpn_syncsn_1x",
    "finetune/fcos_r50_fpn_syncsn_1x",
    "finetune/mask_rcnn_r50_fpn_ws_bcn_2x",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return annotated_images(tmp_path_factory.mktemp("maps"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return annotated_images(tmp_path_factory.mktemp("digits"), coco=False)


def reduced(name):
    """A recipe whose images have about 96 pixels a side, and which samples few boxes of them."""
    cfg = recipes.get_config(name)
    for augmentation in cfg.dataloader.train.mapper.augmentations:
        if "short_edge_length" in augmentation:
            augmentation.update(short_edge_length=[96], max_size=128, sample_style="choice")
        if "target_height" in augmentation:
            size = {"target_height": 128, "target_width": 128}
            augmentation.update(min_scale=0.9, max_scale=1.1, **size)
        if "crop_size" in augmentation:
            augmentation.crop_size = (128, 128)
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.batch_size_per_image = 16
    if not HAS_COCO:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"
    return cfg


def batch_of(cfg, images, number=2):
    """The first images through the recipe's own mapper, as its data loader would give them."""
    mapper = instantiate(cfg.dataloader.train.mapper)
    batch = []
    for image in copy.deepcopy(images[:number]):
        if not hasattr(mapper, "use_keypoint") or not mapper.use_keypoint:
            for annotation in image["annotations"]:
                del annotation["keypoints"]
        else:  # people only
            people = [a for a in image["annotations"] if a["category_id"] == 0]
            image["annotations"] = [{**a, "category_id": 0} for a in people or image["annotations"]]
        if "sem_seg_head" not in cfg.model:
            del image["sem_seg_file_name"]
        batch.append(mapper(image))
    return batch


def takes_a_step(name, images):
    if name.endswith("_lsj"):
        pytest.importorskip("shapely", reason="fvcore crops polygons with shapely")
    torch.manual_seed(0)
    cfg = reduced(name)
    model = instantiate(cfg.model).train()
    optimizer_config = copy.deepcopy(cfg.optimizer)
    optimizer_config.params.model = model
    optimizer = instantiate(optimizer_config)

    batch = batch_of(cfg, images)
    with EventStorage():
        losses = model(batch)
    assert expected_losses(name) == set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()

    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    without = [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert bool(frozen) == name.startswith("finetune/")

    # The first step of SGD: the gradient and the weight decay, of which a norm has none.
    norms = [f"{norm}." for norm in describe_norms(model)["norms"]]
    decay = cfg.optimizer.weight_decay
    expected = {
        n: p.detach()
        - cfg.optimizer.lr * (p.grad + (0 if n.startswith(tuple(norms)) else decay) * p.detach())
        for n, p in trainable.items()
    }
    optimizer.step()
    for n, p in trainable.items():
        torch.testing.assert_close(p, expected[n], msg=lambda text, n=n: f"{n}: {text}")
    for n, p in model.named_parameters():
        assert n not in frozen or torch.equal(p, frozen[n])


def expected_losses(name):
    if "/retinanet" in name:
        return {"loss_cls", "loss_box_reg"}
    if "/fcos" in name:
        return {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    if "/cascade" in name:
        stages = [f"{loss}_stage{k}" for loss in ("loss_cls", "loss_box_reg") for k in range(3)]
        losses = {"loss_rpn_cls", "loss_rpn_loc", *stages}
    if "mask" in name or "panoptic" in name:
        losses.add("loss_mask")
    if "panoptic" in name:
        losses.add("loss_sem_seg")
    if "keypoint" in name:
        losses.add("loss_keypoint")
    return losses


@pytest.mark.parametrize("name", QUICKLY)
def test_recipe_takes_a_step(name, images):
    takes_a_step(name, images)


@pytest.mark.recipes
@pytest.mark.parametrize("name", [name for name in recipes.list_configs() if name not in QUICKLY])
def test_every_other_recipe_takes_a_step(name, images, digits):
    takes_a_step(name, digits if name.startswith("quick/") else images)


@pytest.mark.skipif(not HAS_COCO, reason="no COCO images")
def test_annotated_images_hold_what_they_say(images):
    import numpy as np
    from PIL import Image

    for image in images:
        semantic = np.asarray(Image.open(image["sem_seg_file_name"]))
        colours = np.asarray(Image.open(image["pan_seg_file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        assert semantic.shape == ids.shape == (image["height"], image["width"])
        for segment in image["segments_info"]:
            labels = set(semantic[ids == segment["id"]].tolist())
            stuff = segment["category_id"] - 79
            assert labels == ({0} if segment["isthing"] else {stuff})
        assert re.search(r"train2017/\d+\.jpg$", image["file_name"])
