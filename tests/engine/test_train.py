"""Parts of a run that need no training."""

import argparse
import errno
import sys
import types

import pytest
from omegaconf import OmegaConf

from tests.engine.tiny_run import LAZY_CONFIG
from wsbcn_d2.analysis.summary import results_table, task_metrics
from wsbcn_d2.detection import Detection
from wsbcn_d2.engine import ConfigError, UserError, load_config, main, read_config
from wsbcn_d2.engine.train import set_aside


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "tiny.py").write_text(LAZY_CONFIG)
    return load_config(str(tmp_path / "tiny.py"))


def test_the_table_has_a_row_for_each_task_of_each_dataset():
    metrics = {"AP": 12.345, "AP50": 20.0, "AP-cat": 1.0}

    def table(results):
        return results_table(task_metrics(results), Detection.metrics)

    lines = table({"bbox": metrics, "segm": metrics}).splitlines()
    assert lines[1].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [line.split()[0] for line in lines[3:]] == ["bbox", "segm"]
    assert lines[3].split()[1:4] == ["12.35", "20.00", "nan"]
    nested = table({"a_val": {"bbox": metrics}, "b_val": {"bbox": metrics}})
    assert [line.split()[:2] for line in nested.splitlines()[3:]] == [
        ["a_val", "bbox"],
        ["b_val", "bbox"],
    ]
    assert table({}).startswith("No evaluation results")


def test_metrics_of_an_earlier_run_areset_aside(tmp_path):
    set_aside(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("old")
    set_aside(tmp_path / "metrics.json")
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("metrics.2") and aside.read_text() == "old"


def test_everything_optional_is_off_by_default(cfg):
    config = read_config(cfg)
    options = config.options
    assert options.amp.autocast_dtype("cpu") is options.clip_grad.arguments() is None
    assert not options.ema.enabled and not options.scale_lr.enabled
    assert options.ddp["broadcast_buffers"] is False
    assert not options.deterministic


def test_the_model_stays_out_of_the_config(cfg):
    config = read_config(cfg)
    config.build_optimizer(config.build_model())
    assert "model" not in cfg.optimizer.params


def test_parts_that_are_missing_or_too_many_are_named(cfg):
    del cfg["lr_multiplier"]
    with pytest.raises(ConfigError, match="no `lr_multiplier`"):
        read_config(cfg).build_scheduler(types.SimpleNamespace())
    cfg.dataloader.evaluator = OmegaConf.create([])
    config = read_config(cfg)
    assert list(config.evaluations()) == []
    cfg.dataloader.evaluator = OmegaConf.create([{}, {}])
    with pytest.raises(ConfigError, match=r"test \(1\) and dataloader\.evaluator \(2\)"):
        list(config.evaluations())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_is_an_error_of_the_user_with_path_and_free_space(
    cfg, tmp_path, monkeypatch, number
):
    def write(*_):
        raise RuntimeError("torch's") from OSError(
            number, "does not work", str(tmp_path / "a.json")
        )

    monkeypatch.setattr(sys.modules["wsbcn_d2.engine.command_line"], "_set_up", write)
    args = argparse.Namespace(config_file=str(tmp_path / "tiny.py"), opts=[], eval_only=False)
    full = number != errno.EACCES
    message = rf"cannot write {tmp_path}/a\.json: does not work\n.*MiB free" if full else "torch's"
    with pytest.raises(UserError if full else RuntimeError, match=message):
        main(args)
