"""What is kept of a submission: the code that its jobs run, the commit, the environment.

The code is a copy, so that editing the checkout afterwards changes nothing for a job.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import submitit

__all__ = ["ROOT", "copy_code", "describe_commit", "describe_environment"]

ROOT = Path(__file__).resolve().parents[2]

# Without git, and of files that git does not know yet.
_SUFFIXES = (".py", ".sh", ".yaml", ".yml", ".json", ".toml")
_FOLDERS = ("wsbcn_d2", "configs", "slurm", "projects")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|AUTH", re.IGNORECASE)


def copy_code(target: Path) -> None:
    """Copy to ``target`` what git tracks, as it is on disk, and new source files."""
    for path in _files():
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy)


def describe_commit() -> tuple[str, str]:
    """Return the commit with the state of the checkout, and what differs from it as a patch."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "not a git checkout", ""
    changed = _git("status", "--porcelain") or ""
    return f"{commit.strip()}\n{changed}".strip(), _git("diff", "HEAD", "--binary") or ""


def describe_environment() -> str:
    """Return Python, packages and environment variables, without those that look like secrets."""
    packages = sorted(
        f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()
    )
    variables = sorted(f"{k}={v}" for k, v in os.environ.items() if not _SECRET.search(k))
    head = [f"python {platform.python_version()} ({sys.executable})", platform.platform()]
    return "\n".join([*head, f"submitit {submitit.__version__}", "", *packages, "", *variables, ""])


def _files() -> list[Path]:
    """Paths relative to `ROOT`."""
    tracked = _git("ls-files", "-z")
    if tracked is None:
        found = [p for folder in _FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
        found = [path.relative_to(ROOT) for path in [*found, ROOT / "train_net.py"]]
        return sorted(path for path in found if path.suffix in _SUFFIXES)
    new = _git("ls-files", "-z", "--others", "--exclude-standard") or ""
    names = {Path(name) for name in tracked.split("\0") if name}
    names |= {Path(n) for n in new.split("\0") if n and Path(n).suffix in _SUFFIXES}
    # A tracked file may have been deleted.
    return sorted(path for path in names if (ROOT / path).is_file())


def _git(*arguments: str) -> str | None:
    """Output of a git command in `ROOT`; None where that is no checkout, or git is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
