"""What a resumed run says of a config that has changed since the checkpoint was written."""

from __future__ import annotations

from detectron2 import model_zoo
from omegaconf import OmegaConf

from wsbcn_d2.config.record import config_changes, describe_changes, flatten_config
from wsbcn_d2.engine import load_config
from wsbcn_d2.recipes import config_file, get_config, list_configs

QUICK = str(config_file("quick/mask_rcnn_r18_fpn_ws_gn"))
YAML = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")


def changes(path: str, *overrides: str) -> dict[str, tuple[str, str]]:
    before = flatten_config(load_config(path))
    return config_changes(before, flatten_config(load_config(path, list(overrides))))


def test_every_recipe_has_plain_text_leaves_and_none_differs_from_itself() -> None:
    for name in list_configs():
        flat = flatten_config(get_config(name))
        assert flat["model._target_"].startswith(("detectron2.", "wsbcn_d2."))
        assert " at 0x" not in "".join(flat.values())
        assert config_changes(flat, flatten_config(get_config(name))) == {}


def test_a_saved_config_is_the_one_that_was_loaded() -> None:
    cfg = get_config("quick/mask_rcnn_r18_fpn_gn")
    copy = OmegaConf.create({"optimizer": cfg.optimizer, "train": cfg.train})
    assert flatten_config(copy)["optimizer.lr"] == str(cfg.optimizer.lr)


def test_changed_added_and_removed_keys_are_told_with_both_values() -> None:
    found = changes(QUICK, "train.max_iter=9", "+train.extra=1", "dataloader.train.num_workers=7")
    assert found["train.max_iter"] == ("2200", "9")
    assert found["train.extra"] == ("(none)", "1")
    assert found["dataloader.train.num_workers"][1] == "7"
    assert len(found) == 3


def test_what_changes_no_training_is_not_told() -> None:
    assert changes(QUICK, "train.output_dir=/elsewhere", "train.device=cpu") == {}
    assert changes(YAML, "OUTPUT_DIR", "elsewhere") == {}


def test_a_line_says_which_value_is_used() -> None:
    found = changes(QUICK, "optimizer.lr=0.5", "train.max_iter=9")
    kept, new = sorted(describe_changes(found, new_hyperparameters=False))
    assert kept == "optimizer.lr: 0.02 -> 0.5 (the checkpoint's is used)"
    assert new == "train.max_iter: 2200 -> 9 (the new one is used)"
    assert "optimizer.lr: 0.02 -> 0.5 (the new one is used)" in describe_changes(found, True)
    yaml = describe_changes(changes(YAML, "SOLVER.BASE_LR", "0.5"), False)
    assert yaml == ["SOLVER.BASE_LR: 0.02 -> 0.5 (the checkpoint's is used)"]
