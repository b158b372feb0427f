"""One submission: what it leaves in the runs' folders, and the jobs."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsbcn_d2.errors import UserError

from .batch_script import make_executor, script_text
from .profile import Profile
from .record import ROOT, copy_code, describe_commit, describe_environment
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .precheck import Plan

__all__ = ["Submission"]


@dataclass(frozen=True)
class Submission:
    """A job, or an array of them.

    Args:
        plans: the runs.
        profile: resources.
        script: path of what is run.
        flags: its arguments before the overrides, such as ``--resume``.
        folder: where submitit keeps its files; it is not there yet.
        code: where the copy of the code is, or will be.
        options: submitit's, such as ``job_name``.
    """

    plans: Sequence[Plan]
    profile: Profile
    script: str
    flags: Sequence[str]
    folder: Path
    code: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> list[RunFolder]:
        """The folders of the runs."""
        return [RunFolder(plan.output_dir) for plan in self.plans]

    def batch_script(self) -> str:
        """The script that sbatch gets."""
        executor = make_executor(self.profile, self.folder, self.code, self.runs, **self.options)
        return script_text(executor, len(self.plans))

    def test(self) -> None:
        """Ask SLURM whether the jobs can ever run; some clusters accept those that cannot.

        Raises:
            UserError: with SLURM's answer.
        """
        command = ["sbatch", "--test-only"]
        done = subprocess.run(
            command, input=self.batch_script(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise UserError(_one_line(done.stderr) + _partitions())

    def write(self, command: str) -> None:
        """Copy the code, and leave a record in each run's folder.

        Args:
            command: what the user typed.
        """
        self.folder.mkdir(parents=True)
        copy_code(self.code)
        commit, patch = describe_commit()
        records = {
            "command.txt": f"cd {shlex.quote(os.getcwd())}\n{command}\n",
            "commit.txt": f"{commit}\n",
            "diff.patch": patch,
            "environment.txt": describe_environment(),
        }
        for plan, run in zip(self.plans, self.runs, strict=True):
            alone = run.folder == self.folder.parent
            folder = self.folder if alone else run.next_submission()
            folder.mkdir(parents=True, exist_ok=alone)
            for name, text in records.items():
                (folder / name).write_text(text, encoding="utf-8")
            plan.save_config(folder / "config.yaml")

    def submit(self) -> list[str]:
        """Submit the jobs, and return their ids.

        Raises:
            UserError: sbatch refused.
        """
        from .task import TrainingTask  # which imports torch

        runs, timeout = self.runs, self.profile.rendezvous_timeout
        script, directory = self._in_copy(self.script), os.getcwd()
        tasks = [TrainingTask(script, self._arguments(p), directory, timeout) for p in self.plans]
        executor = make_executor(self.profile, self.folder, self.code, runs, **self.options)
        if len(runs) > 1:
            # Each job of an array finds its run by its index.
            (self.folder / "runs").mkdir()
            for i, run in enumerate(runs):
                (self.folder / "runs" / str(i)).symlink_to(run.folder)
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit's own, for whatever sbatch said
            raise UserError(f"sbatch: {_one_line(error)}") from error
        for plan, run, job in zip(self.plans, runs, jobs, strict=True):
            run.note(
                "submitted",
                job.job_id,
                nodes=self.profile.nodes,
                max_iter=plan.max_iter,
                images=plan.images,
                metric=next(iter(plan.config.task.metrics), ""),
            )
        return [job.job_id for job in jobs]

    def evaluation(self, jobs: Sequence[str]) -> Submission:
        """Prepare a submission that evaluates the final weights when ``jobs`` have completed.

        Args:
            jobs: ids of those that train.
        """
        plans = []
        for plan in self.plans:
            folder, weights = plan.output_dir / "eval", plan.output_dir / "model_final.pth"
            opts = [*plan.opts, *plan.config.override("output_dir", folder)]
            opts += plan.config.override("init_checkpoint", weights)
            plans.append(dataclasses.replace(plan, opts=opts, output_dir=folder, max_iter=0))
            RunFolder(folder).folder.mkdir(parents=True, exist_ok=True)
        # Each of an array's evaluations waits for its own run.
        kind = "aftercorr" if len(jobs) > 1 else "afterok"
        name = f"{self.options['job_name']}-eval"
        dependency = f"{kind}:{jobs[0].partition('_')[0]}"
        options = {**self.options, "job_name": name, "dependency": dependency}
        folder = self.folder / "eval"
        folder.mkdir()
        return dataclasses.replace(
            self, plans=plans, flags=["--eval-only"], folder=folder, options=options
        )

    def _arguments(self, plan: Plan) -> list[str]:
        """The command line of the script for a run."""
        config = ["--config-file", self._in_copy(plan.config_file)]
        return [*config, "--num-gpus", str(self.profile.tasks), *self.flags, *plan.opts]

    def _in_copy(self, name: str) -> str:
        """The path of a file in the copy of the code, if it belongs to it."""
        path = Path(name).resolve()
        return str(self.code / path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _one_line(text: object) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    lines = [re.sub(r"^(sbatch|allocation failure|error): *", "", line) for line in lines]
    return "; ".join(dict.fromkeys(lines))


def _partitions() -> str:
    command = ["sinfo", "--noheader", "--format=%P %D nodes, %c CPUs, %m MB, %G, limit %l"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return f" (partitions: {'; '.join(lines)})" if lines else ""
