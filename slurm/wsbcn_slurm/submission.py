"""One submission: what it leaves in the runs' folders, and the jobs."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import submitit
from submitit.helpers import clean_env

from wsbcn_d2.errors import UserError

from .batch_script import make_executor, script_text
from .profile import Profile
from .record import ROOT, copy_code, describe_commit, describe_environment
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .precheck import Plan
    from .task import TrainingTask

__all__ = ["Submission"]

_SLURM_CONF = os.environ.get("SLURM_CONF")


class Submission:
    """A job, or an array of them.

    Args:
        args: of the command line.
        profile: resources.
        plans: the runs.
        base: the folder of the submission; without a sweep that of the run.
    """

    def __init__(
        self, args: argparse.Namespace, profile: Profile, plans: Sequence[Plan], base: RunFolder
    ) -> None:
        self._args = args
        self._profile = profile
        self._plans = plans
        self._runs = [RunFolder(plan.output_dir) for plan in plans]
        self._base = base
        self._folder = base.next_submission()
        self._code = self._folder / "code"
        self._name = args.name or base.output_dir.name

    def script(self) -> str:
        """The script that sbatch gets."""
        executor = self._executor(self._name, self._folder, self._runs)
        return script_text(executor, len(self._runs))

    def test(self) -> None:
        """Ask SLURM whether the jobs can ever run; some clusters accept those that cannot.

        Raises:
            UserError: with SLURM's answer.
        """
        command = ["sbatch", "--test-only"]
        with _outside_of_jobs():
            done = subprocess.run(
                command, input=self.script(), capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            raise UserError(_one_line(done.stderr) + _partitions())

    def write(self, command: str) -> None:
        """Copy the code, and leave a record in each run's folder.

        Args:
            command: what the user typed.
        """
        self._base.new_submission()
        copy_code(self._code)
        commit, patch = describe_commit()
        records = {
            "command.txt": f"cd {shlex.quote(os.getcwd())}\n{command}\n",
            "commit.txt": f"{commit}\n",
            "diff.patch": patch,
            "environment.txt": describe_environment(),
        }
        for plan, run in zip(self._plans, self._runs, strict=True):
            alone = run.output_dir == self._base.output_dir
            folder = self._folder if alone else run.new_submission()
            for name, text in records.items():
                (folder / name).write_text(text, encoding="utf-8")
            plan.save_config(folder / "config.yaml")
            run.write_run(max_iter=plan.max_iter, images=plan.images, nodes=self._profile.nodes)

    def submit(self) -> list[str]:
        """Submit the jobs, and return their ids.

        Raises:
            UserError: sbatch refused.
        """
        executor = self._executor(self._name, self._folder, self._runs)
        return self._submit(executor, self._runs, self._tasks())

    def submit_evaluation(self, jobs: Sequence[str]) -> list[str]:
        """Submit jobs that evaluate the final weights when ``jobs`` have completed.

        Args:
            jobs: ids of those that train.

        Returns:
            ids of those that evaluate.

        Raises:
            UserError: sbatch refused.
        """
        runs = [RunFolder(run.output_dir / "eval") for run in self._runs]
        folder = self._folder / "eval"
        folder.mkdir()
        for run in runs:
            run.new_submission()
            run.write_run(max_iter=0, images=0, nodes=self._profile.nodes)
        # Each of an array's evaluations waits for its own run.
        kind = "aftercorr" if len(jobs) > 1 else "afterok"
        dependency = f"{kind}:{jobs[0].partition('_')[0]}"
        executor = self._executor(f"{self._name}-eval", folder, runs, dependency)
        return self._submit(executor, runs, self._tasks(evaluation=True))

    def run_here(self) -> None:
        """Run on this machine, one run after the other.

        Raises:
            UserError: one has failed, or was stopped.
        """
        from .local import run_here

        for run, task in zip(self._runs, self._tasks(), strict=True):
            run_here(task, run, self._folder, self._code, self._profile)

    def _tasks(self, evaluation: bool = False) -> list[TrainingTask]:
        from .task import TrainingTask

        script, directory = self._in_copy(self._args.script), os.getcwd()
        evaluate = evaluation or self._args.eval_only
        tasks = []
        for plan in self._plans:
            folder, opts = plan.output_dir, plan.opts
            if evaluation:
                folder = plan.output_dir / "eval"
                weights = plan.output_dir / "model_final.pth"
                opts = [*opts, *plan.config.override("output_dir", folder)]
                opts += plan.config.override("init_checkpoint", weights)
            arguments = ["--config-file", self._in_copy(plan.config_file)]
            arguments += ["--num-gpus", str(self._profile.tasks)]
            arguments += ["--eval-only"] if evaluate else []
            arguments += ["--resume"] if self._args.resume and not evaluation else []
            arguments += opts
            timeout = self._profile.rendezvous_timeout
            tasks.append(TrainingTask(script, arguments, str(folder), directory, timeout))
        return tasks

    def _in_copy(self, name: str) -> str:
        """The path of a file in the copy of the code, if it belongs to it."""
        path = Path(name).resolve()
        return str(self._code / path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)

    def _executor(
        self, name: str, folder: Path, runs: Sequence[RunFolder], dependency: str | None = None
    ) -> submitit.SlurmExecutor:
        parallel = self._args.max_parallel
        return make_executor(name, folder, self._code, runs, self._profile, parallel, dependency)

    def _submit(
        self,
        executor: submitit.SlurmExecutor,
        runs: Sequence[RunFolder],
        tasks: Sequence[TrainingTask],
    ) -> list[str]:
        if len(runs) > 1:
            # Each job of an array finds its run by its index.
            links = executor.folder / "runs"
            links.mkdir()
            for i, run in enumerate(runs):
                (links / str(i)).symlink_to(run.folder)
        try:
            with _outside_of_jobs(), executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit's own, for whatever sbatch said
            raise UserError(f"sbatch: {_one_line(error)}") from error
        for run, job in zip(runs, jobs, strict=True):
            run.note("submitted", job.job_id)
        return [job.job_id for job in jobs]


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
