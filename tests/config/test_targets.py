"""The calls of a lazy config are checked before they are made, and their errors name the config."""

from __future__ import annotations

import pytest
from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from wsbcn_d2.config.targets import build, check_targets, explain_building
from wsbcn_d2.engine import ConfigError
from wsbcn_d2.errors import UserError
from wsbcn_d2.recipes import get_config, list_configs


class Part:
    def __init__(self, size: int, other: object = None) -> None:
        if size < 0:
            raise ValueError(f"size {size} is negative")


class Whole:
    def __init__(self, parts: list[Part], size: int = 3) -> None:
        self.parts = parts


def takes_any(**arguments: object) -> dict[str, object]:
    return arguments


def config(**arguments: object) -> DictConfig:
    part = L(Part)(size=1)
    return OmegaConf.create(
        {"model": L(Whole)(parts=[part, L(Part)(**arguments)])}, flags={"allow_objects": True}
    )


def test_shipped_recipes_call_what_exists() -> None:
    for name in list_configs():
        check_targets(get_config(name))


def test_an_unknown_argument_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        check_targets(config(size=1, othr=2))
    assert str(caught.value) == (
        "model.parts[1].othr: Part has no argument 'othr'; did you mean model.parts[1].other?\n"
        "  It takes: size, other"
    )


def test_a_node_in_the_wrong_place_is_found_in_a_recipe() -> None:
    cfg = get_config("quick/mask_rcnn_r18_fpn_ws_gn")
    OmegaConf.update(cfg, "model.backbone.bottomup.freeze_at", 2, force_add=True)
    with pytest.raises(
        ConfigError, match=r"model\.backbone\.bottomup: .*model\.backbone\.bottom_up"
    ):
        check_targets(cfg)


def test_a_target_that_does_not_exist_is_named() -> None:
    cfg = OmegaConf.create({"model": {"_target_": "wsbcn_d2.norms.NoSuchNorm", "size": 1}})
    with pytest.raises(
        ConfigError, match=r"model\._target_: cannot find wsbcn_d2.norms.NoSuchNorm"
    ):
        check_targets(cfg)


def test_a_call_that_takes_any_argument_is_left_alone() -> None:
    check_targets(OmegaConf.create({"x": L(takes_any)(a=1, b=L(Part)(size=1))}))


def test_an_error_of_building_names_the_part_and_its_arguments() -> None:
    cfg = OmegaConf.create({"model": L(Whole)(parts=[L(takes_any)(), L(Part)(size=-1)])})
    with pytest.raises(ConfigError) as caught:
        build(cfg.model, "model")
    assert str(caught.value).startswith(
        "model.parts[1] cannot be built: ValueError: size -1 is negative\n"
        "  Part takes: size, other\n"
    )


def test_an_error_in_one_of_several_equal_calls_names_the_whole() -> None:
    with pytest.raises(ConfigError, match="model cannot be built: ValueError: size -1"):
        build(config(size=-1).model, "model")


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model cannot be built: TypeError: .*'size'"):
        build(OmegaConf.create({"_target_": Part}, flags={"allow_objects": True}), "model")


def test_a_message_for_the_user_stays_what_it_is() -> None:
    with pytest.raises(UserError, match=r"^no images$"), explain_building("dataloader.train"):
        raise UserError("no images")
    match = "MODEL cannot be built: KeyError"
    with pytest.raises(ConfigError, match=match), explain_building("MODEL"):
        raise KeyError("no such norm")
