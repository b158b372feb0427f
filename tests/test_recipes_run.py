"""Every recipe, narrowed, takes a training step on small real images.

Recipes that are the same once narrowed (ResNet-50 and 101, 1x and 2x) take it together.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from tests.annotated_images import annotated_images
from tests.recipe_models import config, narrow_config
from wsbcn_d2 import recipes
from wsbcn_d2.norms.batch_channel_norm import BatchChannelNorm


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return annotated_images(tmp_path_factory.mktemp("maps"), coco=False)[:2]


def batch_of(cfg, images):
    """Images through the recipe's own mapper, as its data loader would give them."""
    mapper = instantiate(cfg.dataloader.train.mapper)
    batch = []
    for image in copy.deepcopy(images):
        for annotation in image["annotations"]:
            if getattr(mapper, "use_keypoint", False):
                annotation["category_id"] = 0  # people only
            else:
                del annotation["keypoints"]
        if "sem_seg_head" not in cfg.model:
            del image["sem_seg_file_name"]
        batch.append(mapper(image))
    return batch


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


def what_a_step_depends_on(name):
    cfg = narrow_config(name)
    del cfg.optimizer["lr"]
    parts = (cfg.model, cfg.optimizer, cfg.dataloader.train.mapper)
    return repr([OmegaConf.to_container(OmegaConf.create(part), resolve=False) for part in parts])


@functools.cache
def groups():
    """Names of recipes by the first of those with the same step."""
    found = {}
    for name in recipes.list_configs():
        found.setdefault(what_a_step_depends_on(name), []).append(name)
    return {names[0]: names for names in found.values()}


@pytest.mark.parametrize("name", recipes.list_configs())
def test_first_rate_is_the_schedules(name):
    cfg = config(name)
    factor = cfg.optimizer.params.get("bias_lr_factor", 1.0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    group = {"params": [parameter], "lr": cfg.optimizer.lr * factor}
    optimizer = torch.optim.SGD([group], lr=cfg.optimizer.lr)
    multiplier = instantiate(cfg.lr_multiplier)
    LRMultiplier(optimizer, multiplier, cfg.train.max_iter)  # sets the rate of the first step
    assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr * factor * multiplier(0)


@pytest.mark.parametrize("name", groups())
def test_recipe_takes_a_step(name, images):
    torch.manual_seed(0)
    cfg = narrow_config(name)
    cfg.dataloader.train.mapper.instance_mask_format = "bitmask"  # the digits' are run lengths
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    multiplier = instantiate(cfg.lr_multiplier)
    LRMultiplier(optimizer, multiplier, cfg.train.max_iter)  # sets the rate of the first step

    with EventStorage():
        losses = model(batch_of(cfg, images))
    assert expected_losses(name) == set(losses)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    wrong = [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []
    # A parameter that the loss does not depend on would have zeros. BCN's channel norm takes the
    # level of a group of one channel off.
    cancelled = {
        f"{n}.bn.bias"
        for n, m in model.named_modules()
        if isinstance(m, BatchChannelNorm) and m.bn.bias.numel() == m.bias.numel()
    }
    zero = {n for n, p in trainable.items() if not p.grad.any()}
    assert zero <= cancelled

    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer.step()
    rates = {cfg.optimizer.lr, cfg.optimizer.lr * cfg.optimizer.params.get("bias_lr_factor", 1.0)}
    assert {group["lr"] for group in optimizer.param_groups} == {r * multiplier(0) for r in rates}
    assert set(optimizer.state) == set(trainable.values())
    assert all(p.isfinite().all() for p in trainable.values())
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
