"""Submit a training to SLURM: the same recipe, overrides and meaning as train_net.py."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import submitit
from cluster_profile import Profile, ProfileError, add_arguments, load_profile
from code_snapshot import ROOT, describe, take
from run_folder import RunFolder
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor
from sweep import SweepError, combinations, run_name
from training_task import TrainingTask

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

_SLURM_CONF = os.environ.get("SLURM_CONF")
_SRUN_ARGS = ("--output=all", "--label", "--kill-on-bad-exit=1", "--distribution=block")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|AUTH", re.IGNORECASE)


class SubmitError(RuntimeError):
    """Why nothing was submitted; one clear message."""


def argument_parser() -> argparse.ArgumentParser:
    """The command line. Fields of a cluster profile default to None: as the profile says."""
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
    how.add_argument("--local", action="store_true", help="run in processes here, not in SLURM")
    add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print the plan, submit."""
    args = argument_parser().parse_args(arguments)
    command = shlex.join([sys.executable, *sys.argv] if arguments is None else arguments)
    # What packages warn of when they are imported would hide what this has to say.
    warnings.simplefilter("ignore")
    # After the command line: detectron2 takes seconds to import.
    from wsbcn_d2.engine import ConfigError

    try:
        options = {each.name: getattr(args, each.name) for each in fields(Profile)}
        profile = load_profile(args.cluster, options)
        if args.local and profile.nodes > 1:
            raise ProfileError(f"nodes ({profile.nodes}) must be 1 with --local")
        _submit(args, profile, command)
    except (ConfigError, ProfileError, SweepError, SubmitError) as error:
        sys.exit(f"submit.py: error: {error}")


def _submit(args: argparse.Namespace, profile: Profile, command: str) -> None:
    from precheck import check_run

    plans = [check_run(args, args.opts, profile)]
    base = RunFolder(plans[0].output_dir)
    if args.sweep:
        sweeps = combinations(args.sweep, pairs=not plans[0].config.lazy)
        plans = [
            check_run(
                args,
                [
                    *args.opts,
                    *run,
                    *plans[0].config.override("output_dir", base.output_dir / run_name(run)),
                ],
                profile,
            )
            for run in sweeps
        ]
    for plan in plans:
        _refuse_active(RunFolder(plan.output_dir))
    _print_plan(plans, profile, args)
    batch = _Batch(args, profile, plans, base)
    if args.dry_run:
        print(batch.script())
        return
    batch.write(command)
    try:
        jobs = batch.submit()
    except SubmitError:
        batch.remove()
        raise
    if args.local:
        return
    for plan, job in zip(plans, jobs, strict=True):
        print(f"Submitted job {job}: {plan.output_dir}")
    if args.then_eval:
        for job in batch.submit_evaluation(jobs):
            print(f"Submitted job {job}: evaluation when that is done")
    folders = shlex.join([str(plan.output_dir) for plan in plans])
    print(f"Log: {RunFolder(plans[0].output_dir).log}\nState: python slurm/status.py {folders}")


def _print_plan(plans: Sequence[Any], profile: Profile, args: argparse.Namespace) -> None:
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


def _refuse_active(run: RunFolder) -> None:
    """Two jobs in one folder would write over each other's checkpoints."""
    from job_states import queue

    jobs = run.jobs()
    active = [job for job in queue(jobs)] if jobs else []
    if active:
        raise SubmitError(
            f"{run.output_dir}: job {', '.join(active)} is still in the queue; end it with "
            f"python slurm/cancel.py {run.output_dir}"
        )


class _Batch:
    """One submission: a job, or an array of them."""

    def __init__(
        self, args: argparse.Namespace, profile: Profile, plans: Sequence[Any], base: RunFolder
    ) -> None:
        self._args = args
        self._profile = profile
        self._plans = plans
        self._runs = [RunFolder(plan.output_dir) for plan in plans]
        self._base = base
        self._name = args.name or base.output_dir.name
        self._folder = base.next_submission()
        self._code = self._folder / "code"
        self._made: list[Path] = []

    # --- what the jobs do ---

    def _tasks(self, evaluation: bool = False) -> list[TrainingTask]:

        profile = self._profile
        tasks = []
        for plan, run in zip(self._plans, self._runs, strict=True):
            opts = plan.opts
            if evaluation:
                final = plan.output_dir / "model_final.pth"
                folder = plan.output_dir / "eval"
                opts = [
                    *opts,
                    *plan.config.override("output_dir", folder),
                    *plan.config.override("init_checkpoint", final),
                ]
                run = RunFolder(folder)
            tasks.append(
                TrainingTask(
                    output_dir=str(run.output_dir),
                    config_file=self._config_in_snapshot(plan.config_file),
                    opts=list(opts),
                    resume=self._args.resume and not evaluation,
                    eval_only=self._args.eval_only or evaluation,
                    working_directory=os.getcwd(),
                    max_requeues=profile.max_requeues,
                    grace=profile.grace,
                    rendezvous_timeout=profile.rendezvous_timeout,
                )
            )
        return tasks

    def _config_in_snapshot(self, config_file: str) -> str:
        path = Path(config_file).resolve()
        if path.is_relative_to(ROOT):
            return str(self._code / path.relative_to(ROOT))
        return config_file

    # --- the script ---

    def script(self) -> str:
        """What sbatch would be given."""
        executor = self._executor(self._folder, self._runs)
        if len(self._plans) > 1:
            executor.parameters["map_count"] = len(self._plans)
        return executor._make_submission_file_text(executor._submitit_command_str, "")

    def _executor(
        self, folder: Path, runs: Sequence[RunFolder], **parameters: Any
    ) -> SlurmExecutor:
        profile = self._profile
        kind = _Scripted if self._args.dry_run else SlurmExecutor
        python = profile.python or shlex.quote(sys.executable)
        executor = kind(folder, max_num_timeout=profile.max_requeues, python=python)
        array = len(runs) > 1
        log = folder / "runs" / "%a" / "log.txt" if array else runs[0].log
        extra = {
            "output": str(log),
            "chdir": str(self._code / "slurm"),
            "requeue": True,
            **profile.sbatch,
        }
        if profile.mem is not None:
            extra["mem"] = profile.mem
        srun_args = [*_SRUN_ARGS, f"--cpus-per-task={profile.cpus_per_task}"]
        tasks = {"ntasks_per_node": profile.tasks, "cpus_per_task": profile.cpus_per_task}
        if profile.min_nodes not in (None, profile.nodes):
            # SLURM would keep the first start's number of tasks, and a requeued job wait for as
            # many nodes again. So the job asks for CPUs, and only srun for tasks.
            tasks = {}
            extra["nodes"] = f"{profile.min_nodes}-{profile.nodes}"
            extra["mincpus"] = profile.tasks * profile.cpus_per_task
            srun_args.append(f"--ntasks-per-node={profile.tasks}")
        if "dependency" in parameters:
            extra["kill-on-invalid-dep"] = "yes"
        optional = {
            "partition": profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "constraint": profile.constraint,
            "gpus_per_node": profile.gpus_per_node or None,
        }
        executor.update_parameters(
            **{
                "job_name": self._name,
                "time": profile.minutes,
                "nodes": profile.nodes,
                "signal_delay_s": profile.grace,
                "array_parallelism": self._args.max_parallel,
                "stderr_to_stdout": True,
                "setup": self._setup(runs, folder),
                "teardown": self._teardown(),
                "srun_args": [*srun_args, *profile.srun_args],
                "additional_parameters": extra,
                **tasks,
                **{name: value for name, value in optional.items() if value is not None},
                **parameters,
            }
        )
        return executor

    def _setup(self, runs: Sequence[RunFolder], folder: Path) -> list[str]:
        python = self._profile.python or shlex.quote(sys.executable)
        if len(runs) > 1:
            run = f'{shlex.quote(str(folder / "runs"))}/"$SLURM_ARRAY_TASK_ID"'
        else:
            run = shlex.quote(str(runs[0].folder))
        code = shlex.quote(str(self._code))
        environment = {"DETECTRON2_DATASETS": os.path.abspath(_datasets()), **self._profile.env}
        return [
            f"run={run}",
            "restart=${SLURM_RESTART_COUNT:-0}",
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            *self._profile.setup,
            f'exec > >(exec {python} {code}/slurm/split_log.py "$run") 2>&1',
            "splitter=$!",
            'echo "=== job $SLURM_JOB_ID, restart $restart, on $SLURM_JOB_NODELIST: $(date) ==="',
        ]

    def _teardown(self) -> list[str]:
        """Requeue or fail, when srun has ended without the training's having decided it."""
        profile = self._profile
        return [
            "status=$?",
            'attempt="$SLURM_JOB_ID $restart"',
            'test -z "$SLURM_ARRAY_JOB_ID" ||'
            ' attempt="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID $restart"',
            'echo "=== job $SLURM_JOB_ID, restart $restart: srun ended with status $status ==="',
            "# Killed by the signal before it could handle it",
            f"if [ $status -eq 140 ] && [ $restart -lt {profile.max_requeues} ]; then",
            '  scontrol requeue "$SLURM_JOB_ID"',
            "  sleep 60",
            "fi",
            "# A process is gone, but none has raised: if a node is too, SLURM will say so in time",
            'probe="srun --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --overlap true"',
            'if [ $status -ne 0 ] && [ "$(cat "$run/failed" 2>/dev/null)" != "$attempt" ] &&'
            " ! timeout 60 $probe; then",
            '  echo "=== a node does not answer: waiting for SLURM to requeue the job ==="',
            f"  sleep {profile.node_failure_wait}",
            "fi",
            "exec >&- 2>&-",
            "wait $splitter",
            "exit $status",
        ]

    # --- submission ---

    def write(self, command: str) -> None:
        """Take the snapshot, and leave a record in each run's folder."""
        self._made = [self._folder]
        self._base.new_submission()
        take(self._code)
        commit, patch = describe()
        for i, (plan, run) in enumerate(zip(self._plans, self._runs, strict=True)):
            folder = self._folder
            if run.output_dir != self._base.output_dir:
                folder = run.new_submission()
                self._made.append(folder)
            records = {
                "command.txt": f"cd {shlex.quote(os.getcwd())}\n{command}\n",
                "commit.txt": f"{commit}\n",
                "diff.patch": patch,
                "environment.txt": _environment(),
            }
            for name, text in records.items():
                (folder / name).write_text(text, encoding="utf-8")
            _save_config(plan, folder / "config.yaml")
            run.write_run(
                max_iter=plan.max_iter,
                images=plan.images,
                nodes=self._profile.nodes,
                tasks_per_node=self._profile.tasks,
                eval_only=self._args.eval_only,
                submission=folder.name,
            )
            if len(self._runs) > 1:
                link = self._folder / "runs" / str(i)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(run.folder)

    def remove(self) -> None:
        """Undo `write`, when nothing was submitted."""
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)
        for run in [*self._runs, self._base]:
            if not run.jobs():
                shutil.rmtree(run.folder, ignore_errors=True)
            for folder in (run.output_dir, run.output_dir.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def submit(self) -> list[str]:
        """Returns the jobs' ids.

        Raises:
            SubmitError: sbatch refused.
        """
        if self._args.local:
            from local_run import run_here

            for run, task in zip(self._runs, self._tasks(), strict=True):
                run_here(task, run, self._folder, self._code, self._profile)
            return []
        executor = self._executor(self._folder, self._runs)
        self._test(executor)
        return self._submit_tasks(executor, self._tasks(), self._runs)

    def submit_evaluation(self, jobs: Sequence[str]) -> list[str]:
        """Jobs that evaluate the final weights when ``jobs`` have completed."""
        runs = [RunFolder(run.output_dir / "eval") for run in self._runs]
        folder = self._folder / "eval"
        folder.mkdir()
        for i, run in enumerate(runs):
            run.new_submission()
            run.write_run(
                max_iter=0,
                images=0,
                nodes=self._profile.nodes,
                tasks_per_node=self._profile.tasks,
                eval_only=True,
                submission="1",
            )
            if len(runs) > 1:
                (folder / "runs").mkdir(exist_ok=True)
                (folder / "runs" / str(i)).symlink_to(run.folder)
        # Each of an array's evaluations waits for its own run.
        kind = "aftercorr" if len(jobs) > 1 else "afterok"
        first = jobs[0].partition("_")[0]
        executor = self._executor(
            folder, runs, job_name=f"{self._name}-eval", dependency=f"{kind}:{first}"
        )
        return self._submit_tasks(executor, self._tasks(evaluation=True), runs)

    def _submit_tasks(
        self, executor: SlurmExecutor, tasks: Sequence[TrainingTask], runs: Sequence[RunFolder]
    ) -> list[str]:
        try:
            with _outside_of_jobs(), executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit's own, for whatever sbatch said
            raise SubmitError(f"sbatch: {_one_line(error)}") from error
        for run, job in zip(runs, jobs, strict=True):
            run.note("submitted", job.job_id)
        return [job.job_id for job in jobs]

    def _test(self, executor: SlurmExecutor) -> None:
        """Have SLURM say whether the job can ever run; some clusters accept those that cannot."""
        script = executor._make_submission_file_text("true", "")
        with _outside_of_jobs():
            done = subprocess.run(
                ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            raise SubmitError(_one_line(done.stderr) + _partitions())


class _Scripted(SlurmExecutor):
    """Writes scripts where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that this may be running in."""
    with clean_env():
        # Not one of a job's: it says where the cluster is.
        if _SLURM_CONF is not None:
            os.environ["SLURM_CONF"] = _SLURM_CONF
        yield


def _one_line(text: object) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    lines = [re.sub(r"^(sbatch|allocation failure|error): *", "", line) for line in lines]
    return "; ".join(dict.fromkeys(lines))


def _partitions() -> str:
    command = ["sinfo", "--noheader", "--format=%P %D nodes, %c CPUs, %m MB, %G, limit %l"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return f" (partitions: {'; '.join(lines)})" if lines else ""


def _datasets() -> str:
    return os.environ.get("DETECTRON2_DATASETS", "datasets")


def _save_config(plan: Any, path: Path) -> None:
    if not plan.config.lazy:
        path.write_text(plan.config.cfg.dump(), encoding="utf-8")
        return
    from detectron2.config import LazyConfig

    LazyConfig.save(plan.config.cfg, str(path))


def _environment() -> str:
    packages = sorted(
        f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()
    )
    variables = sorted(f"{k}={v}" for k, v in os.environ.items() if not _SECRET.search(k))
    head = [f"python {platform.python_version()} ({sys.executable})", platform.platform()]
    return "\n".join([*head, f"submitit {submitit.__version__}", "", *packages, "", *variables, ""])


if __name__ == "__main__":
    main()
