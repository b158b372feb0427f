"""The script that sbatch gets: submitit's, which becomes job.sh, which calls srun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from .profile import Profile
from .run_folder import RunFolder

__all__ = ["make_executor", "script_text"]

_SRUN = ("srun", "--unbuffered", "--label", "--kill-on-bad-exit=1", "--distribution=block")
# Of the time between the signal and the end, how much the processes get; then they are killed, and
# the job is requeued from its last checkpoint.
_LAST_CALL = 0.75


class _Executor(submitit.SlurmExecutor):
    """submitit's, which also makes scripts where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def make_executor(
    profile: Profile, folder: Path, code: Path, runs: Sequence[RunFolder], **options: Any
) -> submitit.SlurmExecutor:
    """An executor for a job, or for an array of them.

    Args:
        profile: resources.
        folder: submitit's. For an array, ``runs/<index>`` in it are links to the runs' folders.
        code: the copy of the code.
        runs: one for each job.
        options: of submitit, such as ``job_name`` and ``array_parallelism``.
    """
    array = len(runs) > 1
    srun = [*_SRUN, f"--cpus-per-task={profile.cpus_per_task}"]
    sbatch: dict[str, Any] = {
        "output": folder / "runs" / "%a" / "log.txt" if array else runs[0].log,
        "chdir": code,
        "requeue": True,
        "signal": f"B:USR2@{profile.grace}",
    }
    if profile.mem is not None:
        sbatch["mem"] = profile.mem  # with a unit, where submitit's is in GB
    if "dependency" in options:
        sbatch["kill-on-invalid-dep"] = "yes"
    if profile.min_nodes in (None, profile.nodes):
        sbatch["ntasks-per-node"] = profile.tasks
        sbatch["cpus-per-task"] = profile.cpus_per_task
    else:
        # SLURM would keep the first start's number of tasks, and a requeued job wait for as many
        # nodes again. So the job asks for CPUs, and only srun for tasks.
        sbatch["nodes"] = f"{profile.min_nodes}-{profile.nodes}"
        sbatch["mincpus"] = profile.tasks * profile.cpus_per_task
        srun.append(f"--ntasks-per-node={profile.tasks}")
    job = ["exec", "bash", str(code / "slurm/wsbcn_slurm/job.sh"), *srun, *profile.srun_args]
    python = profile.python or shlex.quote(sys.executable)
    run = shlex.quote(str(runs[0].folder))
    if array:
        run = f'{shlex.quote(str(folder / "runs"))}/"$SLURM_ARRAY_TASK_ID"'
    paths = shlex.quote(f"{code}/slurm:{code}")
    variables = {
        "python": python,
        "tasks_per_node": profile.tasks,
        "max_requeues": profile.max_requeues,
        "last_call": int(_LAST_CALL * profile.grace),
        "node_failure_wait": profile.node_failure_wait,
        "DETECTRON2_DATASETS": os.path.abspath(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        **profile.env,
    }
    setup = [
        f"export run={run}",
        f"export PYTHONPATH={paths}${{PYTHONPATH:+:$PYTHONPATH}}",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *profile.setup,
    ]
    executor = _Executor(folder, python=f"{shlex.join(job)} {python}")
    executor.update_parameters(
        **{name: getattr(profile, name) for name in ("partition", "account", "qos", "constraint")},
        gpus_per_node=profile.gpus_per_node or None,
        time=profile.minutes,
        nodes=profile.nodes,
        stderr_to_stdout=True,
        use_srun=False,
        setup=setup,
        additional_parameters={**sbatch, **profile.sbatch},
        **options,
    )
    return executor


def script_text(executor: submitit.SlurmExecutor, num_jobs: int) -> str:
    """The script, without submitting it.

    Args:
        executor: from `make_executor`.
        num_jobs: more than one for an array.
    """
    if num_jobs > 1:
        executor.parameters["map_count"] = num_jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")
