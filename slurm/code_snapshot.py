"""A copy of the code for a job: editing the checkout afterwards changes nothing for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["ROOT", "describe", "files", "take"]

ROOT = Path(__file__).resolve().parents[1]

# Without git, and of files that git does not know yet.
_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".toml")
_FOLDERS = ("wsbcn_d2", "configs", "slurm", "projects")


def files() -> list[Path]:
    """What belongs to the code, relative to `ROOT`: what git tracks, and new source files."""
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


def take(target: Path) -> None:
    """Copy the code to ``target``."""
    for path in files():
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy)


def describe() -> tuple[str, str]:
    """The commit, and what differs from it as a patch."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "not a git checkout", ""
    changed = _git("status", "--porcelain") or ""
    return f"{commit.strip()}\n{changed}".strip(), _git("diff", "HEAD", "--binary") or ""


def _git(*arguments: str) -> str | None:
    """Output of a git command in `ROOT`; None where that is no checkout, or git is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
