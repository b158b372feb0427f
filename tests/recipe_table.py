"""What each recipe claims to be, written by hand: the norms of each part, and the protocol.

`test_recipes_tree` holds the recipes against it.
"""

from __future__ import annotations

__all__ = ["NORMS", "PARTS", "PROTOCOLS"]

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
# The half ResNet-18 of the quick recipes: 1 stem + 2 for each of 6 blocks + 2 shortcuts = 15.
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
quick/mask_rcnn_r18_fpn_bn                        | 15 BN           | 6 BN       | 2 BN        | 2 BN       |
quick/mask_rcnn_r18_fpn_gn                        | 15 GN           | 6 GN       | 2 GN        | 2 GN       |
quick/mask_rcnn_r18_fpn_sn_in_ln                  | 15 SN_IN_LN     | 6 SN_IN_LN | 2 SN_IN_LN  | 2 SN_IN_LN |
quick/mask_rcnn_r18_fpn_syncsn                    | 15 SyncSN       | 6 SyncSN   | 2 SyncSN    | 2 SyncSN   |
quick/mask_rcnn_r18_fpn_ws_bcn                    | 15 BCN+WS       | 6 BCN+WS   | 2 BCN+WS    | 2 BCN+WS   |
quick/mask_rcnn_r18_fpn_ws_gn                     | 15 GN+WS        | 6 GN+WS    | 2 GN+WS     | 2 GN+WS    |
"""  # noqa: E501

# COCO recipes by a pattern that the whole name matches; each matches one. From the sources:
# mmdetection trains 12 or 24 epochs of 7330 steps (117,266 images, 16 a step), drops the learning
# rate after epochs 8 and 11, 16 and 22, or 20 and 23. Detectron's 1x and 2x: 90k and 180k steps.
# "trained from": the first stage of the backbone that trains (1 is the stem, 3 is res3).
PROTOCOLS = """
recipes                                                        | iterations | drops           | rate | images | short sides         | long side | trained from
finetune/faster_rcnn_.*_fpn_(ws_gn|ws_bcn|gn)_1x               | 87960      | 58640, 80630    | 0.02 | 16     | 800                 | 1333      | 3
finetune/mask_rcnn_.*_fpn_(ws_gn|ws_bcn|gn)_2x                 | 175920     | 117280, 161260  | 0.02 | 16     | 800                 | 1333      | 3
finetune/mask_rcnn_bit_.*_2x                                   | 175920     | 117280, 161260  | 0.02 | 16     | 800                 | 1333      | 3
finetune/mask_rcnn_.*_20_23_24e                                | 175920     | 146600, 168590  | 0.02 | 16     | 800                 | 1333      | 3
finetune/faster_rcnn_.*_fpn_(sn|syncsn|sn_in_ln)_1x            | 90000      | 60000, 80000    | 0.02 | 16     | 800                 | 1333      | 3
finetune/mask_rcnn_.*_fpn_(sn|syncsn|sn_in_ln)_2x              | 180000     | 120000, 160000  | 0.02 | 16     | 800                 | 1333      | 3
finetune/faster_rcnn_r50_fpn_(frozenbn|gn)_(none|gn|sn)_1x     | 90000      | 60000, 80000    | 0.02 | 16     | 800                 | 1333      | 3
finetune/mask_rcnn_r50_fpn_(frozenbn|gn)_(none|gn|sn)_2x       | 180000     | 120000, 160000  | 0.02 | 16     | 800                 | 1333      | 3
finetune/faster_rcnn_r50_c4_.*_120k                            | 120000     | 80000           | 0.01 | 12     | 600                 | 1000      | 3
finetune/(retinanet|fcos)_r50_fpn_.*_1x                        | 90000      | 60000, 80000    | 0.01 | 16     | 640 672 704 736 768 800 | 1333  | 3
finetune/(cascade_mask_rcnn_r50_fpn|panoptic_fpn_r50|keypoint_rcnn_r50_fpn)_.*_1x | 90000 | 60000, 80000 | 0.02 | 16 | 640 672 704 736 768 800 | 1333 | 3
scratch/faster_rcnn_r50_c4_.*_120k                             | 120000     | 80000           | 0.01 | 12     | 600                 | 1000      | 1
scratch/mask_rcnn_r50_fpn_.*_3x                                | 270000     | 210000, 250000  | 0.02 | 16     | 640 672 704 736 768 800 | 1333  | 1
scratch/mask_rcnn_r50_fpn_.*_100ep_lsj                         | 184375     | 163889, 177546  | 0.1  | 64     | -                   | -         | 1
"""  # noqa: E501
