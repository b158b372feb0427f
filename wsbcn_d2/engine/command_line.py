"""From the command line to the processes of a run, and one process of it."""

from __future__ import annotations

import argparse
import copy
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .. import __version__
from ..checkpoint.files import disk_error, root_os_error
from ..checks import check_config, report_advice
from ..config import RunConfig, Task, load_config, read_config, resolve_config_file
from ..errors import UserError, exit_with_message
from .evaluation import Results, evaluate
from .launch import end_process, is_consequence, launch, planned_world_size, under_torchrun
from .preemption import forward_signals
from .train import train

__all__ = ["argument_parser", "check_data", "main", "run", "run_command_line"]

logger = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def argument_parser(epilog: str = "") -> argparse.ArgumentParser:
    """detectron2's arguments and ours; ``--dist-url`` picks a free port for one machine."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        default="",
        help="your own images and labels (COCO, VOC, YOLO, LabelMe, CSV), as data.train=FOLDER",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look the config over (docs/checks.md), say what was found, and start nothing",
    )
    parser.set_defaults(dist_url="auto")
    return parser


def run_command_line(task: Task | None = None, epilog: str = "") -> None:
    """The ``main`` of a script: parse the command line and `run`; exit with one message on errors.

    Args:
        task: what is learned; `Detection` if None.
        epilog: of the script's ``--help``.

    Raises:
        SystemExit: with status 1 after an error, `EXIT_STOPPED` after a stop signal.
    """
    args = argument_parser(epilog).parse_args()
    with exit_with_message(os.path.basename(sys.argv[0])):
        run(args, task)
    if under_torchrun():
        end_process(0)


def run(args: argparse.Namespace, task: Task | None = None) -> None:
    """Check the command line and its config, then start the processes that run `main`.

    Args:
        args: from `argument_parser`.
        task: what is learned; `Detection` if None.

    Raises:
        ConfigError: a mistake in the command line or config, before any process is started.
        UserError: another error that the user can put right, from any process.
        RankFailedError: one of several processes failed otherwise.
        SystemExit: with status `EXIT_STOPPED`, when a signal stopped the training in good order.
    """
    world_size = planned_world_size(args.num_gpus, args.num_machines, args.machine_rank)
    config = _load(args, task, world_size)
    check_config(config, args)
    if args.num_machines == 1 and not under_torchrun():
        check_data(config, args)
    if getattr(args, "check", False):
        print(f"{args.config_file}: {report_advice(config)}")
        return
    # This process only waits, unless it is the one that trains.
    spawns = world_size > 1 and not under_torchrun()
    with forward_signals(config.options.signal_numbers() if spawns else []):
        launch(
            main,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            # Configs cannot be pickled: processes that are spawned read it again.
            (args, task, None if spawns else config),
            device=config.device,
        )


def main(
    args: argparse.Namespace, task: Task | None = None, config: RunConfig | None = None
) -> Results:
    """One process of a run.

    Args:
        args: from `argument_parser`.
        task: what is learned; `Detection` if None.
        config: the run's; None reads it from the file in ``args``.

    Returns:
        the last evaluation's results (on rank 0).
    """
    config = config or _load(args, task, comm.get_world_size())
    try:
        _set_up(config, args)
        if args.num_machines > 1 or under_torchrun():
            check_data(config, args)
        return evaluate(config, args.resume) if args.eval_only else train(config, args.resume)
    except Exception as error:
        cause = root_os_error(error)
        if isinstance(error, UserError) or cause is None or cause.errno not in _DISK_FULL:
            raise
        path = cause.filename or os.path.join(config.options.output_dir, "…")
        raise UserError(disk_error(path, cause)) from error


def check_data(config: RunConfig, args: argparse.Namespace) -> None:
    """Run the task's check of the datasets once, on rank 0.

    The process that starts the others calls it; where torchrun or several machines start them, all
    of them do.

    Args:
        config: of the run, whose task is asked.
        args: ``eval_only`` is read.

    Raises:
        UserError: the run would fail on its data or learn from wrong labels.
        SystemExit: the same, on the other ranks under torchrun, so that there is one message.
    """
    message = ""
    if comm.is_main_process():
        try:
            config.task.check_data(config, ["test"] if args.eval_only else ["train", "test"])
        except UserError as error:
            message = str(error)
    message = comm.all_gather(message)[0]
    if message and under_torchrun() and not comm.is_main_process():
        raise SystemExit(1)
    if message:
        raise UserError(message)


def _load(args: argparse.Namespace, task: Task | None, world_size: int) -> RunConfig:
    # Registers its datasets, which a config may then name.
    from .. import data  # noqa: F401

    path = resolve_config_file(args.config_file)
    cfg = load_config(path, args.opts, task, dataset=getattr(args, "dataset", ""))
    config = read_config(cfg, task, world_size=world_size, opts=args.opts)
    if not args.eval_only:
        config.count_epochs()
    return config


def _set_up(config: RunConfig, args: argparse.Namespace) -> None:
    """Loggers, config.yaml, seeds."""
    args = copy.copy(args)
    args.config_file = resolve_config_file(args.config_file)
    folder = config.options.output_dir
    # Before default_setup: its own messages are detectron2's.
    for name in ("wsbcn_d2", "py.warnings"):
        setup_logger(folder, distributed_rank=comm.get_rank(), name=name)
    logging.captureWarnings(True)
    default_setup(config.cfg, args)
    if comm.is_main_process():
        logger.info("wsbcn_d2 %s, commit %s", __version__, _commit())
    logging.getLogger("detectron2.engine.train_loop").addFilter(_shorten)
    for handler in logging.getLogger("detectron2").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(lambda record: not getattr(record, "only_in_file", False))


def _commit() -> str:
    """The checkout's, with "-dirty" where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, or copied for a job
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(
            command, cwd=root, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _shorten(record: logging.LogRecord) -> bool:
    """Log an exception that leaves the training loop without traceback where that says nothing.

    That is a `UserError`, which goes to the log file only as the command ends with it, and the
    consequences of another rank's failure.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (isinstance(error, UserError) or is_consequence(error)):
        record.msg, record.args, record.exc_info = f"{record.getMessage()} {error}", (), None
        record.only_in_file = isinstance(error, UserError)
    return True
