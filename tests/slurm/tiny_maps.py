"""The digits' recipe of projects/semantic_segmentation, slow where a test says so."""

from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig

from tests.slurm.accidents import SlowMapper

_PROJECT = Path(__file__).resolve().parents[2] / "projects" / "semantic_segmentation"
_recipe = LazyConfig.load(str(_PROJECT / "configs/digits/digits_deeplab_v3_plus_r18_syncsn.py"))
model, dataloader, optimizer = _recipe.model, _recipe.dataloader, _recipe.optimizer
lr_multiplier, train = _recipe.lr_multiplier, _recipe.train

dataloader.train.mapper = L(SlowMapper)(
    mapper=dataloader.train.mapper, seconds=0.0, until="", accident=""
)
dataloader.train.num_workers = dataloader.test.num_workers = 0

train.update(eval_period=0, log_period=1, device="cpu")
train.checkpointer.period = 1000
train.vis.num_images = 1
