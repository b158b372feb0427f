"""Submit a training to SLURM: the same recipe, overrides and meaning as train_net.py."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsbcn_d2.errors import ConfigError, UserError, exit_with_message

from .job_states import queue
from .profile import Profile, add_arguments, make_profile, read_profile
from .record import ROOT
from .run_folder import RunFolder
from .submission import Submission
from .sweep import combinations, run_name

if TYPE_CHECKING:
    from .precheck import Plan

__all__ = ["argument_parser", "main"]

EPILOG = """
examples:

  four nodes of eight GPUs, 32 processes; the rest is in slurm/clusters/mycluster.yaml
    $ python slurm/submit.py --cluster mycluster --nodes 4 --gpus-per-node 8 \\
        --config-file configs/finetune/mask_rcnn_r50_fpn_ws_gn_2x.py train.output_dir=output/a

  see what would run, and the script that sbatch would get; nothing is submitted
    $ python slurm/submit.py --cluster mycluster --dry-run --config-file …

  three learning rates, two at a time, each evaluated when it is done
    $ python slurm/submit.py --cluster mycluster --config-file … \\
        --sweep optimizer.lr=0.01,0.02,0.04 --max-parallel 2 --then-eval train.output_dir=output/lr

python slurm/status.py output/* shows how they are; python slurm/cancel.py output/a ends one.
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line. Fields of a profile default to None: as `Profile` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run = parser.add_argument_group("the run, as for train_net.py")
    run.add_argument("--config-file", default="", metavar="FILE", help="recipe or yaml config")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    run.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="overrides",
        help="path.key=value for lazy configs, KEY VALUE pairs for yaml configs",
    )
    how = parser.add_argument_group("how to submit it")
    how.add_argument("--cluster", help="profile: a name in slurm/clusters, or a yaml file")
    how.add_argument(
        "--script",
        default=str(ROOT / "train_net.py"),
        help="what to run, such as a project's train_net.py (default: this project's)",
    )
    how.add_argument("--name", help="the job's name (default: that of the output folder)")
    how.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,C|FILE",
        help="one run for each value; several: for each combination; a file: for each line of it",
    )
    how.add_argument("--max-parallel", type=int, default=256, help="runs of a sweep at a time")
    how.add_argument(
        "--then-eval",
        action="store_true",
        help="evaluate the final weights in a job of their own, to eval/ in the output folder",
    )
    how.add_argument("--dry-run", action="store_true", help="print sbatch's script, submit nothing")
    how.add_argument("--local", action="store_true", help="run on this machine, without SLURM")
    add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print the plan, submit."""
    parser = argument_parser()
    args = parser.parse_args(arguments)
    command = shlex.join([sys.executable, *sys.argv] if arguments is None else arguments)
    # What packages warn of when they are imported would hide what this has to say.
    warnings.simplefilter("ignore")
    with exit_with_message("submit.py"):
        if args.cluster:
            # Again, now replacing what the profile says, or adding to it.
            args = parser.parse_args(arguments, read_profile(args.cluster))
        profile = make_profile(args)
        if args.local and profile.nodes > 1:
            raise ConfigError(f"nodes ({profile.nodes}) must be 1 with --local")
        plans, base = _check(args, profile)
        _print_plan(plans, profile, args)
        submission = Submission(args, profile, plans, base)
        if args.dry_run:
            print(submission.script())
            return
        if args.local:
            submission.write(command)
            submission.run_here()
            return
        submission.test()
        submission.write(command)
        jobs = submission.submit()
        for plan, job in zip(plans, jobs, strict=True):
            print(f"Submitted job {job}: {plan.output_dir}")
        if args.then_eval:
            for job in submission.submit_evaluation(jobs):
                print(f"Submitted job {job}: evaluation when that is done")
        folders = shlex.join([str(plan.output_dir) for plan in plans])
        print(f"Log: {RunFolder(plans[0].output_dir).log}")
        print(f"State: python slurm/status.py {folders}")


def _check(args: argparse.Namespace, profile: Profile) -> tuple[list[Plan], RunFolder]:
    """Return the runs, and the folder of all of them together."""
    # After the command line: detectron2 takes seconds to import.
    from .precheck import check_run

    plans = [check_run(args, args.opts, profile)]
    base = RunFolder(plans[0].output_dir)
    if args.sweep:
        config = plans[0].config
        plans = [
            check_run(
                args,
                [*args.opts, *run, *config.override("output_dir", base.output_dir / run_name(run))],
                profile,
            )
            for run in combinations(args.sweep, pairs=not config.lazy)
        ]
    for plan in plans:
        # Two jobs in one folder would write over each other's checkpoints.
        active = queue(RunFolder(plan.output_dir).jobs())
        if active:
            raise UserError(
                f"{plan.output_dir}: job {', '.join(active)} is still in the queue; end it with "
                f"python slurm/cancel.py {plan.output_dir}"
            )
    return plans, base


def _print_plan(plans: Sequence[Plan], profile: Profile, args: argparse.Namespace) -> None:
    first = plans[0]
    few = f" (at least {profile.min_nodes})" if profile.min_nodes else ""
    print(f"Run:        {'evaluate' if args.eval_only else 'train'} {args.config_file}")
    if len(plans) > 1:
        print(f"Sweep:      {len(plans)} runs, at most {args.max_parallel} at a time")
    total = profile.nodes * profile.tasks
    print(f"Processes:  {profile.nodes} node(s){few} × {profile.tasks} = {total}")
    for line in first.batch:
        print(f"Batch:      {line}")
    if not args.eval_only:
        size = first.checkpoint_bytes / 2**20
        print(f"Iterations: {first.max_iter}, {first.evaluations} evaluation(s)")
        print(f"Checkpoints: {first.checkpoints}, about {size:.0f} MB each")
    print(f"Model:      {first.parameters / 1e6:.1f} million parameters")
    for plan in plans:
        print(f"Output:     {plan.output_dir}")
