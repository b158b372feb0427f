"""Config files, overrides, and what is wrong with them."""

import argparse

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from tests.engine.tiny_run import LAZY_CONFIG, yaml_overrides
from wsbcn_d2.engine import (
    ConfigError,
    check_config,
    load_config,
    read_config,
    resolve_config_file,
)

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
TRAIN = argparse.Namespace(eval_only=False, resume=False)


@pytest.fixture
def lazy_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(LAZY_CONFIG)
    return str(path)


def test_names_resolve_to_files_recipes_and_the_model_zoo(lazy_file):
    assert resolve_config_file(lazy_file) == lazy_file
    for name in ("common/train", "configs/common/train.py"):
        assert resolve_config_file(name).endswith("configs/common/train.py")
    assert resolve_config_file(ZOO).endswith("model_zoo/configs/" + ZOO)


def test_a_name_of_the_model_zoo_is_suggested_too():
    with pytest.raises(ConfigError, match=f"did you mean .*{ZOO}"):
        resolve_config_file("COCO-InstanceSegmentation/mask_rcnn_R50_FPN_3x.yaml")
    with pytest.raises(ConfigError, match="--config-file is missing"):
        resolve_config_file("")


def test_a_lazy_config_gets_this_projects_train_options(lazy_file):
    cfg = load_config(lazy_file, ["train.ema.enabled=True", "model.proposal_generator.new=1"])
    assert isinstance(cfg, DictConfig)
    assert cfg.train.max_iter == 6  # its own
    assert cfg.train.clip_grad.max_norm == 1.0  # from configs/common/train.py
    assert cfg.train.ema.enabled is True
    assert cfg.model.proposal_generator.new == 1
    assert read_config(cfg).dataset_names("train") == ["coco_2017_train"]


def test_a_saved_lazy_config_is_told_from_a_yaml_config(lazy_file, tmp_path):
    from detectron2.config import LazyConfig

    cfg = load_config(lazy_file)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"), ["train.max_iter=9"])
    assert isinstance(again, DictConfig) and again.train.max_iter == 9
    assert OmegaConf.to_container(again.train.vis) == OmegaConf.to_container(cfg.train.vis)

    yaml = load_config(resolve_config_file(ZOO), yaml_overrides())
    assert isinstance(yaml, CfgNode) and yaml.SOLVER.MAX_ITER == 3
    assert read_config(yaml).dataset_names("test") == ["coco_2017_val"]
    (tmp_path / "dumped.yaml").write_text(yaml.dump())
    dumped = load_config(str(tmp_path / "dumped.yaml"))
    assert (dumped.SOLVER, dumped.INPUT, dumped.TEST) == (yaml.SOLVER, yaml.INPUT, yaml.TEST)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["trian.max_iter=3"], "did you mean train"),
        (["SOLVER.MAX_ITER", "3"], "path.key=value"),
        (["train.max_iter=3", "--num-gpus", "2"], "--num-gpus stands behind the overrides"),
        (["train.max_iter=["], "overrides train.max_iter="),
    ],
)
def test_wrong_overrides_of_a_lazy_config_are_named(lazy_file, opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config(lazy_file, opts)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITR", "3"], "did you mean SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER=3"], "pairs KEY VALUE"),
        (["SOLVER.MAX_ITER"], "pairs KEY VALUE"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER|Type mismatch"),
    ],
)
def test_wrong_overrides_of_a_yaml_config_are_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config(resolve_config_file(ZOO), opts)


def test_wrong_keys_in_config_files_are_named(tmp_path):
    yaml = tmp_path / "a.yaml"
    yaml.write_text("SOLVER:\n  MAX_ITR: 3\n")
    with pytest.raises(ConfigError, match=r"MAX_ITR.*did you mean SOLVER\.MAX_ITER"):
        load_config(str(yaml))
    lazy = tmp_path / "a.py"
    lazy.write_text("net = dict(a=1)\n")
    with pytest.raises(ConfigError, match="no `model`; found: net"):
        load_config(str(lazy))


def test_the_device_follows_the_machine_unless_asked_for(lazy_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stock = read_config(load_config(resolve_config_file(ZOO)))
    assert stock.options.device == "cuda" and stock.device == stock.cfg.MODEL.DEVICE == "cpu"
    asked = load_config(lazy_file, ["train.device=cuda"])
    with pytest.raises(ConfigError, match="finds no GPU"):
        read_config(asked, opts=["train.device=cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    auto = load_config(lazy_file, ["train.device=auto"])
    assert read_config(auto).device == "cuda"
    assert read_config(load_config(lazy_file)).device == "cpu"


@pytest.fixture
def known_dataset():
    DatasetCatalog.register("here_train", lambda: [])
    yield "here_train"
    DatasetCatalog.remove("here_train")
    MetadataCatalog.remove("here_train")


@pytest.mark.parametrize(
    ("batch", "nearest"), [(12, "8 or 16; or 6 or 12 process"), (3, "8; or 3 process")]
)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    lazy_file, known_dataset, batch, nearest
):
    cfg = load_config(
        lazy_file,
        [
            f"dataloader.train.total_batch_size={batch}",
            f"dataloader.train.dataset.names={known_dataset}",
            f"dataloader.test.dataset.names={known_dataset}",
        ],
    )
    with pytest.raises(ConfigError, match=rf"total_batch_size \({batch}\).*8 process.*{nearest}"):
        check_config(read_config(cfg, world_size=8), TRAIN)
    cfg.dataloader.train.total_batch_size = 16
    check_config(read_config(cfg, world_size=8), TRAIN)


def test_a_dataset_that_is_not_there_says_where_it_was_looked_for(lazy_file, tmp_path, monkeypatch):
    cfg = load_config(lazy_file)
    # detectron2 reads the variable when it is imported; point the builtin dataset at an empty
    # folder as that would have.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    metadata = MetadataCatalog.get("coco_2017_train")
    path = str(tmp_path / "coco/annotations/instances_train2017.json")
    monkeypatch.setitem(metadata.__dict__, "json_file", path)
    with pytest.raises(ConfigError) as error:
        check_config(read_config(cfg, world_size=1), TRAIN)
    message = str(error.value)
    assert "'coco_2017_train' is not there" in message and path in message
    assert f"DETECTRON2_DATASETS is {tmp_path}" in message and "Set it to" in message


def test_an_unknown_dataset_or_checkpoint_is_named(lazy_file, known_dataset):
    cfg = load_config(lazy_file, ["dataloader.train.dataset.names=coco_2017_trian"])
    with pytest.raises(ConfigError, match=r"'coco_2017_trian'.*did you mean coco_2017_train"):
        check_config(read_config(cfg, world_size=1), TRAIN)
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = known_dataset
    cfg.train.init_checkpoint = "nowhere.pth"
    with pytest.raises(ConfigError, match=r"train\.init_checkpoint: nowhere\.pth is not there"):
        check_config(read_config(cfg, world_size=1), TRAIN)


YAML_SIZE = "MODEL.WSBCN.SYNC_GROUP_SIZE"


@pytest.mark.parametrize(("asked", "size"), [(None, 0), ("0", 0), ("4", 4), ("node", "node")])
def test_groups_of_synchronized_norms_in_both_config_kinds(lazy_file, asked, size):
    lazy = load_config(lazy_file, [f"train.sync_group_size={asked}"] if asked else [])
    yaml = load_config(resolve_config_file(ZOO), [YAML_SIZE, asked] if asked else [])
    assert (
        read_config(lazy).options.sync_group_size
        == read_config(yaml).options.sync_group_size
        == size
    )


def test_groups_that_the_processes_cannot_share_are_refused(lazy_file, known_dataset):
    names = [f"dataloader.{split}.dataset.names={known_dataset}" for split in ("train", "test")]
    cfg = load_config(lazy_file, [*names, "dataloader.train.total_batch_size=12"])
    cfg.train.sync_group_size = 5
    with pytest.raises(ConfigError, match=r"sync_group_size \(5\).*processes \(12\).*4 or 6, or 0"):
        check_config(read_config(cfg, world_size=12), TRAIN)
    for fitting in (0, 1, 4, 12, "node"):
        cfg.train.sync_group_size = fitting
        check_config(read_config(cfg, world_size=12), TRAIN)
