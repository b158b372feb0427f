"""ROI heads with weight standardization, in detectron2's registries."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    FastRCNNConvFCHead,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
)

from .config import ws_options
from .weight_standardization import standardize_convs

__all__ = ["WSFastRCNNConvFCHead", "WSMaskRCNNConvUpsampleHead", "WSRes5ROIHeads"]


@ROI_BOX_HEAD_REGISTRY.register()
class WSFastRCNNConvFCHead(FastRCNNConvFCHead):
    """detectron2's ``FastRCNNConvFCHead``; with a ``conv_norm`` its convolutions are standardized.

    Takes its arguments, then ``eps`` and ``eps_mode`` as in `wsbcn_d2.norms.standardize_weight`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        eps: float = 1e-5,
        eps_mode: str = "outside",
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        standardize_convs(self, eps, eps_mode)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), **ws_options(cfg)}


@ROI_MASK_HEAD_REGISTRY.register()
class WSMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """detectron2's ``MaskRCNNConvUpsampleHead``; with a ``conv_norm`` it is standardized.

    The transposed convolution and the predictor, which no norm follows, stay plain. Takes its
    arguments, then ``eps`` and ``eps_mode``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        eps: float = 1e-5,
        eps_mode: str = "outside",
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        standardize_convs(self, eps, eps_mode)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), **ws_options(cfg)}


@ROI_HEADS_REGISTRY.register()
class WSRes5ROIHeads(Res5ROIHeads):
    """detectron2's ``Res5ROIHeads`` (C4 models) with a standardized res5.

    Takes its arguments, then ``eps`` and ``eps_mode``. The mask head is what it is given.
    """

    @configurable
    def __init__(self, *, eps: float = 1e-5, eps_mode: str = "outside", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        standardize_convs(self.res5, eps, eps_mode)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), **ws_options(cfg)}
