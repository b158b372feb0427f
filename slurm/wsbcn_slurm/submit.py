"""Submit a training to SLURM: the same recipe, overrides and meaning as train_net.py."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from submitit.helpers import clean_env

from wsbcn_d2.errors import UserError, exit_with_message

from .job_states import queue
from .profile import add_arguments, make_profile
from .record import ROOT
from .run_folder import RunFolder
from .submission import Submission
from .sweep import combinations, run_name

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
    """The command line."""
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
    add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print the plan, submit."""
    args = argument_parser().parse_args(arguments)
    command = shlex.join([sys.executable, *sys.argv] if arguments is None else arguments)
    # What packages warn of when they are imported would hide what this has to say.
    warnings.simplefilter("ignore")
    # Without the variables of a job that this may be running in, but for where the cluster is.
    slurm_conf = {k: v for k, v in os.environ.items() if k == "SLURM_CONF"}
    with exit_with_message("submit.py"), clean_env():
        os.environ.update(slurm_conf)
        submission = _prepare(args)
        if args.dry_run:
            print(submission.batch_script())
            return
        submission.test()
        submission.write(command)
        jobs = submission.submit()
        for plan, job in zip(submission.plans, jobs, strict=True):
            print(f"Submitted job {job}: {plan.output_dir}")
        if args.then_eval:
            for job in submission.evaluation(jobs).submit():
                print(f"Submitted job {job}: evaluation when that is done")
        folders = shlex.join([str(run.output_dir) for run in submission.runs])
        print(f"Log: {submission.runs[0].log}")
        print(f"State: python slurm/status.py {folders}")


def _prepare(args: argparse.Namespace) -> Submission:
    """Check the runs and print what they will do; nothing is written."""
    # After the command line: detectron2 takes seconds to import.
    from .precheck import check_run

    profile = make_profile(args)
    plans = [check_run(args, args.opts, profile)]
    base, config = RunFolder(plans[0].output_dir), plans[0].config
    if args.sweep:
        runs = combinations(args.sweep, pairs=not config.lazy)
        folders = [config.override("output_dir", base.output_dir / run_name(run)) for run in runs]
        plans = [
            check_run(args, [*args.opts, *run, *folder], profile)
            for run, folder in zip(runs, folders, strict=True)
        ]
    for plan in plans:
        # Two jobs in one folder would write over each other's checkpoints.
        active = queue(RunFolder(plan.output_dir).jobs())
        if active:
            raise UserError(
                f"{plan.output_dir}: job {', '.join(active)} is still in the queue; end it with "
                f"python slurm/cancel.py {plan.output_dir}"
            )
    few = f" (at least {profile.min_nodes})" if profile.min_nodes else ""
    print(f"Run:        {'evaluate' if args.eval_only else 'train'} {args.config_file}")
    if len(plans) > 1:
        print(f"Sweep:      {len(plans)} runs, at most {args.max_parallel} at a time")
    total = profile.nodes * profile.tasks
    print(f"Processes:  {profile.nodes} node(s){few} × {profile.tasks} = {total}")
    outputs = [f"Output:     {plan.output_dir}" for plan in plans]
    print("\n".join([*plans[0].summary, *outputs]))
    flags = [
        f"--{name}" for name in ("eval-only", "resume") if getattr(args, name.replace("-", "_"))
    ]
    options = {
        "job_name": args.name or base.output_dir.name,
        "array_parallelism": args.max_parallel,
    }
    folder = base.next_submission()
    return Submission(plans, profile, args.script, flags, folder, folder / "code", options)
