"""Names of a detector's norm layers as people say them: stem, res2.0.conv1, FPN, box head."""

from __future__ import annotations

import re

__all__ = ["layer_label", "layer_part"]

# Starts of module names, the more special ones first, and what they are called.
_PREFIXES = (
    (r"backbone\.bottom_up\.stem\.conv1$", "stem"),
    (r"backbone\.bottom_up\.", ""),
    (r"backbone\.fpn_lateral", "FPN lateral"),
    (r"backbone\.fpn_output", "FPN output"),
    (r"backbone\.stem\.conv1$", "stem"),
    (r"backbone\.", ""),
    (r"roi_heads\.(box|mask|keypoint)_head\.", r"\1 head "),
    (r"roi_heads\.res5\.", "res5."),
    (r"roi_heads\.", "RoI heads "),
    (r"proposal_generator\.", "RPN "),
    (r"sem_seg_head\.", "semantic head "),
    (r"head\.cls_subnet\.", "class subnet "),
    (r"head\.bbox_subnet\.", "box subnet "),
    (r"head\.", "head "),
)


def layer_label(name: str) -> str:
    """A norm layer's name for people, such as ``"res2.0.conv1"``, ``"FPN output3"``.

    Args:
        name: of the module, such as ``"backbone.bottom_up.res2.0.conv1.norm"``.
    """
    short = name.removeprefix("module.").removesuffix(".norm")
    for pattern, label in _PREFIXES:
        found, count = re.subn(rf"^{pattern}", label, short)
        if count:
            return found.replace("mask_fcn", "conv")
    return short


def layer_part(name: str) -> str:
    """The part of the detector that a norm layer belongs to: ``"res2"``, ``"FPN"``, ``"box head"``.

    Args:
        name: as of `layer_label`.
    """
    label = layer_label(name)
    for part in ("FPN", "RPN", "RoI heads", "class subnet", "box subnet"):
        if label.startswith(part):
            return part
    head = re.match(r"(\w+ head|head)\b", label)
    return head[1] if head else label.partition(".")[0]
