"""Types and ranges of a run's options, in both config kinds."""

import pytest
from detectron2.config import CfgNode
from omegaconf import OmegaConf

from tests.engine.tiny_run import LAZY_CONFIG
from wsbcn_d2 import get_config
from wsbcn_d2.config.options import read_options
from wsbcn_d2.config.yaml_config import YAML_KEYS
from wsbcn_d2.engine import ConfigError, load_config, read_config, resolve_config_file

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def lazy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("options") / "tiny.py"
    path.write_text(LAZY_CONFIG)
    return str(path)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and key != "ddp":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


DEFAULTS = OmegaConf.to_container(get_config("common/train").train)
# A value of the right type that is out of range, or one of another type, of every option.
WRONG = {
    "output_dir": ["", 3, None],
    "init_checkpoint": [3, None],
    "pretrained": [3],
    "protocol": [3, None],
    "max_iter": ["abc", 0, -1, 1.5, True],
    "epochs": [-1, "ten", NAN, float("inf")],
    "min_iter": [-1, 1.5],
    "images_per_gpu": [-1, 1.5, "two"],
    "scale_lr.enabled": ["maybe", 1],
    "scale_lr.reference_batch_size": [0, 16.0],
    "correct_momentum": ["no way"],
    "exact_resume": [None],
    "resume.new_hyperparameters": ["lr"],
    "resume.other_model": [1],
    "bad_data.action": ["ignore", True],
    "bad_data.max_share": [-0.1, 1.1, NAN, "1%"],
    "stop_signals": ["SIGUSR2", ["SIGNONE"], ["SIGKILL"], None],
    "ssn_full_at": [0, 1.5, NAN],
    "batch_average_iters": [-1, 0.5],
    "amp.enabled": ["bfloat16"],
    "amp.dtype": ["half", None],
    "ddp": [{"broadcast_buffers": 1}, {"find_unused": True}, None],
    "sync_group_size": ["machine", -1, 2.5, True],
    "clip_grad.enabled": [1],
    "clip_grad.max_norm": [0, -1.0, INF, "big"],
    "clip_grad.norm_type": [0, NAN],
    "ema.enabled": ["x"],
    "ema.decay": [1, 1.5, -0.1],
    "checkpointer.period": [-1, 2.5],
    "checkpointer.max_to_keep": [0, "all"],
    "eval_period": [-1, "never"],
    "log_period": [0, -20, 0.5],
    "device": ["gpu", "cuda:x", 0],
    "seed": [1.5, "one", 2**31],
    "silence": ["gn-one-channel", [1], None],
    "deterministic": [1],
    "cudnn_benchmark": ["x"],
    "vis.num_images": [-1],
    "vis.score_threshold": [2, "high"],
}


def test_every_option_has_a_rule_and_a_default_that_fits():
    assert set(leaves(DEFAULTS)) == set(WRONG)
    read_options(DEFAULTS)


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(key):
    for value in WRONG[key]:
        cfg = OmegaConf.create({"train": DEFAULTS})
        OmegaConf.update(cfg, f"train.{key}", value, merge=False, force_add=True)
        with pytest.raises(ConfigError) as error:
            read_options(OmegaConf.to_container(cfg.train))
        message = str(error.value)
        assert message.startswith(f"train.{key} ({value!r}) must be "), message
        assert "\n" not in message


@pytest.fixture(scope="module")
def yaml():
    return load_config(resolve_config_file(ZOO))


@pytest.mark.parametrize("key", YAML_KEYS)
def test_yaml_configs_have_the_same_rules_under_their_own_keys(key, yaml):
    cfg = yaml.clone()
    *parents, name = YAML_KEYS[key].split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    for value in WRONG[key]:
        if key == "sync_group_size" and value is None:
            continue
        node[name] = value
        with pytest.raises(ConfigError) as error:
            read_config(cfg)
        assert str(error.value).startswith(f"{YAML_KEYS[key]} ({value!r}) must be ")


def test_options_are_equal_in_both_kinds(lazy_file):
    opts = {
        "SOLVER.MAX_ITER": 7, "SOLVER.IMAGES_PER_GPU": 2, "SOLVER.SCALE_LR.ENABLED": True,
        "SOLVER.EMA.DECAY": 0.5, "DATALOADER.BAD_DATA.ACTION": "skip", "SEED": 5,
        "MODEL.WSBCN.SYNC_GROUP_SIZE": "node", "TEST.EVAL_PERIOD": 3, "OUTPUT_DIR": "here",
        "SOLVER.STOP_SIGNALS": "('SIGTERM',)", "SOLVER.SSN_FULL_AT": 0.5,
    }  # fmt: skip
    yaml = load_config(resolve_config_file(ZOO), [str(x) for pair in opts.items() for x in pair])
    assert isinstance(yaml, CfgNode)
    twins = {twin: key for key, twin in YAML_KEYS.items()}
    overrides = [
        f"train.{twins[key]}={'[SIGTERM]' if key == 'SOLVER.STOP_SIGNALS' else value}"
        for key, value in opts.items()
    ]
    a, b = read_config(load_config(lazy_file, overrides)).options, read_config(yaml).options
    for key in opts:
        first, second = a, b
        for part in twins[key].split("."):
            first, second = getattr(first, part), getattr(second, part)
        assert first == second or list(first) == list(second), key
    assert b.checkpointer.max_to_keep is None  # as detectron2


def test_unknown_options_are_refused_with_the_nearest_and_all_at_once(lazy_file):
    with pytest.raises(ConfigError) as error:
        read_config(load_config(lazy_file, ["train.ema.dekay=0.5", "train.max_iter=0"]))
    first, second = str(error.value).splitlines()
    assert "train.ema.dekay: no such option; did you mean decay?" in str(error.value)
    assert "train.max_iter (0) must be a whole number, 1 or more" in first + second
    with pytest.raises(ConfigError, match=r"train\.ema \(3\) must hold the options enabled, decay"):
        read_config(load_config(lazy_file, ["train.ema=3"]))
