"""Give a checkpoint SN's batch averages: running statistics averaged plainly over training batches.

A run with train.batch_average_iters evaluates with them and ends with them. This makes them for
another checkpoint, on one process: of a run without, or from the middle of one. Everything else in
the file stays.
"""

from __future__ import annotations

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2

# isort: split

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from wsbcn_d2 import data  # noqa: F401  (registers its datasets)
from wsbcn_d2.checkpoint import WSBCNCheckpointer
from wsbcn_d2.checkpoint.files import replacing
from wsbcn_d2.checkpoint.reading import read_checkpoint
from wsbcn_d2.data.seeding import seeded
from wsbcn_d2.engine import load_config, read_config, resolve_config_file
from wsbcn_d2.errors import ConfigError, exit_with_message
from wsbcn_d2.norms import update_batch_average

__all__ = ["batch_average", "main"]

logger = logging.getLogger("wsbcn_d2.batch_average")

EPILOG = """
examples:

  average over 200 batches of 2 images, as the run had on each of its GPUs
    $ python tools/batch_average.py output/model_0089999.pth averaged.pth --images-per-gpu 2

  evaluate the result
    $ python train_net.py --config-file output/config.yaml --eval-only \\
        train.init_checkpoint=averaged.pth
"""


def batch_average(
    source: str,
    target: str,
    config_file: str,
    images_per_gpu: int,
    num_iters: int = 200,
    opts: Sequence[str] = (),
) -> None:
    """Write ``source`` with batch averages to ``target``.

    Args:
        source: a checkpoint of the whole model.
        target: the new file; it appears whole or not at all.
        config_file: the run's, for the model and the training data.
        images_per_gpu: images of a batch: as many as a process saw at once in training.
        num_iters: batches.
        opts: overrides of the config.

    Raises:
        CheckpointError: ``source`` cannot be read, or lacks a parameter of the model.
        ConfigError: the config is wrong, or its model has no norm with a batch average.
    """
    size = ["dataloader.train.total_batch_size", "train.images_per_gpu"]
    if config_file.endswith(".yaml") and "_target_" not in Path(config_file).read_text():
        size = ["SOLVER.IMS_PER_BATCH", "SOLVER.IMAGES_PER_GPU"]
        batch = [word for key in size for word in (key, str(images_per_gpu))]
    else:
        batch = [f"{key}={images_per_gpu}" for key in size]
    config = read_config(load_config(config_file, [*opts, *batch]), opts=opts)
    model = config.build_model()
    WSBCNCheckpointer(model, complete=True).load(source)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seed = max(config.options.seed, 0)
    with EventStorage(), seeded("batch average", seed):
        update_batch_average(model, config.build_train_loader(seed), num_iters)
    changed = {n: b.cpu() for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    if not changed:
        raise ConfigError(
            f"the model of {config_file} has no norm with a batch average: SN, SyncSN, SSN, "
            "BatchBCN and SyncBCN have one where they are trained"
        )
    content = read_checkpoint(source)
    state = content.get("model", content)
    state.update(changed)
    with replacing(target) as file:
        torch.save(content, file)
    logger.info(
        "%s is %s with averages over %d batches of %d image(s) in %d buffers",
        *(target, source, num_iters, images_per_gpu, len(changed)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Exit with one message where it cannot be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="the checkpoint")
    parser.add_argument("target", metavar="OUT", help="the new file, ….pth")
    parser.add_argument(
        "--images-per-gpu", type=int, required=True, metavar="N", help="as the training had them"
    )
    parser.add_argument(
        "--num-iters", type=int, default=200, metavar="K", help="batches (default: 200)"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", default="", help="default: config.yaml beside IN"
    )
    parser.add_argument("opts", nargs="*", help="overrides, as train_net.py takes them")
    args = parser.parse_intermixed_args(argv)
    setup_logger(name="wsbcn_d2")
    with exit_with_message("batch_average.py"):
        beside = os.path.join(os.path.dirname(args.source), "config.yaml")
        if not args.config_file and not os.path.isfile(beside):
            if not os.path.isfile(args.source):
                raise ConfigError(f"{args.source} is not there")
            raise ConfigError(f"{beside} is not there: name the run's config with --config-file")
        config_file = resolve_config_file(args.config_file or beside)
        batch_average(
            *(args.source, args.target, config_file),
            *(args.images_per_gpu, args.num_iters, args.opts),
        )


if __name__ == "__main__":
    main()
