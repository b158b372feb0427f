"""A classifier's checkpoint starts a detector as it is, and says how it was trained."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from wsbcn_d2 import get_config
from wsbcn_d2.checkpoint import WSBCNCheckpointer
from wsbcn_d2.modeling import use_norm

PRETRAIN = "projects/classification/configs/pretrain/mask_rcnn_r18_ws_gn_cifar10.py"


def classifier(norm, standardize, folder):
    model = LazyConfig.load(PRETRAIN).model
    use_norm(model, norm)
    if not standardize:
        model._target_ = model.pop("module_class")
    classifier = instantiate(model)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter)
    WSBCNCheckpointer(classifier, str(folder), images_per_process=32).save("pretrained")
    return classifier


@pytest.mark.parametrize(("norm", "standardize"), [("GN", True), ("BN", False)])
def test_checkpoint_starts_a_detector_and_tells_what_differs(tmp_path, caplog, norm, standardize):
    torch.manual_seed(0)
    pretrained = classifier(norm, standardize, tmp_path)
    detector = instantiate(get_config("quick/mask_rcnn_r18_fpn_ws_gn").model)
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        checkpointer = WSBCNCheckpointer(detector)
        checkpointer.load(str(tmp_path / "pretrained.pth"), checkpointables=[])
    backbone = pretrained.backbone.state_dict()
    for name, tensor in detector.state_dict().items():
        inside = name.removeprefix("backbone.bottom_up.")
        expected = backbone[inside] if inside != name else before[name]
        assert torch.equal(tensor, expected), name
    warning = "".join(r.getMessage() for r in caplog.records if "DIFFERS" in r.getMessage())
    if norm == "GN":
        assert not warning
        images = torch.rand(1, 3, 64, 64)
        ours, theirs = detector.backbone.bottom_up(images), pretrained.backbone(images)
        assert torch.equal(ours["res4"], theirs["res4"])
    else:
        assert "checkpoint has BN, model has GN: 15 layer(s)" in warning
        assert "weight standardization: 0 of 15 convolutions in the checkpoint, 15" in warning


def test_checkpoint_records_the_minibatch_of_its_statistics(tmp_path):
    classifier("BN", False, tmp_path)
    assert torch.load(tmp_path / "pretrained.pth")["pretraining"] == {"minibatch": 32}
