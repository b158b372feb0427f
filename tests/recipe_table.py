"""What each recipe claims to be, written by hand: norms, schedule, protocol, weights.

`test_recipes_tree` holds the recipes against it.
"""

from __future__ import annotations

__all__ = ["NORMS", "PARTS", "PROTOCOLS", "SCHEDULES", "SMALL", "SOURCES", "WEIGHTS"]

# The columns of NORMS: the part of a model that a module belongs to, by the start of its name.
PARTS = {
    "backbone.bottom_up.": "bottom-up",
    "backbone.fpn_": "FPN",
    "backbone.": "bottom-up",  # C4: no FPN around it
    "roi_heads.box_head.": "box head",
    "roi_heads.mask_head.": "mask head",
    "roi_heads.res5.": "other",
    "head.": "other",
    "sem_seg_head.": "other",
}

# "53 GN+WS": 53 convolutions with a GN behind them, all standardized; "48 GN, 53 WS" (BiT): 53
# standardized convolutions, and 48 GNs in front of some, three a block.
# ResNet-50: 1 stem + 3 for each of 16 blocks + 4 shortcuts = 53; ResNet-101: 1 + 3 * 33 + 4 = 104.
# C4: 43 up to res4, 10 in res5. FPN: a lateral and an output convolution a level, 4 levels; 3 in
# RetinaNet and FCOS, whose heads have two subnets of 4. Panoptic FPN's head: 1 + 1 + 2 + 3.
# The half ResNet-18 of the quick and small recipes: 1 stem + 2 for each of 6 blocks + 2 shortcuts:
# 15.
NORMS = """
recipe                                            | bottom-up       | FPN        | box head    | mask head  | other
finetune/faster_rcnn_r50_fpn_ws_gn_1x             | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/faster_rcnn_r101_fpn_ws_gn_1x            | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x       | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/faster_rcnn_x101_32x4d_fpn_ws_gn_1x      | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/faster_rcnn_r50_fpn_gn_1x                | 53 GN           | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_r101_fpn_gn_1x               | 104 GN          | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_x50_32x4d_fpn_gn_1x          | 53 GN           | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_x101_32x4d_fpn_gn_1x         | 104 GN          | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_r50_fpn_ws_bcn_1x            | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    |            |
finetune/faster_rcnn_r101_fpn_ws_bcn_1x           | 104 BCN+WS      | 8 BCN+WS   | 4 BCN+WS    |            |
finetune/faster_rcnn_r50_fpn_sn_1x                | 53 SN           | 8 SN       | 4 SN        |            |
finetune/faster_rcnn_r101_fpn_sn_1x               | 104 SN          | 8 SN       | 4 SN        |            |
finetune/faster_rcnn_r50_fpn_syncsn_1x            | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    |            |
finetune/faster_rcnn_r101_fpn_syncsn_1x           | 104 SyncSN      | 8 SyncSN   | 4 SyncSN    |            |
finetune/faster_rcnn_r50_fpn_sn_in_ln_1x          | 53 SN_IN_LN     | 8 SN_IN_LN | 4 SN_IN_LN  |            |
finetune/faster_rcnn_r101_fpn_sn_in_ln_1x         | 104 SN_IN_LN    | 8 SN_IN_LN | 4 SN_IN_LN  |            |
finetune/faster_rcnn_r50_fpn_frozenbn_none_1x     | 53 FrozenBN     |            |             |            |
finetune/faster_rcnn_r50_fpn_frozenbn_gn_1x       | 53 FrozenBN     | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_r50_fpn_frozenbn_sn_1x       | 53 FrozenBN     | 8 SN       | 4 SN        |            |
finetune/faster_rcnn_r50_fpn_gn_gn_1x             | 53 GN           | 8 GN       | 4 GN        |            |
finetune/faster_rcnn_r50_fpn_gn_sn_1x             | 53 GN           | 8 SN       | 4 SN        |            |
finetune/faster_rcnn_r50_c4_frozenbn_120k         | 43 FrozenBN     |            |             |            | 10 FrozenBN
finetune/faster_rcnn_r50_c4_bn_120k               | 11 FrozenBN, 32 BN |         |             |            | 10 BN
finetune/faster_rcnn_r50_c4_gn_120k               | 43 GN           |            |             |            | 10 GN
finetune/faster_rcnn_r50_c4_sn_120k               | 43 SN           |            |             |            | 10 SN
finetune/mask_rcnn_r50_fpn_ws_gn_2x               | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r101_fpn_ws_gn_2x              | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_2x         | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_2x        | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e        | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r101_fpn_ws_gn_20_23_24e       | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e  | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r50_fpn_gn_2x                  | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r101_fpn_gn_2x                 | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_x50_32x4d_fpn_gn_2x            | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_x101_32x4d_fpn_gn_2x           | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_20_23_24e           | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r101_fpn_gn_20_23_24e          | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_x50_32x4d_fpn_gn_20_23_24e     | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_x101_32x4d_fpn_gn_20_23_24e    | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_ws_bcn_2x              | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
finetune/mask_rcnn_r101_fpn_ws_bcn_2x             | 104 BCN+WS      | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
finetune/mask_rcnn_r50_fpn_ws_bcn_20_23_24e       | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
finetune/mask_rcnn_r101_fpn_ws_bcn_20_23_24e      | 104 BCN+WS      | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
finetune/mask_rcnn_r50_fpn_sn_2x                  | 53 SN           | 8 SN       | 4 SN        | 4 SN       |
finetune/mask_rcnn_r101_fpn_sn_2x                 | 104 SN          | 8 SN       | 4 SN        | 4 SN       |
finetune/mask_rcnn_r50_fpn_syncsn_2x              | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    | 4 SyncSN   |
finetune/mask_rcnn_r101_fpn_syncsn_2x             | 104 SyncSN      | 8 SyncSN   | 4 SyncSN    | 4 SyncSN   |
finetune/mask_rcnn_r50_fpn_sn_in_ln_2x            | 53 SN_IN_LN     | 8 SN_IN_LN | 4 SN_IN_LN  | 4 SN_IN_LN |
finetune/mask_rcnn_r101_fpn_sn_in_ln_2x           | 104 SN_IN_LN    | 8 SN_IN_LN | 4 SN_IN_LN  | 4 SN_IN_LN |
finetune/mask_rcnn_r50_fpn_frozenbn_none_2x       | 53 FrozenBN     |            |             |            |
finetune/mask_rcnn_r50_fpn_frozenbn_gn_2x         | 53 FrozenBN     | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_frozenbn_sn_2x         | 53 FrozenBN     | 8 SN       | 4 SN        | 4 SN       |
finetune/mask_rcnn_r50_fpn_gn_gn_2x               | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_sn_2x               | 53 GN           | 8 SN       | 4 SN        | 4 SN       |
finetune/mask_rcnn_bit_r50x1_fpn_2x               | 48 GN, 53 WS    | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_bit_r101x1_fpn_2x              | 99 GN, 104 WS   | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/retinanet_r50_fpn_ws_gn_1x               | 53 GN+WS        | 6 GN+WS    |             |            | 8 GN+WS
finetune/retinanet_r50_fpn_syncsn_1x              | 53 SyncSN       | 6 SyncSN   |             |            | 8 SN_IN_LN
finetune/fcos_r50_fpn_ws_gn_1x                    | 53 GN+WS        | 6 GN+WS    |             |            | 8 GN+WS
finetune/fcos_r50_fpn_syncsn_1x                   | 53 SyncSN       | 6 SyncSN   |             |            | 8 SN_IN_LN
finetune/cascade_mask_rcnn_r50_fpn_ws_gn_1x       | 53 GN+WS        | 8 GN+WS    | 12 GN+WS    | 4 GN+WS    |
finetune/cascade_mask_rcnn_r50_fpn_syncsn_1x      | 53 SyncSN       | 8 SyncSN   | 12 SyncSN   | 4 SyncSN   |
finetune/panoptic_fpn_r50_ws_gn_1x                | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    | 7 GN+WS
finetune/panoptic_fpn_r50_syncsn_1x               | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    | 4 SyncSN   | 7 SyncSN
finetune/keypoint_rcnn_r50_fpn_ws_gn_1x           | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/keypoint_rcnn_r50_fpn_syncsn_1x          | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    |            |
scratch/faster_rcnn_r50_c4_bn_120k                | 43 BN           |            |             |            | 10 BN
scratch/faster_rcnn_r50_c4_gn_120k                | 43 GN           |            |             |            | 10 GN
scratch/faster_rcnn_r50_c4_sn_120k                | 43 SN           |            |             |            | 10 SN
scratch/mask_rcnn_r50_fpn_ws_gn_3x                | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
scratch/mask_rcnn_r50_fpn_ws_bcn_3x               | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
scratch/mask_rcnn_r50_fpn_sn_3x                   | 53 SN           | 8 SN       | 4 SN        | 4 SN       |
scratch/mask_rcnn_r50_fpn_syncsn_3x               | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    | 4 SyncSN   |
scratch/mask_rcnn_r50_fpn_ws_gn_100ep_lsj         | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
scratch/mask_rcnn_r50_fpn_ws_bcn_100ep_lsj        | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
scratch/mask_rcnn_r50_fpn_sn_100ep_lsj            | 53 SN           | 8 SN       | 4 SN        | 4 SN       |
scratch/mask_rcnn_r50_fpn_syncsn_100ep_lsj        | 53 SyncSN       | 8 SyncSN   | 4 SyncSN    | 4 SyncSN   |
finetune/faster_rcnn_r50_fpn_gn_1x_mmdet1         | 53 GN           | 8 GN       | 4 GN        |            |
finetune/mask_rcnn_r50_fpn_gn_2x_mmdet1           | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_r50_fpn_ws_gn_1x_mmdet1      | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_r50_fpn_ws_gn_2x_mmdet1        | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r50_fpn_gn_20_23_24e_mmdet1    | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_r50_fpn_ws_gn_1x_jhu         | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e_jhu    | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/faster_rcnn_r101_fpn_gn_1x_mmdet1        | 104 GN          | 8 GN       | 4 GN        |            |
finetune/mask_rcnn_r101_fpn_gn_2x_mmdet1          | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_r101_fpn_ws_gn_1x_mmdet1     | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_r101_fpn_ws_gn_2x_mmdet1       | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r101_fpn_gn_20_23_24e_mmdet1   | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_r101_fpn_ws_gn_1x_jhu        | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_r101_fpn_ws_gn_20_23_24e_jhu   | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/faster_rcnn_x50_32x4d_fpn_gn_1x_mmdet1   | 53 GN           | 8 GN       | 4 GN        |            |
finetune/mask_rcnn_x50_32x4d_fpn_gn_2x_mmdet1     | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x_mmdet1 | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_2x_mmdet1  | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x50_32x4d_fpn_gn_20_23_24e_mmdet1 | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_x50_32x4d_fpn_ws_gn_1x_jhu   | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e_jhu | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/faster_rcnn_x101_32x4d_fpn_gn_1x_mmdet1  | 104 GN          | 8 GN       | 4 GN        |            |
finetune/mask_rcnn_x101_32x4d_fpn_gn_2x_mmdet1    | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_x101_32x4d_fpn_ws_gn_1x_mmdet1 | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_2x_mmdet1 | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x101_32x4d_fpn_gn_20_23_24e_mmdet1 | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/faster_rcnn_x101_32x4d_fpn_ws_gn_1x_jhu  | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     |            |
finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e_jhu | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r50_fpn_gn_28_34_36e           | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r101_fpn_gn_28_34_36e          | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_contrib_2x          | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_contrib_28_34_36e   | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_3x                  | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_syncbn_3x              | 11 FrozenBN, 42 SyncBN | 8 SyncBN   | 4 SyncBN    | 4 SyncBN   |
finetune/faster_rcnn_r50_fpn_ssn_1x               | 53 SSN          | 8 SSN      | 4 SSN       |            |
finetune/faster_rcnn_r50_fpn_sn_2x                | 53 SN           | 8 SN       |             |            |
finetune/faster_rcnn_r50_fpn_sn_in_ln_2x          | 53 SN_IN_LN     | 8 SN_IN_LN |             |            |
finetune/faster_rcnn_r50_fpn_gn_2x                | 53 GN           | 8 GN       |             |            |
finetune/faster_rcnn_r50_c4_sn_2x                 | 43 SN           |            |             |            | 10 SN
finetune/faster_rcnn_r50_c4_gn_2x                 | 43 GN           |            |             |            | 10 GN
scratch/faster_rcnn_r50_fpn_gn_65_71_73e          | 53 GN           | 8 GN       | 4 GN        |            |
scratch/mask_rcnn_r50_fpn_gn_65_71_73e            | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
scratch/mask_rcnn_r50_fpn_gn_3x                   | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
scratch/mask_rcnn_r50_fpn_sn_g2_3x                | 53 SN           | 8 SN       | 4 SN        | 4 SN       |
scratch/mask_rcnn_r50_fpn_ssn_3x                  | 53 SSN          | 8 SSN      | 4 SSN       | 4 SSN      |
scratch/mask_rcnn_r50_fpn_syncbn_3x               | 53 SyncBN       | 8 SyncBN   | 4 SyncBN    | 4 SyncBN   |
scratch/mask_rcnn_r50_fpn_syncbn_100ep_lsj        | 53 SyncBN       | 8 SyncBN   | 4 SyncBN    | 4 SyncBN   |
finetune/mask_rcnn_r50_fpn_ws_gn_20_23_24e_mmdet1 | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r101_fpn_ws_gn_20_23_24e_mmdet1 | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x50_32x4d_fpn_ws_gn_20_23_24e_mmdet1 | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_x101_32x4d_fpn_ws_gn_20_23_24e_mmdet1 | 104 GN+WS       | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
finetune/mask_rcnn_r101_fpn_gn_gn_2x              | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r50_fpn_gn_gn_3x               | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
finetune/mask_rcnn_r101_fpn_gn_gn_3x              | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
scratch/mask_rcnn_r50_fpn_gn_gn_3x                | 53 GN           | 8 GN       | 4 GN        | 4 GN       |
scratch/mask_rcnn_r101_fpn_gn_gn_3x               | 104 GN          | 8 GN       | 4 GN        | 4 GN       |
quick/mask_rcnn_r18_fpn_bn                        | 15 BN           | 6 BN       | 2 BN        | 2 BN       |
quick/mask_rcnn_r18_fpn_gn                        | 15 GN           | 6 GN       | 2 GN        | 2 GN       |
quick/mask_rcnn_r18_fpn_sn                        | 15 SN           | 6 SN       | 2 SN        | 2 SN       |
quick/mask_rcnn_r18_fpn_ssn                       | 15 SSN          | 6 SSN      | 2 SSN       | 2 SSN      |
quick/mask_rcnn_r18_fpn_sn_in_ln                  | 15 SN_IN_LN     | 6 SN_IN_LN | 2 SN_IN_LN  | 2 SN_IN_LN |
quick/mask_rcnn_r18_fpn_syncsn                    | 15 SyncSN       | 6 SyncSN   | 2 SyncSN    | 2 SyncSN   |
quick/mask_rcnn_r18_fpn_ws_bcn                    | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    | 2 BCN+WS   |
quick/mask_rcnn_r18_fpn_ws_gn                     | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     | 2 GN+WS    |
small/faster_rcnn_r18_fpn_ws_gn_scratch           | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     |            |
small/faster_rcnn_r18_fpn_ws_gn_finetune          | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     |            |
small/faster_rcnn_r18_fpn_ws_bcn_scratch          | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    |            |
small/faster_rcnn_r18_fpn_ws_bcn_finetune         | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    |            |
small/faster_rcnn_r50_fpn_ws_gn_scratch           | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
small/faster_rcnn_r50_fpn_ws_gn_finetune          | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     |            |
small/faster_rcnn_r50_fpn_ws_bcn_scratch          | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    |            |
small/faster_rcnn_r50_fpn_ws_bcn_finetune         | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    |            |
small/mask_rcnn_r18_fpn_ws_gn_scratch             | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     | 2 GN+WS    |
small/mask_rcnn_r18_fpn_ws_gn_finetune            | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     | 2 GN+WS    |
small/mask_rcnn_r18_fpn_ws_bcn_scratch            | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    | 2 BCN+WS   |
small/mask_rcnn_r18_fpn_ws_bcn_finetune           | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    | 2 BCN+WS   |
small/mask_rcnn_r50_fpn_ws_gn_scratch             | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
small/mask_rcnn_r50_fpn_ws_gn_finetune            | 53 GN+WS        | 8 GN+WS    | 4 GN+WS     | 4 GN+WS    |
small/mask_rcnn_r50_fpn_ws_bcn_scratch            | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
small/mask_rcnn_r50_fpn_ws_bcn_finetune           | 53 BCN+WS       | 8 BCN+WS   | 4 BCN+WS    | 4 BCN+WS   |
"""  # noqa: E501

# COCO recipes by a pattern that the whole name matches; each matches one. From the sources:
# mmdetection trains epochs of 7330 steps (117,266 images, 16 a step; 3665 of 32, 29,317 of 4) and
# drops the learning rate after epochs 8 and 11 of 12, 16 and 22 or 20 and 23 of 24, 28 and 34 of
# 36, 65 and 71 of 73. Detectron's 1x, 2x and 3x: 90k, 180k and 270k steps of 16.
# "trained from": the first stage of the backbone that trains (1 is the stem, 3 is res3).
# "head": of the boxes. "stem": its pooling. "1x1": where bottlenecks have their stride.
SCHEDULES = """
recipes                                                | protocol             | iterations | drops            | rate  | images | short sides | long side | trained from | head | stride | stem
finetune/faster_rcnn_.*_fpn_(ws_gn|ws_bcn|gn)_1x       | mmdetection          | 87960      | 58640, 80630     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_fpn_(ws_gn|ws_bcn|gn|gn_contrib)_2x | mmdetection       | 175920     | 117280, 161260   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_bit_.*_2x                           | mmdetection          | 175920     | 117280, 161260   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_20_23_24e                        | mmdetection          | 175920     | 146600, 168590   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_gn(_contrib)?_28_34_36e          | mmdetection          | 263880     | 205240, 249220   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
scratch/.*_fpn_gn_65_71_73e                            | mmdetection, scratch | 267545     | 238225, 260215   | 0.04  | 32     | 800         | 1333      | 1            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_.*_1x_mmdet1                      | mmdetection 1        | 87960      | 58640, 80630     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_2x_mmdet1                        | mmdetection 1        | 175920     | 117280, 161260   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_20_23_24e_mmdet1                 | mmdetection 1        | 175920     | 146600, 168590   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_(r50|x50_32x4d)_.*_1x_jhu         | maskrcnn-benchmark   | 90000      | 60000, 80000     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_(r101|x101_32x4d)_.*_1x_jhu       | maskrcnn-benchmark   | 360000     | 240000, 320000   | 0.005 | 4      | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_(r50|x50_32x4d)_.*_24e_jhu          | maskrcnn-benchmark   | 175920     | 146600, 168590   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_(r101|x101_32x4d)_.*_24e_jhu        | maskrcnn-benchmark   | 703608     | 586340, 674291   | 0.005 | 4      | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_.*_fpn_(sn|syncsn|sn_in_ln|gn_gn|gn_sn)_1x | Detectron   | 90000      | 60000, 80000     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_r50_fpn_ssn_1x                    | Detectron            | 90000      | 60000, 80000     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | ceil
finetune/mask_rcnn_.*_fpn_(sn|syncsn|gn_gn|gn_sn)_2x   | Detectron            | 180000     | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_.*_fpn_gn_gn_3x                     | Detectron            | 270000     | 210000, 250000   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
scratch/mask_rcnn_.*_fpn_gn_gn_3x                      | Detectron            | 270000     | 210000, 250000   | 0.02  | 16     | 800         | 1333      | 1            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_r50_fpn_frozenbn_none_1x          | Detectron            | 90000      | 60000, 80000     | 0.02  | 16     | 800         | 1333      | 3            | 2fc      | 1x1 | padded
finetune/faster_rcnn_r50_fpn_frozenbn_(gn|sn)_1x       | Detectron            | 90000      | 60000, 80000     | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 1x1 | padded
finetune/mask_rcnn_r50_fpn_frozenbn_none_2x            | Detectron            | 180000     | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 3            | 2fc      | 1x1 | padded
finetune/mask_rcnn_r50_fpn_frozenbn_(gn|sn)_2x         | Detectron            | 180000     | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 1x1 | padded
finetune/mask_rcnn_.*_fpn_sn_in_ln_2x                  | SwitchNorm_Detection | 180000     | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 3            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_r50_fpn_(sn|sn_in_ln|gn)_2x       | SwitchNorm_Detection | 180000     | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 3            | 2fc      | 3x3 | padded
finetune/faster_rcnn_r50_c4_(sn|gn)_2x                 | SwitchNorm_Detection, C4 | 180000 | 120000, 160000   | 0.02  | 16     | 800         | 1333      | 1            | res5     | 3x3 | padded
scratch/mask_rcnn_r50_fpn_sn_3x                        | SwitchNorm_Detection | 270000     | 210000, 250000   | 0.02  | 16     | 800         | 1333      | 1            | 4conv1fc | 3x3 | padded
finetune/faster_rcnn_r50_c4_(bn|frozenbn)_120k         | faster-rcnn.pytorch  | 120000     | 80000            | 0.01  | 12     | 600         | 1000      | 3            | res5     | 1x1 | ceil
finetune/faster_rcnn_r50_c4_(gn|sn)_120k               | faster-rcnn.pytorch  | 120000     | 80000            | 0.01  | 12     | 600         | 1000      | 3            | res5     | 3x3 | padded
scratch/faster_rcnn_r50_c4_.*_120k                     | faster-rcnn.pytorch  | 120000     | 80000            | 0.01  | 12     | 600         | 1000      | 1            | res5     | 1x1 | ceil
finetune/(retinanet|fcos)_r50_fpn_.*_1x                | detectron2, one stage | 90000     | 60000, 80000     | 0.01  | 16     | 640 672 704 736 768 800 | 1333 | 3     | -        | 3x3 | padded
finetune/keypoint_rcnn_r50_fpn_.*_1x                   | detectron2, keypoints | 90000     | 60000, 80000     | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 3     | 4conv1fc | 3x3 | padded
finetune/panoptic_fpn_r50_.*_1x                        | detectron2           | 90000      | 60000, 80000     | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 3     | 4conv1fc | 3x3 | padded
finetune/cascade_mask_rcnn_r50_fpn_.*_1x               | detectron2, cascade  | 90000      | 60000, 80000     | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 3     | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_r50_fpn_gn_3x                       | detectron2           | 270000     | 210000, 250000   | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 3     | 4conv1fc | 3x3 | padded
finetune/mask_rcnn_r50_fpn_syncbn_3x                   | detectron2           | 270000     | 210000, 250000   | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 3     | 4conv1fc | 1x1 | padded
scratch/mask_rcnn_r50_fpn_(gn|ws_gn|ws_bcn|syncsn|syncbn|sn_g2|ssn)_3x | detectron2 | 270000   | 210000, 250000   | 0.02  | 16     | 640 672 704 736 768 800 | 1333 | 1     | 4conv1fc | 3x3 | padded
scratch/mask_rcnn_r50_fpn_.*_100ep_lsj                 | detectron2, LSJ      | 184375     | 163889, 177546   | 0.1   | 64     | -           | -         | 1            | 4conv1fc | 3x3 | padded
"""  # noqa: E501

# Protocols, from the sources' configs. "betas" of the smooth L1 losses of RPN and boxes, 0 for L1.
# Pooling: kind and samples. Proposals an image in training and in testing; whether anchors across
# the border train. Weight decay of norms' weights, biases and all else; the biases' rate; the
# warm-up's steps and start.
PROTOCOLS = """
protocol                 | betas    | pooling      | proposals | border | norm decay | bias decay | decay | bias rate | warm-up    | clip
Detectron                | 1/9, 1   | ROIAlign 2   | 1000 1000 | yes    | 0          | 0          | 1e-4  | 2         | 500 1/3    | -
maskrcnn-benchmark       | 1/9, 1   | ROIAlign 2   | 1000 1000 | yes    | 1e-4       | 0          | 1e-4  | 2         | 500 1/3    | -
SwitchNorm_Detection     | 1/9, 1   | ROIAlign 2   | 1000 1000 | yes    | 0          | 0          | 1e-4  | 2         | 500 1/3    | -
SwitchNorm_Detection, C4 | 1/9, 1   | ROIAlign 0   | 2000 1000 | yes    | 0          | 0          | 1e-4  | 2         | 500 1/3    | -
faster-rcnn.pytorch      | 1/9, 1   | crop         | 2000 300  | no     | 0          | 0          | 1e-4  | 1         | -          | -
mmdetection 1            | 1/9, 1   | ROIAlign 2   | 2000 2000 | no     | 1e-4       | 1e-4       | 1e-4  | 1         | 500 1/3    | 35
mmdetection              | 0, 0     | ROIAlignV2 0 | 1000 1000 | yes    | 1e-4       | 1e-4       | 1e-4  | 1         | 500 0.001  | -
mmdetection, scratch     | 0, 0     | ROIAlignV2 0 | 1000 1000 | yes    | 0          | 1e-4       | 1e-4  | 1         | 500 0.1    | -
detectron2               | 0, 0     | ROIAlignV2 0 | 1000 1000 | yes    | 0          | 1e-4       | 1e-4  | 1         | 1000 0.001 | -
detectron2, cascade      | 0, 0     | ROIAlignV2 0 | 2000 1000 | yes    | 0          | 1e-4       | 1e-4  | 1         | 1000 0.001 | -
detectron2, keypoints    | 0, 0.5   | ROIAlignV2 0 | 1500 1000 | yes    | 0          | 1e-4       | 1e-4  | 1         | 1000 0.001 | -
detectron2, one stage    | -        | -            | -         | -      | 0          | 1e-4       | 1e-4  | 1         | 1000 0.001 | -
detectron2, LSJ          | 0, 0     | ROIAlignV2 0 | 1000 1000 | yes    | 0          | 4e-5       | 4e-5  | 1         | 500 0.067  | -
"""  # noqa: E501

# What a recipe starts from, by a pattern of its name with the depth taken out; each matches one.
WEIGHTS = """
recipes                                         | r50 | r101 | x50_32x4d | x101_32x4d
finetune/.*_ws_gn_(1x|2x|20_23_24e)(_mmdet1)?   | wsbcn://resnet50_gn_ws | wsbcn://resnet101_gn_ws | wsbcn://resnext50_32x4d_gn_ws | wsbcn://resnext101_32x4d_gn_ws
finetune/mask_rcnn_bit_.*_2x                    | wsbcn://resnetv2_50x1_bit_in21k | wsbcn://resnetv2_101x1_bit_in21k | |
finetune/.*_ws_gn_.*_jhu                        | wsbcn://resnet50_gn_ws_jhu | wsbcn://resnet101_gn_ws_jhu | wsbcn://resnext50_32x4d_gn_ws_jhu | wsbcn://resnext101_32x4d_gn_ws_jhu
finetune/.*_(fpn_|c4_|gn_)gn_[^_]*(x|e|k)(_mmdet1)? | wsbcn://resnet50_gn | wsbcn://resnet101_gn | wsbcn://resnext50_32x4d_gn | wsbcn://resnext101_32x4d_gn
finetune/.*_fpn_gn_(20_23|28_34)_.*             | wsbcn://resnet50_gn | wsbcn://resnet101_gn | wsbcn://resnext50_32x4d_gn | wsbcn://resnext101_32x4d_gn
finetune/.*_gn_contrib_.*                       | wsbcn://resnet50_gn_contrib | | |
finetune/.*_gn_sn_.x                            | wsbcn://resnet50_gn | | |
finetune/.*_ws_bcn_.*                           | wsbcn://resnet50_bcn_ws | wsbcn://resnet101_bcn_ws | |
finetune/.*_(frozenbn.*|bn_120k|syncbn_3x)      | detectron2://ImageNetPretrained/MSRA/R-50.pkl | | |
finetune/.*_fpn_sn_.x                           | wsbcn://resnet50_sn_8x2 | weights/resnet101_sn_8x2.pth | |
finetune/.*_c4_sn_120k                          | wsbcn://resnet50_sn_8x2 | | |
finetune/.*_c4_sn_2x                            | wsbcn://resnet50_sn_8x32 | | |
finetune/.*_syncsn_.*                           | wsbcn://resnet50_sn_8x32 | wsbcn://resnet101_sn_8x32 | |
finetune/.*_sn_in_ln_.*                         | wsbcn://resnet50_sn_in_ln_8x1 | weights/resnet101_sn_in_ln.pth | |
finetune/.*_ssn_.*                              | wsbcn://resnet50_ssn_8x2 | | |
"""  # noqa: E501

# Recipes for small data: epochs, iterations at least and so those of 50, 100 and 400 images; images
# a step; rate; short sides in training and testing; the first stage that trains; weights.
SMALL = """
recipes                       | epochs | least | of 50 | of 100 | of 400 | images | rate  | short sides | test | trained from | weights
small/.*_r18_.*_scratch       | 10     | 2000  | 2000  | 2000   | 2000   | 2      | 0.02  | 128 176     | 152  | 1            |
small/.*_r18_.*_gn_finetune   | 5      | 1000  | 1000  | 1000   | 1000   | 2      | 0.02  | 128 176     | 152  | 1            | output/classification/pretrain/mask_rcnn_r18_ws_gn_cifar10/model_final.pth
small/.*_r18_.*_bcn_finetune  | 5      | 1000  | 1000  | 1000   | 1000   | 2      | 0.02  | 128 176     | 152  | 1            | output/classification/pretrain/mask_rcnn_r18_ws_bcn_cifar10/model_final.pth
small/.*_r50_.*_scratch       | 24     | 2400  | 2400  | 2400   | 2400   | 4      | 0.005 | 640 800     | 800  | 1            |
small/.*_r50_.*_gn_finetune   | 12     | 1200  | 1200  | 1200   | 1200   | 4      | 0.005 | 640 800     | 800  | 3            | wsbcn://resnet50_gn_ws
small/.*_r50_.*_bcn_finetune  | 12     | 1200  | 1200  | 1200   | 1200   | 4      | 0.005 | 640 800     | 800  | 3            | wsbcn://resnet50_bcn_ws
"""  # noqa: E501

# The protocol of each table of published results.
SOURCES = {
    ("mmdetection-gn-ws", "Faster R-CNN"): "mmdetection",
    ("mmdetection-gn-ws", "Mask R-CNN"): "mmdetection",
    ("mmdetection-gn", "Mask R-CNN"): "mmdetection",
    ("mmdetection-scratch", "scratch"): "mmdetection, scratch",
    ("mmdetection-521", "pull request 521"): "mmdetection 1",
    ("mmdetection-1", "Mask R-CNN, 20-23-24e"): "mmdetection 1",
    ("ws-release", "COCO"): "maskrcnn-benchmark",
    ("sn-paper", "Table IV"): "faster-rcnn.pytorch",
    ("sn-paper", "Table V"): "Detectron",
    ("sn-paper", "Table VI"): "Detectron",
    ("detectron-gn", "GN"): "Detectron",
    ("sn-detection", "Main results"): "SwitchNorm_Detection or SwitchNorm_Detection, C4",
    (
        "sn-detection",
        "Comparisons with BN and GN",
    ): "Detectron or SwitchNorm_Detection or SwitchNorm_Detection, C4",
    ("detectron2", "Ablations for normalization methods"): "detectron2",
}
