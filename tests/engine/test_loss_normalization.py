"""Where the mean of micro-batches' gradients is the large batch's, and by which weights it is not.

Each loss of a batch is a weighted mean of its images' losses. Accumulation weighs micro-batches
equally. What the large batch does instead is checked here, loss by loss, against the formulas in
docs/distributed.md.
"""

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import sampling
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from tests.engine.tiny_run import LAZY_CONFIG
from tests.engine.tiny_training import float64

# Of a gradient's norm. All is in float64 but the focal losses, whose terms fvcore computes in
# float32, to some 1e-7 each. Wrong weights change at least a hundred times what is tolerated.
TOLERANCE = 1e-6

# Foreground of very different sizes: boxes in an image, width and height.
OBJECTS = [(1, 24), (2, 40), (5, 20), (3, 56)]


def images():
    """Four images of one size: padding would add pixels and anchors to the large batch."""
    random = np.random.default_rng(0)
    batch = []
    for count, size in OBJECTS:
        corner = torch.from_numpy(random.integers(0, 96 - size, (count, 2))).float()
        instances = Instances((96, 96))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        instances.gt_classes = torch.from_numpy(random.integers(0, 3, count))
        masks = torch.zeros(count, 96, 96, dtype=torch.bool)
        for mask, (x, y) in zip(masks, corner.int().tolist(), strict=True):
            mask[y : y + size, x : x + size // 2] = True
        instances.gt_masks = BitMasks(masks)
        pixels = random.integers(0, 255, (3, 96, 96)).astype(np.float32)
        batch.append({"image": torch.from_numpy(pixels), "instances": instances})
    return batch


@pytest.fixture(autouse=True)
def first_come(monkeypatch):
    """Sampling without chance: an image's samples do not depend on the images before it."""
    monkeypatch.setattr(sampling.torch, "randperm", lambda n, device=None: torch.arange(n))
    with float64():
        yield


def gradients(model, batch):
    """Loss → gradient of all parameters together, and what the model logged."""
    found = {}
    with EventStorage() as storage:
        losses = model(batch)
        for name, loss in losses.items():
            parameters = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            found[name] = torch.cat([g.reshape(-1) for g in grads if g is not None])
    return found, {name: value for name, (value, _) in storage.latest().items()}


def compare(large, single, weights):
    """The large batch's gradient is the images' with these weights, and not with other ones."""
    expected = sum(w * g for w, g in zip(weights, single, strict=True))
    scale = large.norm()
    assert scale > 0 and (large - expected).norm() < TOLERANCE * scale
    others = sum(w * g for w, g in zip(reversed(weights), single, strict=True))
    if weights != [0.25] * 4:
        assert (large - others).norm() > 100 * TOLERANCE * scale


@pytest.fixture
def mask_rcnn(tmp_path):
    from wsbcn_d2.engine import load_config
    from wsbcn_d2.modeling import use_norm

    (tmp_path / "tiny.py").write_text(LAZY_CONFIG)
    model = use_norm(load_config(str(tmp_path / "tiny.py")).model, "LN")
    model.roi_heads.num_classes = 3
    # As many proposals from every image: the objects are added to them.
    model.proposal_generator.nms_thresh = 1.0
    model.roi_heads.batch_size_per_image = 12
    return model


def test_mask_rcnn(mask_rcnn):
    torch.manual_seed(0)
    model = instantiate(mask_rcnn).train()
    large, _ = gradients(model, images())
    each = [gradients(model, [image]) for image in images()]
    # Normalized by images, or by a number of samples that every image has in full: equal.
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"):
        compare(large[name], [g[name] for g, _ in each], [0.25] * 4)
    # By the foreground of all images: those with more of it weigh more.
    foreground = [logged["roi_head/num_fg_samples"] for _, logged in each]
    assert len(set(foreground)) > 1
    weights = [count / sum(foreground) for count in foreground]
    compare(large["loss_mask"], [g["loss_mask"] for g, _ in each], weights)


def test_fast_rcnn_with_too_few_proposals(mask_rcnn):
    # Never enough: an image has its 30 proposals and its objects, and those that overlap are gone.
    mask_rcnn.roi_heads.batch_size_per_image = 64
    mask_rcnn.proposal_generator.nms_thresh = 0.5
    torch.manual_seed(0)
    model = instantiate(mask_rcnn).train()
    large, _ = gradients(model, images())
    each = [gradients(model, [image]) for image in images()]
    logged = [logged for _, logged in each]
    samples = [x["roi_head/num_fg_samples"] + x["roi_head/num_bg_samples"] for x in logged]
    assert len(set(samples)) > 1 and max(samples) < 64
    weights = [count / sum(samples) for count in samples]
    for name in ("loss_cls", "loss_box_reg"):
        single = [g[name] for g, _ in each]
        expected = sum(w * g for w, g in zip(weights, single, strict=True))
        assert (large[name] - expected).norm() < TOLERANCE * large[name].norm()
        assert (large[name] - sum(single) / 4).norm() > 100 * TOLERANCE * large[name].norm()


def dense(name):
    model = model_zoo.get_config(f"common/models/{name}.py").model
    bottom_up = model.backbone.bottom_up
    bottom_up.stem.update(out_channels=8, norm="")
    bottom_up.stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock, num_blocks=1, stride_per_block=[stride], in_channels=i,
            out_channels=o, norm="",
        )
        for stride, i, o in ((1, 8, 8), (2, 8, 16), (2, 16, 24), (2, 24, 32))
    ]  # fmt: skip
    model.backbone.out_channels = 32
    model.backbone.top_block.in_channels = 32
    model.head.conv_dims = [32]
    for shape in model.head.input_shape:
        OmegaConf.set_struct(shape, False)
        shape.channels = 32
    model.num_classes = 3
    if name == "fcos":
        model.head.norm = "LN"  # GN refuses the single pixel of p7
    return instantiate(model)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_dense_detectors(name):
    torch.manual_seed(0)
    model = dense(name).train()
    # Not detectron2's 100 or 300, beside which so few anchors hardly count.
    model.loss_normalizer = 10.0
    large, logged = gradients(model, images())
    total = 4 * logged["num_pos_anchors"]
    normalizer = model.loss_normalizer
    assert normalizer == pytest.approx(0.9 * 10 + 0.1 * total)
    each, normalizers, counts = [], [], []
    for image in images():
        model.loss_normalizer = 10.0
        found, logged = gradients(model, [image])
        each.append(found)
        normalizers.append(model.loss_normalizer)
        counts.append(logged["num_pos_anchors"])
    assert sum(counts) == total and len(set(counts)) > 1
    for loss in large:
        # A sum over anchors, divided by the running normalizer of what one forward sees.
        weights = [n / normalizer for n in normalizers]
        compare(large[loss], [g[loss] for g in each], weights)
    # Normalizers that have settled, at a quarter of the large batch's, would make it equal.
    model.loss_normalizer = 4000.0
    large, _ = gradients(model, images())
    settled = model.loss_normalizer / 4
    for loss in large:
        mean = sum(n / settled * g[loss] for n, g in zip(normalizers, each, strict=True)) / 4
        assert (large[loss] - mean).norm() < TOLERANCE * large[loss].norm()
